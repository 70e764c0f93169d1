"""A whole run: find its directory, make or find what it stands on, train, record how it ended."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import set_seed
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.config import STOPPED, compose_train, config_hash, run_directory
from src.data.mismatch import RULE
from src.data.pairset import TokenizedPair
from src.data.prepare import PreparedData
from src.data.reference import ReferenceStore, reference_key, weights_hash
from src.data.sampler import WindowSampler
from src.engine.local import LocalEngine, refuse_missing_device
from src.environment import environment
from src.errors import UserError
from src.model.adapter import adapters_off, add_adapter, base_state, settings_of
from src.model.load import build_model
from src.model.trainable import trained_share, what_is_trained
from src.objective.objective import Objective
from src.objective.types import PairLogProbs
from src.schema import TrainConfig
from src.training.assemble import (
    Mismatched,
    PreparedLoader,
    build_objective,
    build_source,
    build_template,
    build_tokenizer,
    check_best_metric,
    in_order,
    prepare_data,
    sampler_of,
)
from src.training.checkpoint import Checkpoints, Identity
from src.training.display import TerminalDisplay, shown
from src.training.loop import Loop, Schedule, StopFlag
from src.training.metrics import MetricsFile, open_mirror
from src.training.rundir import Status, owned, read_status, refuse_other_configuration, say, write_json

REFERENCE_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest difference, nats per token, between reference and untrained policy."""


ENGINES = {"single": LocalEngine}
"""What ``engine.name`` may be."""


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
    refuse_missing_device(config.engine.device)
    base_config = sft_base(config)
    base_hash = hash_of_base(base_config)
    directory = run_directory(config, base_hash)
    refuse_other_configuration(directory, config_hash(config, base_hash))
    if read_status(directory).get("state") == "finished":
        say(f"finished already: {directory}")
        return 0
    if base_config is not None and read_status(run_directory(base_config)).get("state") != "finished":
        run_data(config, objective)  # what is wrong with the pairs is said before the base is trained, not after
    base = Base() if base_config is None else trained_base(base_config)
    if base is None:
        return STOPPED
    with owned(directory, wait=wait):
        if read_status(directory).get("state") == "finished":
            return 0
        return train_in(directory, config, objective, base)


def planned_directory(config: TrainConfig) -> Path:
    """Where the run of ``config`` lives, or will live."""
    return run_directory(config, hash_of_base(sft_base(config)))


def hash_of_base(base: TrainConfig | None) -> str:
    """What the SFT base adds to the hash of the runs that start from it; "" without one."""
    return "" if base is None else config_hash(base)


def sft_base(config: TrainConfig) -> TrainConfig | None:
    """Configuration of the SFT run that ``model.init=sft`` starts from: same model and data, own recipe and seed.

    All parameters are trained, whatever the run itself trains, and no score filter applies to demonstrations: so the
    runs of one model and data set share it.
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
    return composed_once(names, json.dumps(patch))


@cache
def composed_once(overrides: tuple[str, ...], patch: str) -> TrainConfig:
    """``compose_train``, which takes a quarter of a second, once a process: a run asks for its base several times."""
    return compose_train(list(overrides), json.loads(patch))


def plain(node: Any) -> dict[str, Any]:
    """A configuration node as plain data."""
    return cast(dict[str, Any], OmegaConf.to_container(cast(DictConfig, node), resolve=True))


def trained_base(config: TrainConfig) -> Base | None:
    """The SFT base, trained now unless it was before; ``None`` when its training was stopped."""
    directory = run_directory(config)
    if read_status(directory).get("state") == "finished":
        refuse_stale_base(directory, config)
        say(f"SFT base: reusing {directory}")
    else:
        say(f"SFT base: training it once, later runs reuse {directory}")
        if train(config, wait=True) != 0:
            return None
    return Base(config_hash(config), str(directory / "checkpoints" / "best" / "model"))


def refuse_stale_base(directory: Path, config: TrainConfig) -> None:
    """Raise ``UserError`` when the data is no longer what the SFT base was trained on."""
    trained = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["source"]["fingerprint"]
    if trained != build_source(config).fingerprint():
        raise UserError(
            f"the SFT base {directory} was trained on other data than dataset={config.dataset.name} gives now; "
            "remove that directory, and it is trained again"
        )


def train_in(directory: Path, config: TrainConfig, objective: Objective, base: Base) -> int:
    """Train in ``directory``, which this process owns; status.json follows every turn."""
    say(f"run directory: {directory}")
    status = Status(directory, config_hash(config, base.config_hash))
    OmegaConf.save(OmegaConf.create(plain(config)), directory / "config.yaml")
    write_json(directory / "environment.json", environment())
    with StopFlag().listening() as stop:
        try:
            run = assemble(directory, config, objective, base)
            progress, total = run.start(), run.schedule.total_steps
            say(f"training {trained_share(cast(LocalEngine, run.engine).model)}: {what_is_trained(config)}")
            stop.deferring = True
            status.write("running", progress, total)
            with cast(TerminalDisplay, run.display).showing(progress.step):
                progress = run.run(progress, stop)
            run.mirror.finish()
        except Exception as error:
            status.fail(str(error))
            raise
    if progress.step < total:
        status.write("stopped", progress, total, f"{stop.signal} after step {progress.step}")
        say(f"{stop.signal}: checkpoint written after step {progress.step}; the same command goes on from there")
        return STOPPED
    status.write("finished", progress, total)
    say(f"finished: best {config.checkpoint.best_metric} {shown(progress.best_value)} after step {progress.best_step}")
    return 0


def assemble(directory: Path, config: TrainConfig, objective: Objective, base: Base) -> Loop:
    """Data, model, reference log-probs and engine of a run, ready to start."""
    set_seed(config.seed)
    data, tokenizer = run_data(config, objective)
    write_json(directory / "manifest.json", data.manifest)
    sampler = sampler_of(config, len(data.train))
    total_steps = sampler.steps(config.training.epochs, config.training.max_steps)
    model = initial_policy(directory, config, base, len(tokenizer))
    engine = ENGINES[config.engine.name](model, config.training, total_steps, config.engine.device, config.model.dtype)
    scope = getattr(objective.perturbation, "scope", None)
    if scope is not None:
        say(engine.perturbation_note(scope))
    batch, limit = config.evaluation.micro_batch_size, config.evaluation.max_pairs
    loader = PreparedLoader(data.train, data.validation, sampler, engine.device, batch, limit)
    if objective.needs.mismatched:
        loader = loader.with_mismatched(config.dataset.max_length)
    if objective.needs.reference:
        loader = with_references(loader, engine, data, config)
    hashed = config_hash(config, base.config_hash)
    return Loop(
        engine=engine,
        objective=objective,
        loader=loader,
        schedule=schedule_of(config, sampler, total_steps),
        checkpoints=Checkpoints(directory / "checkpoints", Identity(hashed, data.manifest["hash"]), tokenizer),
        metrics=MetricsFile(directory / "metrics.jsonl"),
        timings=MetricsFile(directory / "timings.jsonl"),
        mirror=open_mirror(config, hashed, directory, data.validation, tokenizer),
        display=TerminalDisplay(config.method["name"], total_steps),
        noisy=bool(data.manifest["flipped"]["count"]),
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
    """The policy before any step, with its adapter if there is one; ``model.json`` says what of it is trained."""
    start = base.model_path or config.model.path
    model = build_model(config.model, start, vocabulary, config.seed)
    if config.adapter.name != "none":
        revision = config.model.revision if start == config.model.path else None
        add_adapter(model, config.adapter, config.seed, start or kept_base(model, directory), revision)
    share, settings = trained_share(model), settings_of(model)
    described = {
        "parameters": share.total,
        "trained": share.trained,
        "trained_share": share.trained / share.total,
        "trainable": config.model.trainable,
        "adapter": config.adapter.name,
        "base": settings.base_model_name_or_path if settings else start,
    }
    write_json(directory / "model.json", described)
    return model


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


def with_references(
    loader: PreparedLoader, engine: LocalEngine, data: PreparedData, config: TrainConfig
) -> PreparedLoader:
    """The loader with the reference's log-probs of both splits.

    The reference is the policy before any step: for an adapter its base, so that runs with and without one share it.
    """
    weights = weights_hash(base_state(engine.model))

    def store(split: str, pairs: Sequence[TokenizedPair], what: str) -> ReferenceStore:
        key = reference_key(data.manifest["hash"], split, weights, config.model.dtype)
        path = Path(config.cache_root) / "reference" / f"{key}.safetensors"
        return reference_store(path, engine, loader, pairs, what)

    def mismatched(split: str, found: Mismatched | None) -> Mismatched | None:
        if found is None:
            return None
        return replace(found, reference=store(f"{split} {RULE}", found.pairs, f"mismatched {split} pairs"))

    loader = replace(
        loader,
        train_reference=store("train", data.train, "train pairs"),
        validation_reference=store("validation", data.validation, "validation pairs"),
        train_mismatched=mismatched("train", loader.train_mismatched),
        validation_mismatched=mismatched("validation", loader.validation_mismatched),
    )
    check_reference(engine, loader, REFERENCE_TOLERANCE[config.model.dtype])
    return loader


def reference_store(
    path: Path, engine: LocalEngine, loader: PreparedLoader, pairs: Sequence[TokenizedPair], what: str
) -> ReferenceStore:
    """The store at ``path``, computed and written when it is not there yet."""
    if path.exists():
        return ReferenceStore.load(path)
    say(f"reference log-probs: computing those of {len(pairs)} {what} once")
    with torch.no_grad(), adapters_off(engine.model):
        parts = [
            engine.log_probs(loader.batch(pairs, indices, None)).to(torch.device("cpu"))
            for indices in in_order(len(pairs), loader.validation_batch)
        ]
    store = ReferenceStore(PairLogProbs.concatenate(parts))
    store.save(path)
    return store


def check_reference(engine: LocalEngine, loader: PreparedLoader, tolerance: float) -> None:
    """Before any step the policy is the reference; raises ``UserError`` when the stored log-probs say otherwise."""
    first = loader.window(0)[0]
    gaps = []
    for batch in [first] if first.mismatched is None else [first, first.mismatched]:
        assert batch.reference is not None
        with torch.no_grad(), adapters_off(engine.model):
            policy = engine.log_probs(batch)
        for mine, stored in ((policy.chosen, batch.reference.chosen), (policy.rejected, batch.reference.rejected)):
            gap = (mine.summed - stored.summed).abs()
            # a mismatched response may be cut to a few improbable tokens, whose rounding only a whole batch averages
            gaps.append((gap / stored.tokens.clamp(min=1)).max() if batch is first else gap.sum() / stored.tokens.sum())
    worst = float(torch.stack(gaps).max())
    if not worst <= tolerance:
        raise UserError(
            f"the stored reference log-probs differ from the untrained policy by {worst:.2g} nats per token "
            f"(at most {tolerance:g} is rounding), so they belong to other weights or tokens; "
            "remove the folder 'reference' of cache_root, so that they are computed again"
        )
