"""The types of every configuration key, with their choices and bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


def one_of(*choices: str, default: str = MISSING) -> Any:
    """A string field that takes one of ``choices`` (checked after composition)."""
    return field(default=default, metadata={"choices": choices})


def number(default: Any = MISSING, *, at_least: float | None = None, above: float | None = None) -> Any:
    """A numeric field with a lower bound (checked after composition)."""
    return field(default=default, metadata={"at_least": at_least, "above": above})


@dataclass
class ModelConfig:
    """conf/model: which weights, how they are built and how text reaches them."""

    name: str = MISSING
    init: str = one_of("scratch", "pretrained", "sft")
    path: str | None = None
    revision: str | None = None
    tokenizer: str | None = None
    template: str | None = None
    stop_tokens: list[str] = field(default_factory=list)
    dtype: str = one_of("float32", "bfloat16")
    attention: str = one_of("sdpa", "eager", "flash_attention_2")
    layout: str = one_of("prefix", "padded", default="prefix")
    gradient_checkpointing: bool = False
    trainable: str = one_of("full", "mlp", default="full")
    sft_seed: int = 0
    architecture: dict[str, Any] = field(default_factory=dict)


@dataclass
class AdapterConfig:
    """conf/adapter: small trained matrices beside frozen weights."""

    name: str = one_of("none", "lora", default="none")
    r: int = number(8, at_least=1)
    alpha: int = number(16, at_least=1)
    dropout: float = number(0.0, at_least=0)
    target_modules: Any = "all-linear"


@dataclass
class DatasetConfig:
    """conf/dataset: where pairs come from and how they are cut."""

    name: str = MISSING
    source: dict[str, Any] = MISSING
    validation_fraction: float = number(above=0)
    split_seed: int = 0
    max_length: int = number(at_least=2)
    max_prompt_length: int = number(at_least=2)
    min_score_gap: float = number(0.0, at_least=0)
    generalization: Any = None
    truncation: str = one_of("simpo", "drop")
    response_span: str = one_of("completion", "with_assistant_header")


@dataclass
class TrainingConfig:
    """Optimizer, schedule and batch, in pairs and optimizer steps."""

    epochs: float = number(above=0)
    max_steps: int | None = number(None, at_least=1)
    max_pairs: int | None = number(None, at_least=1)
    global_batch_size: int = number(at_least=1)
    micro_batch_size: int = number(at_least=1)
    max_tokens_per_forward: int | None = number(None, at_least=1)
    learning_rate: float = number(above=0)
    scheduler: str = one_of("cosine", "linear", "constant")
    warmup_ratio: float = number(at_least=0)
    warmup_steps: int | None = number(None, at_least=0)
    optimizer: str = one_of("adamw", "rmsprop", default="adamw")
    rmsprop_alpha: float = number(0.99, at_least=0)
    adam_beta1: float = number(at_least=0)
    adam_beta2: float = number(at_least=0)
    adam_epsilon: float = number(above=0)
    weight_decay: float = number(at_least=0)
    master: str = one_of("float32", "split", default="float32")
    gradients: str = one_of("float32", "bfloat16", default="float32")
    moments: str = one_of("float32", "int8", default="float32")
    kept_forwards: int = number(1, at_least=0)
    max_grad_norm: float = number(above=0)


@dataclass
class EvaluationConfig:
    """Validation during training."""

    every_steps: int = number(at_least=0)
    micro_batch_size: int = number(at_least=1)
    max_pairs: int | None = number(None, at_least=1)


@dataclass
class CheckpointConfig:
    """When to write checkpoints and which one is the best."""

    every_steps: int = number(at_least=0)
    best_metric: str = MISSING
    best_mode: str = one_of("max", "min")


@dataclass
class EngineConfig:
    """conf/engine: what the step runs on."""

    name: str = one_of("single", "ddp", "fsdp2", "zero2", "zero3", "fsdp2_offload", "zero2_offload", "zero3_offload")
    device: str = one_of("auto", "cpu", "cuda", default="auto")
    windows_ahead: int = number(1, at_least=0)
    timeout_s: float | None = number(None, above=0)
    compile_blocks: bool | None = None
    bucket_mb: float | None = number(None, above=0)
    reshard_after_forward: bool | None = None
    persistence_threshold: int | None = number(None, at_least=0)


@dataclass
class LoggingConfig:
    """conf/logging: mirrors of metrics.jsonl."""

    backend: str = one_of("none", "wandb", "wandb_offline")
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    paper: str | None = None
    table: Any = None
    scale: str | None = None
    tags: list[Any] = field(default_factory=list)
    samples: int = number(8, at_least=0)


@dataclass
class DebugConfig:
    """conf/debug."""

    name: str = "none"
    traceback: bool = False


@dataclass
class TrainConfig:
    """The whole of a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    method: dict[str, Any] = MISSING
    parts: dict[str, Any] = field(default_factory=dict)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    noise: dict[str, Any] = MISSING
    engine: EngineConfig = field(default_factory=EngineConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    debug: DebugConfig = field(default_factory=DebugConfig)
    seed: int = MISSING
    output_root: str = MISSING
    cache_root: str = MISSING
    prepare_workers: int | None = number(None, at_least=1)
    run_dir: str | None = None


@dataclass
class TrainKeys(TrainConfig):
    """The keys of training in the schema of another program, which is merged over them: a default here would take the
    place of a choice, so all values are missing."""

    model: ModelConfig = MISSING
    adapter: AdapterConfig = MISSING
    parts: dict[str, Any] = MISSING
    dataset: DatasetConfig = MISSING
    engine: EngineConfig = MISSING
    logging: LoggingConfig = MISSING
    training: TrainingConfig = MISSING
    evaluation: EvaluationConfig = MISSING
    checkpoint: CheckpointConfig = MISSING
    debug: DebugConfig = MISSING
    prepare_workers: int | None = MISSING
    run_dir: str | None = MISSING


@dataclass
class PrepareConfig(TrainKeys):
    """conf/prepare.yaml: what is made before a training, besides the keys of training that choose it."""

    reference: bool = MISSING


@dataclass
class PreflightConfig(TrainKeys):
    """conf/preflight.yaml: the machines that a training is planned for, besides its own keys."""

    nodes: int = number(at_least=1)
    gpus_per_node: int = number(at_least=1)
    gpu: str = one_of("all", "a100_40", "a100_80", "h100", "h200")


@dataclass
class ShowConfig(TrainKeys):
    """conf/show.yaml: what of the prepared data is shown, besides the keys of training that choose it."""

    split: str = one_of("train", "validation")
    pairs: int = number(at_least=1)
    only: list[str] = field(default_factory=list)
    ids: bool = False
    html: str | None = None


@dataclass
class RankingConfig:
    """conf/ranking.yaml: pairwise accuracy of a finished run."""

    checkpoint: str | None = None
    stage: str = one_of("all", "score", default="all")
    samples: Any = None
    split: str = one_of("validation", "train", "in_distribution", "prompt_ood", "response_ood", "mutual_ood")
    which: str = one_of("best", "last")
    min_score_gap: float = number(0.0, at_least=0)
    micro_batch_size: int = number(at_least=1)
    max_pairs: int | None = number(None, at_least=1)
    device: str = one_of("auto", "cpu", "cuda")
    allow_unfinished: bool = False
    scale: str | None = None
    dry_run: bool = False
    output: str = one_of("text", "json", default="text")
    shard_size: int = number(512, at_least=1)
    output_root: str = MISSING
    records_root: str = MISSING
    debug: DebugConfig = field(default_factory=DebugConfig)


@dataclass
class ReportConfig:
    """conf/report.yaml: the HTML page."""

    runs: str = MISSING
    records: str = MISSING
    tables: str = MISSING
    output: str = MISSING
    swept: Any = None
    sweep_metrics: list[str] = field(default_factory=list)
    debug: DebugConfig = field(default_factory=DebugConfig)


@dataclass
class AnnotateConfig:
    """conf/annotate.yaml: scores for responses, and pairs of them."""

    generations: Any = MISSING
    scorer: dict[str, Any] = MISSING
    shard_size: int = number(at_least=1)
    max_unscored: float = number(at_least=0)
    min_gap: float = number(at_least=0)
    output_root: str = MISSING
    output: str | None = None
    cache_root: str = MISSING
    debug: DebugConfig = field(default_factory=DebugConfig)


@dataclass
class GapsConfig:
    """conf/gaps.yaml: the histogram of score gaps; model, data set and noise as in training."""

    model: ModelConfig = field(default_factory=ModelConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    noise: dict[str, Any] = MISSING
    checkpoint: str | None = None
    which: str = one_of("best", "last")
    split: str = one_of("train", "validation")
    bin_width: float | None = number(None, above=0)
    hard_filter: float = number(at_least=0)
    batch: int = number(at_least=2)
    seed: int = MISSING
    cache_root: str = MISSING
    output: str = one_of("table", "json")
    figure: str | None = None
    debug: DebugConfig = field(default_factory=DebugConfig)


@dataclass
class GenerateConfig:
    """conf/generate.yaml: responses of a model to prompts."""

    checkpoint: str | None = None
    which: str = one_of("best", "last")
    template: str | None = None
    stop_tokens: list[str] = field(default_factory=list)
    dtype: str | None = None
    writer: str | None = None
    generator: dict[str, Any] = MISSING
    dataset: DatasetConfig | None = None
    prompts: str | None = None
    split: str = one_of("all", "train", "validation")
    max_prompts: int | None = number(None, at_least=1)
    n: int = number(at_least=1)
    temperatures: list[float] = MISSING
    seeds: list[int] = MISSING
    top_p: float = number(above=0)
    top_k: int | None = number(None, at_least=1)
    max_new_tokens: int = number(at_least=1)
    shard_size: int = number(at_least=1)
    output_root: str = MISSING
    output: str | None = None
    debug: DebugConfig = field(default_factory=DebugConfig)
