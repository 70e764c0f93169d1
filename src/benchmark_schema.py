"""The types of every configuration key of the benchmarks' entry points (src/evaluation)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from src.schema import DatasetConfig, DebugConfig, LoggingConfig, number, one_of


@dataclass
class DecodingConfig:
    """How answers are drawn; null = what the paper of this model and benchmark took (conf/decoding)."""

    temperature: float | None = number(None, at_least=0)
    top_p: float | None = number(None, above=0)
    max_new_tokens: int | None = number(None, at_least=1)
    seed: int = 0


@dataclass
class BenchmarkConfig:
    """conf/evaluation/common.yaml: what every benchmark takes."""

    checkpoint: str | None = None
    which: str = one_of("best", "last")
    template: str | None = None
    stop_tokens: list[str] = field(default_factory=list)
    dtype: str | None = None
    benchmark: str = one_of("official", "toy")
    max_items: int | None = number(None, at_least=1)
    scale: str | None = None
    dry_run: bool = MISSING
    output: str = one_of("text", "json")
    output_root: str = MISSING
    records_root: str = MISSING
    cache_root: str = MISSING
    debug: DebugConfig = field(default_factory=DebugConfig)


@dataclass
class JudgedConfig(BenchmarkConfig):
    """conf/evaluation/judged.yaml: what the benchmarks with a judge take besides."""

    stage: str = one_of("all", "generate", "judge", "score")
    outputs: str | None = None
    generator: dict[str, Any] = MISSING
    judge: dict[str, Any] = MISSING
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    shard_size: int = number(at_least=1)


@dataclass
class AlpacaEvalConfig(JudgedConfig):
    """conf/alpaca_eval.yaml."""

    annotations: Any = None
    reference_outputs: str | None = None
    gamed_annotations: str | None = None
    instruction_difficulty: str | None = None
    regularization: Any = None
    missing_rows: str = one_of("error", "as_published")


@dataclass
class ArenaHardConfig(JudgedConfig):
    """conf/arena_hard.yaml."""

    questions: str | None = None
    baseline_answers: str | None = None
    baseline: str | None = None
    rules: str = one_of("v0.1", "current")
    rounds: int = number(at_least=0)
    seed: int = number(at_least=0)
    duplicates: str = one_of("last", "all")
    judgments: Any = None
    battles: Any = None


@dataclass
class MTBenchConfig(JudgedConfig):
    """conf/mt_bench.yaml."""

    questions: str | None = None
    reference_answers: str | None = None
    judge_prompts: str | None = None
    judgments: Any = None
    duplicates: str = one_of("last", "all")


@dataclass
class LmHarnessConfig(BenchmarkConfig):
    """conf/lm_harness.yaml."""

    stage: str = one_of("all", "score")
    samples: Any = None
    tasks: Any = None
    tasks_from: str | None = None
    num_fewshot: int | None = number(None, at_least=0)
    apply_chat_template: bool | None = None
    fewshot_as_multiturn: bool = MISSING
    seeds: list[int] = MISSING
    backend: str = one_of("hf", "vllm")
    batch_size: Any = MISSING
    device: str = one_of("auto", "cpu", "cuda")


@dataclass
class RMBenchConfig(BenchmarkConfig):
    """conf/rm_bench.yaml."""

    stage: str = one_of("all", "score")
    data: Any = None
    samples: Any = None
    reward: str | None = None
    reference: str | None = None
    truncation: str = one_of("official", "training")
    device: str = one_of("auto", "cpu", "cuda")
    micro_batch_size: int = number(at_least=1)
    shard_size: int = number(at_least=1)


@dataclass
class CurvatureConfig:
    """conf/curvature.yaml."""

    checkpoint: str | None = None
    which: str = one_of("best", "last")
    batches: int = number(at_least=1)
    pairs: int = number(at_least=1)
    steps: int = number(at_least=1)
    seed: int = MISSING
    device: str = one_of("auto", "cpu", "cuda")
    scale: str | None = None
    output: str = one_of("text", "json")
    records_root: str = MISSING
    debug: DebugConfig = field(default_factory=DebugConfig)


@dataclass
class ListwiseConfig(BenchmarkConfig):
    """conf/listwise.yaml."""

    stage: str = one_of("all", "score")
    samples: Any = None
    dataset: DatasetConfig | None = None
    split: str = one_of("held_out", "all")
    reward: str | None = None
    gains: str = one_of("exponential", "linear")
    zero: Any = 0.0
    k: list[Any] = MISSING
    n: Any = None
    device: str = one_of("auto", "cpu", "cuda")
    micro_batch_size: int = number(at_least=1)
    shard_size: int = number(at_least=1)


@dataclass
class ReproduceConfig:
    """conf/reproduce.yaml: a table of a paper."""

    paper: str = MISSING
    table: Any = MISSING
    scale: str = MISSING
    seeds: int = number(at_least=1)
    action: str = one_of("run", "dry_run", "missing", "submit", "status", "table", "trace")
    cell: str | None = None
    launcher: Any = MISSING
    cluster: Any = MISSING
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    workers: int | None = number(None, at_least=1)
    threads: int = number(at_least=1)
    output_root: str = MISSING
    evaluations_root: str = MISSING
    cache_root: str = MISSING
    records_root: str = MISSING
    tables_root: str = MISSING
    debug: DebugConfig = field(default_factory=DebugConfig)


@dataclass
class SubmitConfig:
    """conf/submit.yaml: trainings, and what goes with them, as jobs of SLURM."""

    cluster: Any = MISSING
    action: str = one_of("submit", "dry_run", "test_only", "status")
    chain: bool = False
    evaluations: list[str] = field(default_factory=list)
    records_root: str = MISSING
    evaluations_root: str = MISSING
    report: str = MISSING
    debug: DebugConfig = field(default_factory=DebugConfig)


@dataclass
class DashboardConfig:
    """conf/dashboard.yaml: workspaces of W&B, and records as runs there."""

    action: str = one_of("publish", "check", "write", "records")
    boards: list[str] = field(default_factory=list)
    definitions: str = MISSING
    project: str = MISSING
    entity: str | None = None
    records: str = MISSING
    backend: str = one_of("wandb", "wandb_offline")
    offline_root: str = MISSING
    samples: int = number(at_least=0)
    debug: DebugConfig = field(default_factory=DebugConfig)
