"""What is measured: a finished run, a model as it is, one behind an endpoint, or stored answers."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.data.cache import json_hash
from src.errors import UserError
from src.evaluation.records import RunInfo, describe_run

if TYPE_CHECKING:
    from src.benchmark_schema import BenchmarkConfig
    from src.generation.policy import Policy


@dataclass(frozen=True)
class Subject:
    """Who is measured. ``name``: on the terminal and in files; ``run``: for the record; ``policy``: weights and
    template, ``None`` where nothing is generated here."""

    name: str
    run: RunInfo
    policy: Policy | None


def subject_of(config: BenchmarkConfig) -> Subject:
    """The run directory, model directory or hub id that ``config.checkpoint`` names.

    Raises ``UserError`` for one that does not exist, a run that is unfinished or half-written, a template other than
    that of the run's prepared data, keys that would not be read.
    """
    from src.generation.policy import is_run, policy_of_model, policy_of_run

    if config.checkpoint is None:
        raise UserError("checkpoint has no value; give a run directory, a model directory or a hub id: checkpoint=...")
    refuse_unread(config, is_run(config.checkpoint))
    if not is_run(config.checkpoint):
        refuse_begun(Path(config.checkpoint))
        refuse_unknown(config.checkpoint)
        policy = policy_of_model(
            config.checkpoint, config.template, list(config.stop_tokens), config.dtype or "float32"
        )
        return Subject(policy.name, model_info(config.checkpoint, policy), policy)
    directory = Path(config.checkpoint)
    refuse_unfinished(directory)
    policy = policy_of_run(directory, config.which)
    refuse_other_template(directory, policy)
    return Subject(policy.name, describe_run(directory, config.which), policy)


def endpoint_subject(base_url: str, model: str) -> Subject:
    """A model behind an endpoint, of which only its name is known."""
    return Subject(model, as_it_is(base_url, model, json_hash([base_url, model])), None)


def stored_subject(name: str, content_hash: str = "") -> Subject:
    """A model of which only stored answers or scores are at hand; ``content_hash``: of their file."""
    return Subject(name, as_it_is("", name, content_hash or json_hash(["stored", name])), None)


def model_info(checkpoint: str, policy: Policy) -> RunInfo:
    """The identity of a model that is no run of ours: its weights and template."""
    return as_it_is(checkpoint, policy.name, json_hash(policy.describe()))


def as_it_is(directory: str, model: str, identity: str) -> RunInfo:
    """A model that nobody trained here."""
    return RunInfo(
        directory=directory,
        config_hash=identity[:10],
        method="none",
        model=model,
        dataset="none",
        noise="none",
        seed=0,
        step=0,
        checkpoint="as it is",
    )


def refuse_unread(config: BenchmarkConfig, run: bool) -> None:
    """Raise ``UserError`` for keys that this kind of checkpoint does not read."""
    own = [f"{key}={value}" for key in ("template", "dtype") if (value := getattr(config, key)) is not None]
    own += [f"stop_tokens={list(config.stop_tokens)}"] if config.stop_tokens else []
    if run and own:
        raise UserError(f"{', '.join(own)} would not be read: a run has its own; leave it out")
    if not run and config.which != "best":
        raise UserError(f"which={config.which} would not be read: only a run has several checkpoints; leave it out")


def refuse_begun(directory: Path) -> None:
    """Raise ``UserError`` for a run directory that has no checkpoint yet."""
    if (directory / "config.yaml").is_file() and (directory / "status.json").is_file():
        refuse_unfinished(directory)
        raise UserError(f"checkpoint={directory} is a run without checkpoints/; train it again")


def refuse_unknown(checkpoint: str) -> None:
    """Raise ``UserError`` for a path that is meant to be one (its folder is here) and leads nowhere: asking the hub
    for ``runs/RUN`` would only say something of the network."""
    path = Path(checkpoint).expanduser()
    if path.exists() or not path.parent.is_dir() or path.parent == Path():
        return
    there = sorted(found.name for found in path.parent.iterdir() if found.is_dir())
    close = difflib.get_close_matches(path.name, there, n=1)
    hint = (
        f"did you mean checkpoint={path.parent / close[0]}?" if close else f"{path.parent} holds {len(there)} folders"
    )
    raise UserError(f"checkpoint={checkpoint}: no such directory (looked for {path.absolute()}); {hint}")


def refuse_unfinished(directory: Path) -> None:
    """Raise ``UserError`` for a run whose status.json does not say that it finished."""
    status = json_of(directory / "status.json", "train it again")
    state = status.get("state")
    if state != "finished":
        step, total = status.get("step", 0), status.get("total_steps", 0)
        why = f": {status['message']}" if status.get("message") else ""
        raise UserError(
            f"checkpoint={directory} is not a finished run (state '{state}', step {step} of {total}{why}), so its "
            "numbers would be those of a run cut short; let it finish by the command that began it"
        )


def refuse_other_template(directory: Path, policy: Policy) -> None:
    """Raise ``UserError`` when the run's data was laid out by another chat template than the one found now."""
    found = json_of(directory / "manifest.json", "restore it, or train again").get("template")
    trained = found.get("hash") if isinstance(found, dict) else None
    if trained != policy.template.hash:
        raise UserError(
            f"checkpoint={directory} was trained under the chat template {str(trained)[:12]}, but its checkpoint and "
            f"configuration now give {policy.template.hash[:12]}, so it would be asked in a form it never saw; restore "
            "config.yaml, the checkpoint's tokenizer files and src/data/chat_templates, or train again"
        )


def json_of(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object of a run directory; raises ``UserError`` for an absent or damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; {remedy}")
    return content
