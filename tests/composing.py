"""Composing is what tests do most: Hydra and OmegaConf keep what they read and parsed, which takes them half the time.

Every composition still goes through Hydra, with its own defaults list, merges, overrides and interpolations. Kept are
the answers of functions that depend on their arguments and files alone; whoever asks again gets a copy of his own.
tests/config/test_compose.py holds the outcome against Hydra's as it is.
"""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest import mock

from hydra._internal import defaults_list
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra.core.config_store import ConfigStore
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.plugins.config_source import ConfigSource
from omegaconf import DictConfig, _utils, base, grammar_parser

read = ConfigRepository.load_config
parse_override = OverridesParser.parse_rule
parse_interpolation = grammar_parser.parse
choices = defaults_list._create_interpolation_map

KEPT: dict[Any, bytes] = {}
"""Configurations that were read; pickled, which is the quickest way to a copy."""


def version(source: ConfigSource, name: str) -> Any:
    """What tells a configuration from a later one in the same place."""
    if source.scheme() == "structured":
        return id(ConfigStore.instance()._load(source._normalize_file_name(name)))
    if source.scheme() != "file":
        return None
    found = os.stat(os.path.join(source.path, source._normalize_file_name(name)))
    return found.st_mtime_ns, found.st_size, found.st_ino


def load_config(self: ConfigRepository, config_path: str) -> Any:
    """A file is read once, and again once it has changed."""
    source = self._find_object_source(config_path, ObjectType.CONFIG)
    if source is None:
        return None
    key = (type(source), source.provider, source.path, config_path, version(source, config_path))
    if key not in KEPT:
        KEPT[key] = pickle.dumps(read(self, config_path))
    return pickle.loads(KEPT[key])


def with_delegate(self: CachingConfigRepository, delegate: Any) -> None:
    """Hydra copies all of the delegate; its list of sources may be replaced, but never changes."""
    self.delegate, self.cache = copy.copy(delegate), {}


@cache
def parsed_override(text: str, rule: str) -> bytes:
    return pickle.dumps(parse_override(OverridesParser.create(), text, rule))


def parse_rule(self: OverridesParser, text: str, rule: str) -> Any:
    return pickle.loads(parsed_override(text, rule))


def choices_where_needed(overrides: Any, entries: list[Any], self_added: bool) -> DictConfig:
    """What was chosen so far, which only a default with an interpolation in it looks up."""
    needed = any("${" in str(entry.get_name()) for entry in entries)
    return choices(overrides, entries, self_added) if needed else DictConfig({})


QUICKER = [
    (ConfigRepository, "load_config", load_config),
    (CachingConfigRepository, "__init__", with_delegate),
    (OverridesParser, "parse_rule", parse_rule),
    (defaults_list, "_create_interpolation_map", choices_where_needed),
    *((module, "parse", cache(parse_interpolation)) for module in (grammar_parser, base, _utils)),
]
ORIGINAL = [(owner, name, getattr(owner, name)) for owner, name, _ in QUICKER]


def compose_quickly() -> None:
    """For the rest of this process."""
    for owner, name, quicker in QUICKER:
        setattr(owner, name, quicker)


@contextlib.contextmanager
def as_hydra_does() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for owner, name, original in ORIGINAL:
            stack.enter_context(mock.patch.object(owner, name, original))
        yield
