"""From a configuration node with a `_target_` to the object it names, with mistakes said before anything is built.

`_target_` is the registry: a new part, source or noise is a frozen dataclass and a YAML, listed nowhere else.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union

from src.errors import Problems, UserError


def build(node: Mapping[str, Any], where: str) -> Any:
    """The object that ``node`` describes; ``where`` is its key, for messages.

    Raises ``Problems`` for an unknown target, unknown, missing or ill-typed keys, and passes on the ``UserError``
    of a constructor that refuses a value.
    """
    problems = problems_of_node(node, where)
    if problems:
        raise Problems(problems)
    arguments = {str(key): plain(value) for key, value in node.items() if key != "_target_"}
    try:
        return locate(str(node["_target_"]))(**arguments)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def plain(value: Any) -> Any:
    """Configuration containers as tuples and dicts, so that frozen dataclasses stay hashable."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        return value
    return tuple(plain(item) for item in value)


def locate(path: str) -> type[Any]:
    """The dataclass at a dotted ``path``; raises ``UserError`` when there is none."""
    module_name, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"_target_={path} cannot be imported ({error}); give module.Class") from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UserError(f"_target_={path} is not a dataclass, so its keys cannot be checked; give one")
    return found


def problems_of_node(node: Mapping[str, Any], where: str) -> list[str]:
    """Why ``node`` cannot be built, as sentences; [] when it can."""
    if "_target_" not in node:
        return [f"{where} names no _target_, so nothing can be built from {dict(node)}"]
    try:
        target = locate(str(node["_target_"]))
    except UserError as error:
        return [f"{where}: {error}"]
    known = {spec.name: spec for spec in dataclasses.fields(target) if spec.init}
    hints = typing.get_type_hints(target)
    problems = []
    for key, value in node.items():
        name = str(key)
        if name == "_target_":
            continue
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {where}.{close[0]}?" if close else ""
            problems.append(f"{where}.{name} is not read by {target.__name__} (it reads: {', '.join(known)}){hint}")
        elif not fits(plain(value), hints[name]):
            problems.append(
                f"{where}.{name}={value!r} has the wrong type; {target.__name__} wants {spoken(hints[name])}"
            )
    for name, spec in known.items():
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and name not in node:
            problems.append(f"{where}.{name} is missing; {target.__name__} wants {spoken(hints[name])}")
    return problems


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain configuration value is of the annotated type; an int passes for a float, a bool for neither."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (tuple, list):
        return isinstance(value, tuple) and all(fits(item, arguments[0]) for item in value)
    return isinstance(value, origin or hint)


def spoken(hint: Any) -> str:
    """A type annotation in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(spoken(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(str(argument) for argument in arguments)
    names = {float: "a number", int: "a whole number", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(hint, str(getattr(hint, "__name__", hint)))
