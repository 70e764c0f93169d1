"""Which W&B run a run directory or a record is: id, group, job type, tags; and opening it, online or offline."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.errors import UserError

if TYPE_CHECKING:
    from wandb import Run

    from src.schema import LoggingConfig

LONGEST_ID, LONGEST_TAG, LONGEST_GROUP = 128, 64, 128
"""W&B's own limits, in characters."""


@dataclass(frozen=True)
class Identity:
    """Where a run belongs. ``job_type``: sft, train or evaluate; ``tags``: by which dashboards choose runs."""

    id: str
    name: str
    group: str
    job_type: str
    tags: tuple[str, ...]


def run_id(directory: Path, config_hash: str) -> str:
    """The W&B id of a run directory: its name, which ends in the hash of the configuration or gets it.

    A pure function of the directory's name and configuration, so a resumed run goes on with the same W&B run, an
    offline run that is uploaded twice is one run, and a moved output root changes nothing.
    """
    name = directory.absolute().name
    return fitting(name if name.endswith(config_hash) else f"{name}__{config_hash}", LONGEST_ID)


def fitting(text: str, longest: int) -> str:
    """``text`` with W&B's characters alone and no longer than it may be: the end of a longer one is kept, as there
    lies the hash, behind a hash of the whole."""
    clean = re.sub(r"[^A-Za-z0-9._=+-]+", "_", text)
    if len(clean) <= longest:
        return clean
    return hashlib.sha256(text.encode()).hexdigest()[:10] + clean[-(longest - 10) :]


def training_identity(
    config: Mapping[str, Any], logging: LoggingConfig, directory: Path, config_hash: str, sweep: str = ""
) -> Identity:
    """Of a training run. ``config``: plain, all of it; ``sweep``: the preset that it is a job of."""
    names = [str(config[section]["name"]) for section in ("method", "model", "dataset")]
    noise = config.get("noise") or {}
    noise_name = str(noise.get("name") or str(noise.get("_target_", "none")).rsplit(".", 1)[-1])
    of_noise = [] if noise_name.lower() in ("none", "nonoise") else [f"noise:{noise_name}"]
    return Identity(
        run_id(directory, config_hash),
        directory.absolute().name,
        fitting(logging.group or group_of(logging, sweep, names), LONGEST_GROUP),
        "sft" if names[0] == "sft" else "train",
        unique([*tags_of(logging, sweep), *names, *of_noise]),
    )


def group_of(logging: LoggingConfig, sweep: str, names: Sequence[str]) -> str:
    """The table of a paper, else the sweep, else method, model and data: whose runs differ in constants and seed."""
    if logging.paper:
        return f"{logging.paper}_table{logging.table}" if logging.table else logging.paper
    return f"sweep_{sweep}" if sweep else "__".join(names)


def tags_of(logging: LoggingConfig, sweep: str = "") -> list[str]:
    """What dashboards choose by: paper, scale, table, sweep, and the user's own."""
    table = f"{logging.paper}:table{logging.table}" if logging.paper and logging.table else ""
    of_sweep = ["sweep", f"sweep:{sweep}"] if sweep else []
    return [logging.paper or "", logging.scale or "", table, *of_sweep, *map(str, logging.tags)]


def unique(tags: Sequence[str]) -> tuple[str, ...]:
    """Each tag once, none longer than W&B takes."""
    return tuple(dict.fromkeys(tag[:LONGEST_TAG] for tag in tags if tag))


def chosen_sweep() -> str:
    """The preset of conf/sweep that the running job of a multirun belongs to; "" outside of one."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return ""
    choice = str(HydraConfig.get().runtime.choices.get("sweep") or "none")
    return "" if choice == "none" else choice


def open_run(
    logging: LoggingConfig, identity: Identity, directory: Path, config: Mapping[str, Any], notes: str = ""
) -> Run:
    """The W&B run of that identity, begun or gone on with; its offline files lie in ``directory``/wandb.

    Raises ``UserError`` without the package, and online without a login.
    """
    wandb = package(f"logging={logging.backend}", "use logging=none")
    offline = logging.backend == "wandb_offline"
    if not offline:
        require_login(wandb, "logging=wandb", "use logging=wandb_offline")
    with refusals(f"logging={logging.backend}", "use logging=wandb_offline, and `wandb sync` later"):
        return wandb.init(  # type: ignore[no-any-return]
            project=logging.project,
            entity=logging.entity,
            id=identity.id,
            name=identity.name,
            group=identity.group,
            job_type=identity.job_type,
            tags=list(identity.tags),
            notes=notes or None,
            dir=str(directory),
            config=dict(config),
            mode="offline" if offline else "online",
            resume=None if offline else "allow",
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )


def package(what: str, otherwise: str) -> Any:
    """The package wandb; raises ``UserError`` where it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"{what} needs the package wandb: pip install wandb, or {otherwise}") from error
    return wandb


def require_login(wandb: Any, what: str, otherwise: str) -> None:
    """Raise ``UserError`` when there is no key for the server."""
    with refusals(what, otherwise):
        if not (os.environ.get("WANDB_API_KEY") or wandb.login(prompt=False)):
            raise UserError(f"{what} needs a login: run `wandb login` or set WANDB_API_KEY; or {otherwise}")


@contextmanager
def refusals(what: str, otherwise: str) -> Iterator[None]:
    """What W&B says when its server refuses a key or is out of reach, as ``UserError``."""
    import wandb

    try:
        yield
    except wandb.errors.Error as error:
        raise UserError(f"{what}: W&B refused or is out of reach ({error}); {otherwise}") from error
