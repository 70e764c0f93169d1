"""No key without a reader: every field of the schema is read somewhere, and every YAML key has a field."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from src.build import locate
from src.combinations import constants_of, unread_constants
from src.config import CONF, ROOT, SCHEMAS
from src.schema import TrainConfig

READERS = sorted(path for path in (ROOT / "src").rglob("*.py") if path.name not in ("config.py", "combinations.py"))
ELSEWHERE = {
    ("debug", "traceback"): "src/cli.py reads it from a configuration of any program, by its dotted name",
    (
        "alpaca_eval",
        "reference_outputs",
    ): "one of the files that src/evaluation/alpaca/reference.py reads by their names",
    ("alpaca_eval", "gamed_annotations"): "likewise",
    ("alpaca_eval", "instruction_difficulty"): "likewise",
    ("submit", "cluster"): "src/submit.py builds it",
    ("reproduce", "launcher"): "src/reproduce.py builds it",
    ("reproduce", "workers"): "conf/launcher/local.yaml refers to it",
    ("reproduce", "threads"): "likewise",
    ("reproduce", "cluster"): "conf/launcher/slurm.yaml refers to it",
}
"""Fields that are read in another way than as an attribute."""


def fields_of(schema: type, section: str) -> Iterator[tuple[str, str]]:
    """(section, field) of every field below a schema that is no section itself."""
    for spec in dataclasses.fields(schema):
        inner = spec.default_factory
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from fields_of(inner, spec.name)
        else:
            yield section, spec.name


def last_name(node: ast.expr) -> str:
    """`training` of `self.config.training`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def reads() -> set[tuple[str, str]]:
    """(owner, attribute) of every attribute access in src/, but for the schema's own file."""
    found = set()
    for path in READERS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add((last_name(node.value), node.attr))
    return found


READ = reads()
FIELDS = sorted({pair for program, schema in SCHEMAS.items() for pair in fields_of(schema, program)})


def test_the_walk_finds_fields_and_reads() -> None:
    assert len(FIELDS) > 50
    assert ("training", "epochs") in FIELDS
    assert ("training", "epochs") in READ
    assert ("training", "no_such_key") not in READ


@pytest.mark.parametrize(("section", "name"), FIELDS, ids=lambda part: part)
def test_every_field_of_the_schema_is_read(section: str, name: str) -> None:
    """By its section (`training.epochs`), or by a `config` that is one."""
    if (section, name) in ELSEWHERE:
        return
    owners = {section, "config", "checked", "trained", "ready", "base"}
    assert owners & {owner for owner, attribute in READ if attribute == name}, f"{section}.{name} is read nowhere"


def test_exceptions_are_fields() -> None:
    assert set(ELSEWHERE) <= set(FIELDS)


def keys_of(path: Path) -> DictConfig:
    loaded = OmegaConf.load(path)
    assert isinstance(loaded, DictConfig)
    return loaded


def whole(path: Path) -> DictConfig:
    """A file of a group with what it inherits from others of its folder, and without the list that says so."""
    loaded = keys_of(path)
    parents = [name for name in loaded.pop("defaults", []) if isinstance(name, str) and name != "_self_"]
    merged = OmegaConf.merge(*(whole(path.parent / f"{name}.yaml") for name in parents), loaded)
    assert isinstance(merged, DictConfig)
    return merged


@pytest.mark.parametrize("group", ["model", "adapter", "dataset", "engine", "logging"])
def test_every_key_of_a_typed_group_has_a_field(group: str) -> None:
    known = {name for section, name in fields_of(TrainConfig, "train") if section == group}
    paths = sorted((CONF / group).glob("*.yaml"))
    assert paths
    for path in paths:
        assert set(map(str, whole(path))) <= known, path


@pytest.mark.parametrize("path", sorted((CONF / "method").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_constant_of_a_method_is_read_by_a_part(path: Path) -> None:
    method = OmegaConf.to_container(whole(path))
    assert isinstance(method, dict)
    assert constants_of(method) or path.stem == "sft"
    assert unread_constants(method) == []
    assert unread_constants(method | {"foo": 1}) == ["foo"]


@pytest.mark.parametrize(
    "path",
    sorted(path for group in ("method", "dataset", "noise") for path in (CONF / group).glob("*.yaml")),
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_every_option_of_a_part_is_a_field_of_its_class(path: Path) -> None:
    loaded = whole(path)
    nodes = [loaded, *(loaded._get_node(key) for key in loaded)]
    parts = [node for node in nodes if isinstance(node, DictConfig) and "_target_" in node]
    assert parts
    for part in parts:
        fields = {spec.name for spec in dataclasses.fields(locate(str(part["_target_"]))) if spec.init}
        assert set(map(str, part)) - {"_target_"} <= fields, part["_target_"]


def test_constants_read_through_another_constant_count() -> None:
    part = {"_target_": "x", "beta": "${method.scaled}"}
    assert unread_constants({"name": "m", "beta": 1, "scaled": "${method.beta}", "reward": part}) == []
    assert unread_constants({"name": "m", "beta": 1, "scaled": 2, "reward": part}) == ["beta"]
