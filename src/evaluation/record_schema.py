"""Records against their JSON schema (results/record.schema.json, draft 2020-12).

The keywords below are those that the schema uses; another one in the schema is an error of ours, never passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from src.errors import UserError

FILE = Path(__file__).resolve().parents[2] / "results" / "record.schema.json"

ANNOTATIONS = {"$schema", "$id", "$defs", "title", "description"}
KEYWORDS = {
    *("type", "required", "properties", "additionalProperties", "items", "minLength", "minimum", "minProperties"),
    *("pattern", "$ref", "if", "then"),
}
TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list, tuple),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
SPOKEN: Mapping[str, str] = {
    "object": "an object",
    "array": "a list",
    "string": "a string",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


@lru_cache(maxsize=1)
def record_schema() -> Mapping[str, Any]:
    """The schema of records."""
    found: Mapping[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def check(content: Any) -> None:
    """Raise ``UserError`` naming the first field at fault of what is no record (the reader adds the file)."""
    for problem in problems_of(content, record_schema(), record_schema(), ""):
        raise UserError(problem)


def problems_of(value: Any, schema: Mapping[str, Any], root: Mapping[str, Any], where: str) -> Iterator[str]:
    """What is wrong with ``value``, in words; ``where``: its field, dotted, "" for the whole."""
    if unknown := set(schema) - KEYWORDS - ANNOTATIONS:
        raise ValueError(f"{FILE} uses {', '.join(sorted(unknown))}, which are not checked")
    if "$ref" in schema:
        target = root
        for part in str(schema["$ref"]).removeprefix("#/").split("/"):
            target = target[part]
        yield from problems_of(value, target, root, where)
    if "type" in schema and not is_of(value, schema["type"]):
        yield f"{field(where)} must be {spoken(schema['type'])}, not {value!r:.40}"
        return
    if isinstance(value, dict):
        yield from problems_of_object(value, schema, root, where)
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from problems_of(item, schema.get("items", {}), root, f"{where}[{number}]")
    elif isinstance(value, str):
        if len(value) < schema.get("minLength", 0):
            yield f"{field(where)} must have at least {schema['minLength']} letters, not {value!r}"
        if "pattern" in schema and not re.search(schema["pattern"], value):
            yield f"{field(where)} must match {schema['pattern']}, which {value!r:.40} does not"
    elif isinstance(value, (int, float)) and value < schema.get("minimum", value):
        yield f"{field(where)} must be at least {schema['minimum']}, not {value}"
    if "if" in schema and not any(problems_of(value, schema["if"], root, where)):
        yield from problems_of(value, schema.get("then", {}), root, where)


def problems_of_object(
    value: Mapping[str, Any], schema: Mapping[str, Any], root: Mapping[str, Any], where: str
) -> Iterator[str]:
    """What is wrong with an object."""
    prefix = f"{where}." if where else ""
    for name in schema.get("required", ()):
        if name not in value:
            yield f"field '{prefix}{name}' is missing"
    if len(value) < schema.get("minProperties", 0):
        yield f"{field(where)} must not be empty"
    properties = schema.get("properties", {})
    for name, item in value.items():
        yield from problems_of(item, properties.get(name, schema.get("additionalProperties", {})), root, prefix + name)


def is_of(value: Any, types: str | list[str]) -> bool:
    """Whether a value is of one of the types; as in JSON, true is no number."""
    names = [types] if isinstance(types, str) else types
    return any(isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool)) for name in names)


def spoken(types: str | list[str]) -> str:
    """Types in words."""
    names = [types] if isinstance(types, str) else types
    return " or ".join(SPOKEN[name] for name in names)


def field(where: str) -> str:
    """A field in words."""
    return f"field '{where}'" if where else "the record"
