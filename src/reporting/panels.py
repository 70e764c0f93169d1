"""What is looked at, and in which order: panels as plain data, drawn by the HTML report and by the W&B dashboard.

A metric of training carries the name that it has in metrics.jsonl; W&B shows it under its split (``train/loss``). A
number of a benchmark carries the name that it has in its record, under the benchmark (``alpaca_eval/win_rate``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves over the steps: one metric of training or validation. ``chance`` draws a line at that height; ``parts``
    are further curves in the panel of one run."""

    metric: str
    title: str
    splits: tuple[str, ...] = ("train", "validation")
    chance: float | None = None
    parts: tuple[str, ...] = ()

    @property
    def logged(self) -> tuple[str, ...]:
        """The names in W&B."""
        return tuple(f"{split}/{self.metric}" for split in self.splits)


@dataclass(frozen=True, slots=True)
class Bar:
    """A number of a benchmark, one bar per run. ``higher_is_better`` is None where neither end is."""

    benchmark: str
    metric: str
    title: str
    higher_is_better: bool | None = True

    @property
    def logged(self) -> str:
        """The name in W&B."""
        return f"{self.benchmark}/{self.metric}"


@dataclass(frozen=True, slots=True)
class Section:
    """Panels under one heading."""

    name: str
    panels: tuple[Panel | Bar, ...]

    @property
    def curves(self) -> tuple[Panel, ...]:
        """The panels that are curves."""
        return tuple(panel for panel in self.panels if isinstance(panel, Panel))

    @property
    def bars(self) -> tuple[Bar, ...]:
        """The panels that are bars."""
        return tuple(panel for panel in self.panels if isinstance(panel, Bar))


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard. ``tag``: runs that carry it are shown; ``group_by``: keys of the configuration that make one
    colour of several runs."""

    name: str
    title: str
    tag: str
    sections: tuple[Section, ...]
    group_by: tuple[str, ...] = ("method.name",)


TRAIN = ("train",)
LOSS = Panel("loss", "Loss")
MARGINS = Panel("rewards/margins", "Reward margin (chosen − rejected)", parts=("rewards/chosen", "rewards/rejected"))
ACCURACY = Panel(
    "rewards/accuracies",
    "Pairwise accuracy",
    chance=0.5,
    parts=("rewards/accuracies_clean", "rewards/accuracies_flipped"),  # logged under label noise
)
GRADIENT = Panel("grad_norm", "Gradient norm before clipping", splits=TRAIN)
PANELS = (LOSS, MARGINS, ACCURACY, GRADIENT)
"""The four curves of every report."""

OVERVIEW = Section("Overview", PANELS)
REWARDS = Section(
    "Rewards and log-probs",
    (
        Panel("rewards/chosen", "Reward of the chosen response"),
        Panel("rewards/rejected", "Reward of the rejected response"),
        Panel("logps/chosen", "Summed log-prob of the chosen response (nats)"),
        Panel("logps/rejected", "Summed log-prob of the rejected response (nats)"),
    ),
)
NOISE = Section(
    "Clean and flipped pairs",
    (
        Panel("rewards/accuracies_clean", "Accuracy on pairs that noise left alone", splits=TRAIN, chance=0.5),
        Panel("rewards/accuracies_flipped", "Accuracy on flipped pairs (as labelled)", splits=TRAIN, chance=0.5),
        Panel("weight/gradient_clean", "Push on pairs that noise left alone", splits=TRAIN),
        Panel("weight/gradient_flipped", "Push on flipped pairs", splits=TRAIN),
    ),
)
WEIGHTS = Section(
    "Weights",
    (
        Panel("weight/mean", "Mean weight of a pair"),
        Panel("weight/gradient", "How hard the update pushes a pair (−∂loss/∂reward)"),
        Panel("weight/kept", "Share of pairs kept", splits=TRAIN),
        Panel("weight/gradient_norm", "Gradient norm of one pair", splits=TRAIN),
    ),
)
TARGET = Section("Target margin", (Panel("target/mean", "Mean target margin"),))
ADAPTIVE = Section(
    "Adaptive margin (AMaPO)",
    (
        *TARGET.panels,
        Panel("target/active", "Share of pairs below the mean, which get a margin"),
        Panel("target/clamped", "Share of margins cut at the exponent's bound"),
    ),
)
DYNAMIC = Section(
    "Dynamic margin (γ-PO) and temperature (β-DPO)",
    (
        *TARGET.panels,
        Panel("target/deviation", "Mean distance of a margin from the common one"),
        Panel("temperature/mean", "Temperature of the batch"),
    ),
)
ANCHOR = Section(
    "Anchor (GAPO)",
    (
        Panel("anchor/gap", "Margin minus its anchor", splits=TRAIN),
        Panel("anchor/gradient_norm", "Norm of the probe's direction", splits=TRAIN),
        Panel("anchor/applied", "Radius that was applied", splits=TRAIN),
        Panel("anchor/skipped", "Share of pairs without a probe", splits=TRAIN),
        *TARGET.panels,
    ),
)
RATE = Section("Learning rate", (Panel("lr", "Learning rate", splits=TRAIN),))

ALPACA_EVAL = Section(
    "AlpacaEval 2",
    (
        Bar("alpaca_eval", "length_controlled_winrate", "AlpacaEval 2, length-controlled win rate (%)"),
        Bar("alpaca_eval", "win_rate", "AlpacaEval 2, raw win rate (%)"),
        Bar("alpaca_eval", "avg_length", "AlpacaEval 2, mean length (characters)", None),
    ),
)
ARENA_HARD = Section("Arena-Hard", (Bar("arena_hard", "score", "Arena-Hard, win rate (%)"),))
MT_BENCH = Section("MT-Bench", (Bar("mt_bench", "overall", "MT-Bench, mean rating"),))
RANKING = Section(
    "Ranking of held-out pairs",
    (
        Bar("ranking", "accuracy/reward", "Held-out pairs ranked right by the method's own reward"),
        Bar("ranking", "accuracy/average", "Held-out pairs ranked right by averaged log-prob"),
        Bar("ranking", "lengths/chosen_mean", "Mean length of the chosen responses (tokens)", None),
    ),
)
RM_BENCH = Section(
    "RM-Bench",
    (
        Bar("rm_bench", "overall", "RM-Bench, mean of domains"),
        Bar("rm_bench", "overall/hard_acc", "RM-Bench, hard pairs"),
    ),
)

BOARDS = (
    Board(
        "amapo",
        "AMaPO",
        "amapo",
        (OVERVIEW, ADAPTIVE, REWARDS, WEIGHTS, ALPACA_EVAL, ARENA_HARD, MT_BENCH, RANKING, RM_BENCH),
    ),
    Board(
        "gamma_po",
        "γ-PO",
        "gamma_po",
        (OVERVIEW, DYNAMIC, REWARDS, WEIGHTS, NOISE, ALPACA_EVAL, ARENA_HARD, MT_BENCH),
    ),
    Board(
        "gapo",
        "GAPO",
        "gapo",
        (OVERVIEW, ANCHOR, REWARDS, WEIGHTS, NOISE, ALPACA_EVAL, ARENA_HARD, MT_BENCH, RANKING),
    ),
    Board("gappo", "GapPO", "gappo", (OVERVIEW, TARGET, REWARDS, WEIGHTS, NOISE, RANKING, ALPACA_EVAL, MT_BENCH)),
    Board(
        "sweeps",
        "Sweeps",
        "sweep",
        (OVERVIEW, RATE, ADAPTIVE, DYNAMIC, ANCHOR, RANKING, ALPACA_EVAL),
        ("method.name", "method.beta", "training.learning_rate"),
    ),
)
"""One board per paper, and one for sweeps."""

SECTIONS = (OVERVIEW, REWARDS, NOISE, WEIGHTS, TARGET, ADAPTIVE, DYNAMIC, ANCHOR, RATE)
"""Every section of curves, in the order of a page that shows them all; a panel may be in several."""

BENCHMARKS = (ALPACA_EVAL, ARENA_HARD, MT_BENCH, RANKING, RM_BENCH)
"""Every section of bars."""


def curves_once(sections: tuple[Section, ...] = SECTIONS) -> Iterator[tuple[str, Panel]]:
    """(section, panel) of all curves, each metric once, where it comes first."""
    seen: set[str] = set()
    for section in sections:
        for panel in section.curves:
            if panel.metric not in seen:
                seen.add(panel.metric)
                yield section.name, panel


def bars_of(sections: tuple[Section, ...] = BENCHMARKS) -> tuple[Bar, ...]:
    """All bars of the sections."""
    return tuple(bar for section in sections for bar in section.bars)
