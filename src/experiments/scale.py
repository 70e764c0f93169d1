"""At which size a table is made: laptop, gpu or cluster (experiments/scale)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from src.errors import UserError
from src.experiments.experiment import Column, Experiment, Meaning, Measured, Unreproduced
from src.experiments.files import EXPERIMENTS, Node, did_you_mean, read_node
from src.experiments.jobs import Resources
from src.experiments.published import Labels

Overrides = tuple[str, ...]
FOLDER = EXPERIMENTS / "scale"
RECIPES = ("own", "paper")


@dataclass(frozen=True)
class Scale:
    """What a scale changes.

    ``recipes``: ``own`` where stand-ins are trained with the tuned values of their own (conf/recipe/METHOD__MODEL),
    ``paper`` where with those of the model they stand for. ``models``: conf/model name -> overrides that take the place
    of the paper's model and data; a name that is absent is trained as in the paper. ``every``, ``preference``, ``sft``:
    overrides of all trainings, and of the two kinds; ``methods``: conf/method name -> overrides of its own.
    ``benchmarks``: arguments of each benchmark's entry point. ``measures``: "benchmark/metric" -> its counterpart.
    ``seconds``: a rough duration per kind of job, until one was measured.
    ``resources``: what a training (``train``) and the answers or scores of an evaluation (``evaluate``) take of a
    cluster; without it one node and no GPU.
    """

    name: str
    recipes: str
    models: Mapping[str, Overrides]
    every: Overrides
    preference: Overrides
    sft: Overrides
    benchmarks: Mapping[str, Overrides]
    measures: Mapping[str, Measured | Unreproduced]
    seconds: Mapping[str, float]
    notes: tuple[str, ...]
    resources: Mapping[str, Resources] = field(default_factory=dict)
    methods: Mapping[str, Overrides] = field(default_factory=dict)

    def training(self, experiment: Experiment, labels: Labels, column: Column, seed: int) -> list[str]:
        """The overrides of ``src.train`` behind a cell; of two values of one key the later one counts."""
        meanings = [*column.fixed.values(), *experiment.meanings(labels)]
        model = next((meaning.model for meaning in meanings if meaning.model), None)
        found: dict[str, str] = {}
        for meaning in meanings:
            own = self.models.get(meaning.model) if meaning.model else None
            add(found, [f"model={meaning.model}", *meaning.overrides] if meaning.model and own is None else own or ())
            if not meaning.model:
                add(found, meaning.overrides)
            add(found, recipe_of(meaning, model, kept=self.recipes == "paper" or model not in self.models))
        if self.recipes == "paper" and model in self.models and "recipe" not in found:
            add(found, [f"recipe={found['method'].partition('=')[2]}__{model}"] if "method" in found else [])
        is_sft = found.get("method") == "method=sft"
        add(found, self.every)
        add(found, self.sft if is_sft else self.preference)
        add(found, self.methods.get(found.get("method", "").partition("=")[2], ()))
        if is_sft:
            found.pop("recipe", None)
        add(found, [] if is_sft else experiment.overrides)
        add(found, column.overrides)
        add(found, [f"seed={seed}"])
        return list(found.values())

    def column(self, column: Column) -> Column:
        """The column as it is measured at this scale."""
        if not isinstance(column.source, Measured):
            return column
        source = self.measures.get(f"{column.source.benchmark}/{column.source.metric}", column.source)
        if isinstance(source, Measured):
            source = replace(source, part=column.source.part)
        return replace(column, source=source)

    def arguments(self, source: Measured) -> list[str]:
        """The arguments of the benchmark's entry point, but for the checkpoint."""
        found: dict[str, str] = {}
        for overrides in (self.benchmarks.get(source.benchmark, ()), source.arguments, [f"scale={self.name}"]):
            add(found, overrides)
        return list(found.values())


def add(found: dict[str, str], overrides: tuple[str, ...] | list[str]) -> None:
    """Take ``overrides`` in, each in the place of an earlier one of the same key."""
    for override in overrides:
        key = override.partition("=")[0].lstrip("+")
        found.pop(key, None)
        found[key] = override


def recipe_of(meaning: Meaning, model: str | None, *, kept: bool) -> list[str]:
    """The recipe that the paper's label asks for on this model; none where the scale has another model."""
    recipe = (meaning.recipes or {}).get(model or "")
    return [f"recipe={recipe}"] if recipe and kept else []


def scales() -> list[str]:
    """Names of the scales."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_scale(name: str) -> Scale:
    """The scale of that name; raises ``UserError``."""
    if name not in scales():
        raise UserError(f"scale={name} is unknown{did_you_mean(name, scales())}")
    node = read_node(FOLDER / f"{name}.yaml").only(
        *("recipes", "models", "every", "preference", "sft", "methods"),
        *("benchmarks", "measures", "seconds", "resources", "notes"),
    )
    recipes = node.get("recipes", "own")
    if recipes not in RECIPES:
        raise UserError(f"{node.where}: recipes '{recipes}' is unknown{did_you_mean(str(recipes), RECIPES)}")
    models, benchmarks, measures = node.child("models"), node.child("benchmarks"), node.child("measures")
    methods = node.child("methods")
    return Scale(
        name,
        recipes,
        {model: models.texts(model) for model in models.values},
        node.texts("every"),
        node.texts("preference"),
        node.texts("sft"),
        {benchmark: benchmarks.texts(benchmark) for benchmark in benchmarks.values},
        {measure: counterpart_of(measures.child(measure)) for measure in measures.values},
        {kind: float(seconds) for kind, seconds in node.child("seconds").values.items()},
        node.texts("notes"),
        resources_of(node.child("resources")),
        {method: methods.texts(method) for method in methods.values},
    )


def resources_of(node: Node) -> dict[str, Resources]:
    """What jobs take of a cluster; raises ``UserError``."""
    node.only("train", "evaluate")
    found = {}
    for role in node.values:
        given = node.child(role).only("nodes", "gpus")
        nodes, gpus = given.get("nodes", 1), given.get("gpus", 0)
        if not (isinstance(nodes, int) and nodes >= 1 and isinstance(gpus, int) and gpus >= 0):
            raise UserError(f"{given.where}: nodes={nodes}, gpus={gpus} are no numbers of nodes and of GPUs on each")
        found[role] = Resources(nodes, gpus)
    return found


def counterpart_of(node: Node) -> Measured | Unreproduced:
    """What stands for a measure at a scale, or why nothing does."""
    if "unreproduced" in node.values:
        return Unreproduced(str(node.only("unreproduced").need("unreproduced")))
    node.only("benchmark", "metric", "arguments")
    return Measured(str(node.need("benchmark")), str(node.need("metric")), node.texts("arguments"))
