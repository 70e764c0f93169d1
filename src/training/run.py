"""A whole run: find its directory, make or find what it stands on, train, record how it ended."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from src.config import STOPPED, compose_train, config_hash, run_directory
from src.data.prepare import PreparedData
from src.data.reference import weights_hash
from src.data.sampler import WindowSampler
from src.engine.create import create_engine, joined_ranks, needs_weights
from src.engine.local import seed_everything
from src.engine.perturb import scope_note
from src.engine.ranks import Ranks, ranks
from src.environment import environment
from src.errors import UserError
from src.model.adapter import add_adapter, base_state, settings_of
from src.model.load import build_model
from src.model.trainable import trained_share, what_is_trained
from src.objective.objective import Objective
from src.schema import TrainConfig
from src.training.assemble import (
    PreparedLoader,
    build_objective,
    build_source,
    build_template,
    build_tokenizer,
    check_best_metric,
    prepare_data,
    sampler_of,
)
from src.training.checkpoint import Checkpoints, Identity
from src.training.display import NoDisplay, TerminalDisplay, shown
from src.training.loop import Loop, Schedule, StopFlag
from src.training.metrics import MetricsFile, Mirror, NoFile, open_mirror
from src.training.references import with_references
from src.training.rundir import Status, Unsaid, owned, read_status, refuse_other_configuration, say, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STOP = "STOP"
"""A file of this name in the run directory ends the run after its step, with a checkpoint."""

STOP_FILE = "MARGINALIA_STOP_FILE"
"""The environment variable that names another such file: a batch script knows it before the run directory."""


BASES: dict[str, TrainConfig] = {}
"""SFT bases of this process: composing one takes a quarter of a second, and a run asks for it several times."""


@dataclass(frozen=True)
class Base:
    """What a run starts from: the configuration hash of its SFT run ("" without one) and its weights, if any."""

    config_hash: str = ""
    model_path: str | None = None


def train(config: TrainConfig, *, wait: bool = False) -> int:
    """Train, resume or skip; the exit code (0 finished, 75 stopped on a signal). Raises ``UserError``.

    ``wait``: while another process trains the same configuration, wait for it instead of refusing.
    """
    objective = build_objective(config)
    check_best_metric(config)
    me = joined_ranks(config)
    base_config = sft_base(config)
    base_hash = hash_of_base(base_config)
    directory = run_directory(config, base_hash)
    me.from_main(lambda: refuse_other_configuration(directory, config, config_hash(config, base_hash)))
    if me.from_main(lambda: is_finished(directory)):
        say(f"finished already: {directory}")
        return 0
    if base_config is not None and not me.from_main(lambda: is_finished(run_directory(base_config))):
        with me.main_first():
            run_data(config, objective)  # what is wrong with the pairs is said before the base is trained, not after
    base = Base() if base_config is None else trained_base(base_config)
    if base is None:
        return STOPPED
    with ExitStack() as until_the_end:
        me.from_main(lambda: until_the_end.enter_context(owned(directory, wait=wait)))
        if me.from_main(lambda: is_finished(directory)):
            return 0
        return train_in(directory, config, objective, base, me)


def is_finished(directory: Path) -> bool:
    """Whether the run of that directory came to its end."""
    return read_status(directory).get("state") == "finished"


def planned_directory(config: TrainConfig) -> Path:
    """Where the run of ``config`` lives, or will live."""
    return run_directory(config, hash_of_base(sft_base(config)))


def hash_of_base(base: TrainConfig | None) -> str:
    """What the SFT base adds to the hash of the runs that start from it; "" without one."""
    return "" if base is None else config_hash(base)


def sft_base(config: TrainConfig, known: TrainConfig | None = None) -> TrainConfig | None:
    """Configuration of the SFT run that ``model.init=sft`` starts from: same model and data, own recipe and seed.

    All parameters are trained, whatever the run itself trains, and no score filter applies to demonstrations: so the
    runs of one model and data set share it. ``known``: what it was when the run was submitted; this process then
    takes it from there instead of conf/.
    """
    if config.model.init != "sft":
        return None
    start = "scratch" if config.model.path is None else "pretrained"
    debug = "smoke" if config.debug.name == "smoke" else "none"
    patch = {
        "model": {**plain(config.model), "init": start, "trainable": "full", "sft_seed": 0},
        "dataset": {**plain(config.dataset), "min_score_gap": 0.0},
        "engine": plain(config.engine),
        "logging": plain(config.logging),
        "seed": config.model.sft_seed,
        "output_root": config.output_root,
        "cache_root": config.cache_root,
    }
    names = ("method=sft", f"model={config.model.name}", f"dataset={config.dataset.name}", f"debug={debug}")
    key = json.dumps([names, patch])
    if key not in BASES:
        BASES[key] = known or compose_train(list(names), patch)
    return BASES[key]


def plain(node: Any) -> dict[str, Any]:
    """A configuration node as plain data."""
    return cast(dict[str, Any], OmegaConf.to_container(cast(DictConfig, node), resolve=True))


def trained_base(config: TrainConfig) -> Base | None:
    """The SFT base, trained now unless it was before; ``None`` when its training was stopped."""
    directory = run_directory(config)
    if ranks().from_main(lambda: is_finished(directory)):
        refuse_stale_base(directory, config)
        say(f"SFT base: reusing {directory}")
    else:
        say(f"SFT base: training it once, later runs reuse {directory}")
        if train(config, wait=True) != 0:
            return None
    return base_of(config)


def base_of(config: TrainConfig) -> Base:
    """What the SFT run of ``config`` leaves to those that start from it."""
    return Base(config_hash(config), str(run_directory(config) / "checkpoints" / "best" / "model"))


def refuse_stale_base(directory: Path, config: TrainConfig) -> None:
    """Raise ``UserError`` when the data is no longer what the SFT base was trained on."""
    trained = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["source"]["fingerprint"]
    if trained != build_source(config).fingerprint():
        raise UserError(
            f"the SFT base {directory} was trained on other data than dataset={config.dataset.name} gives now; "
            "remove that directory, and it is trained again"
        )


def train_in(directory: Path, config: TrainConfig, objective: Objective, base: Base, me: Ranks) -> int:
    """Train in ``directory``, which this run owns; status.json follows every turn."""
    say(f"run directory: {directory}")
    status = Status(directory, config_hash(config, base.config_hash)) if me.is_main else Unsaid()
    if me.is_main:
        OmegaConf.save(OmegaConf.create(plain(config)), directory / "config.yaml")
        write_json(directory / "environment.json", environment())
    with stop_flag(directory, me).listening() as stop:
        try:
            run = assemble(directory, config, objective, base)
            progress, total = run.start(), run.schedule.total_steps
            stop.deferring = True
            status.write("running", progress, total)
            with run.display.showing(progress.step):
                progress = run.run(progress, stop)
            run.mirror.finish()
        except Exception as error:
            status.fail(str(error))
            raise
    if progress.validated_step < total:  # asked to stop in its last step, it has still to validate
        status.write("stopped", progress, total, f"{stop.signal} after step {progress.step}")
        say(f"{stop.signal}: checkpoint written after step {progress.step}; the same command goes on from there")
        return STOPPED
    status.write("finished", progress, total)
    say(f"finished: best {config.checkpoint.best_metric} {shown(progress.best_value)} after step {progress.best_step}")
    return 0


def stop_flag(directory: Path, me: Ranks) -> StopFlag:
    """The flag that stops the run of ``directory``; one that was forgotten there is removed, and said."""
    named = os.environ.get(STOP_FILE)
    stop = StopFlag([directory / STOP, *([Path(named)] if named else [])], me)
    for path in stop.stale:
        say(f"{path} was there before the run started, so it is of an earlier one: removed")
    return stop


def assemble(directory: Path, config: TrainConfig, objective: Objective, base: Base) -> Loop:
    """Data, model, reference log-probs and engine of a run, ready to start; every rank comes here."""
    me = ranks()
    seed_everything(config.seed)
    with me.main_first():
        data, tokenizer = run_data(config, objective)
    lengths = data.train.lengths().sum(1).tolist() if config.training.max_tokens_per_forward else ()
    sampler = sampler_of(config, len(data.train), me.size, lengths)
    total_steps = sampler.steps(config.training.epochs, config.training.max_steps)
    model = initial_policy(directory, config, base, len(tokenizer))
    if me.is_main:
        write_json(directory / "manifest.json", data.manifest)
        write_json(directory / "model.json", described(model, config, base))
    # engines may shard the model and change it, so this is asked of it before
    weights = me.from_main(lambda: weights_hash(base_state(model))) if objective.needs.reference else ""
    say(f"training {trained_share(model)}: {what_is_trained(config)}")
    scope = getattr(objective.perturbation, "scope", None)
    if scope is not None:
        say(scope_note(model, scope))
    engine = create_engine(config, model, total_steps)
    batch, limit = config.evaluation.micro_batch_size * me.size, config.evaluation.max_pairs
    loader = PreparedLoader(data.train, data.validation, sampler, engine.device, batch, limit)
    if objective.needs.mismatched:
        loader = loader.with_mismatched(config.dataset.max_length)
    if objective.needs.reference:
        loader = with_references(loader, engine, data, config, weights)
    hashed = config_hash(config, base.config_hash)
    return Loop(
        engine=engine,
        objective=objective,
        loader=loader,
        schedule=schedule_of(config, sampler, total_steps),
        checkpoints=Checkpoints(directory / "checkpoints", Identity(hashed, data.manifest["hash"]), tokenizer),
        metrics=MetricsFile(directory / "metrics.jsonl") if me.is_main else NoFile(),
        timings=MetricsFile(directory / "timings.jsonl") if me.is_main else NoFile(),
        mirror=open_mirror(config, hashed, directory, data.validation, tokenizer) if me.is_main else Mirror(),
        display=TerminalDisplay(config.method["name"], total_steps) if me.is_main else NoDisplay(),
        noisy=bool(data.manifest["flipped"]["count"]),
        windows_ahead=config.engine.windows_ahead,
    )


def run_data(config: TrainConfig, objective: Objective) -> tuple[PreparedData, PreTrainedTokenizerBase]:
    """The prepared pairs of a run, and its tokenizer with the chat template that they were rendered by."""
    source = build_source(config)
    tokenizer = build_tokenizer(config, source)
    template = build_template(config, tokenizer)
    data = prepare_data(config, template, source, objective)
    # what is saved with the weights must render prompts as they were trained on
    tokenizer.chat_template = template.text.source
    return data, tokenizer


def initial_policy(directory: Path, config: TrainConfig, base: Base, vocabulary: int) -> PreTrainedModel:
    """The policy before any step, with its adapter if there is one; a rank that gets its weights from rank 0 has the
    shape alone."""
    start, me = base.model_path or config.model.path, ranks()
    model = build_model(config.model, start, vocabulary, config.seed, weights=needs_weights(config, me))
    if config.adapter.name != "none":
        revision = config.model.revision if start == config.model.path else None
        start = start or me.from_main(lambda: kept_base(model, directory))
        add_adapter(model, config.adapter, config.seed, start, revision)
    return model


def described(model: PreTrainedModel, config: TrainConfig, base: Base) -> dict[str, Any]:
    """What ``model.json`` says: what of the model is trained."""
    share, settings = trained_share(model), settings_of(model)
    return {
        "parameters": share.total,
        "trained": share.trained,
        "trained_share": share.trained / share.total,
        "trainable": config.model.trainable,
        "adapter": config.adapter.name,
        "base": settings.base_model_name_or_path if settings else base.model_path or config.model.path,
    }


def kept_base(model: PreTrainedModel, directory: Path) -> str:
    """The folder of the run in which random initial weights are kept, for the adapter that belongs to them."""
    folder = directory / "base"
    if not folder.exists():
        aside = directory / ".base"
        model.save_pretrained(aside)
        os.replace(aside, folder)
    return str(folder)


def schedule_of(config: TrainConfig, sampler: WindowSampler, total_steps: int) -> Schedule:
    """When things happen in this run."""
    return Schedule(
        total_steps=total_steps,
        validate_every=config.evaluation.every_steps,
        checkpoint_every=config.checkpoint.every_steps,
        best_metric=config.checkpoint.best_metric,
        best_mode=config.checkpoint.best_mode,
        max_grad_norm=config.training.max_grad_norm,
        steps_per_epoch=sampler.pairs / sampler.global_batch_size,
    )
