"""`python -m src.generate checkpoint=RUN`: responses of a model to prompts, shard by shard."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig

from src.build import build
from src.cli import entry_point
from src.config import problems_of
from src.errors import Problems, UserError
from src.schema import GenerateConfig

if TYPE_CHECKING:
    from src.generation.base import Decoding, Generator
    from src.generation.policy import Policy
    from src.generation.prompts import NamedPrompt


def main(config: DictConfig) -> int:
    if problems := problems_of(config, GenerateConfig):
        raise Problems(problems)
    checked = cast(GenerateConfig, config)
    settings = build(checked.generator, "generator")
    refuse_contradictions(checked, settings)

    from src.generation.base import Decoding
    from src.generation.generate import Job, generate
    from src.generation.shards import MANIFEST

    decoding = Decoding(
        n=checked.n,
        temperatures=tuple(checked.temperatures),
        seeds=tuple(checked.seeds),
        top_p=checked.top_p,
        top_k=checked.top_k,
        max_new_tokens=checked.max_new_tokens,
    )
    name, prompts, inputs = prompts_of(checked)
    generator, writer, run = opened(checked, settings, decoding)
    try:
        job = Job(generator, decoding, prompts, checked.writer or writer)
        directory = Path(checked.output) if checked.output else job.directory(checked.output_root, name)
        new = not (directory / MANIFEST).exists()
        print(f"directory: {directory}", file=sys.stderr)
        command = " ".join(["python -m src.generate", *sys.argv[1:]])
        manifest = generate(job, directory, checked.shard_size, run=run, inputs=inputs, command=command)
    finally:
        generator.close()
    print("\n".join(lines_of(manifest, new)) + f"\n{directory}")
    return 0


def refuse_contradictions(config: GenerateConfig, settings: Any) -> None:
    """Raise ``Problems`` for keys that would not be read, or that are missing."""
    from src.generation.policy import is_run

    problems = []
    own = [f"{key}={config[key]}" for key in ("template", "dtype") if config[key] is not None]  # type: ignore[index]
    own += [f"stop_tokens={list(config.stop_tokens)}"] if config.stop_tokens else []
    run = config.checkpoint is not None and is_run(config.checkpoint)
    if config.dtype not in (None, "float32", "bfloat16"):
        problems.append(f"dtype={config.dtype} is not known; choose one of: float32, bfloat16")
    if settings.needs_weights and config.checkpoint is None:
        problems.append("checkpoint has no value; give a run directory, a model directory or a hub id")
    if not settings.needs_weights:
        own += [f"checkpoint={config.checkpoint}"] if config.checkpoint is not None else []
        problems += [f"{key} would not be read, since the endpoint has its own; leave it out" for key in own]
    elif run:
        problems += [f"{key} would not be read: a run has its own; leave it out" for key in own]
    if config.which != "best" and not run:
        problems.append(f"which={config.which} would not be read: only a run has several checkpoints; leave it out")
    if config.prompts is not None and (config.dataset is not None or config.split != "all"):
        problems.append(f"prompts={config.prompts} takes the place of dataset and split; give one of the two")
    if config.prompts is None and config.dataset is None and not run:
        problems.append("there are no prompts; give dataset=NAME (such as dataset=toy) or prompts=FILE.jsonl")
    if problems:
        raise Problems(problems)


def prompts_of(config: GenerateConfig) -> tuple[str, list[NamedPrompt], list[dict[str, str]]]:
    """A name for the prompts, the prompts, and the files they are from (path and hash)."""
    from src.data.sources.files import content_hash
    from src.generation.policy import trained_config
    from src.generation.prompts import prompts_of_file, prompts_of_source

    if config.prompts is not None:
        found = prompts_of_file(config.prompts, config.max_prompts)
        path = Path(config.prompts).expanduser()
        return path.name.partition(".")[0], found, [{"path": str(path), "hash": content_hash([path])}]
    dataset = config.dataset or trained_config(Path(cast(str, config.checkpoint))).dataset
    source = build(dataset.source, "dataset.source")
    found = prompts_of_source(source, config.split, dataset.validation_fraction, dataset.split_seed, config.max_prompts)
    return dataset.name, found, []


def opened(config: GenerateConfig, settings: Any, decoding: Decoding) -> tuple[Generator, str, dict[str, Any]]:
    """The generator, the name it writes under, and the run it is of ({} for none)."""
    if not settings.needs_weights:
        return settings.open(decoding), settings.model, {}
    policy = policy_of(config)
    return settings.open(policy, decoding), policy.name, policy.run


def policy_of(config: GenerateConfig) -> Policy:
    from src.generation.policy import is_run, policy_of_model, policy_of_run

    if config.checkpoint is None:
        raise UserError("checkpoint has no value; give a run directory, a model directory or a hub id")
    if is_run(config.checkpoint):
        return policy_of_run(Path(config.checkpoint), config.which)
    stops = list(config.stop_tokens)
    return policy_of_model(config.checkpoint, config.template, stops, config.dtype or "float32")


def lines_of(manifest: dict[str, Any], new: bool) -> list[str]:
    """What was generated, in words."""
    from src.generation.generate import spoken

    counts = manifest["counts"]
    reasons = ", ".join(f"{count} × {reason}" for reason, count in counts["finish_reasons"].items())
    what = "generated" if new else "finished already"
    lines = [
        f"{what}: {counts['responses']} responses to {counts['prompts']} prompts, {counts['tokens']} tokens in "
        f"{manifest['seconds']:.1f} s (ended by {reasons})"
    ]
    if counts["skipped"]:
        lines.append(f"prompts without a response: {spoken(counts['skipped'])}")
    if counts["one_text"]:
        lines.append(f"prompts all of whose responses are the same text: {counts['one_text']}")
    return lines


if __name__ == "__main__":
    entry_point("generate", main)
