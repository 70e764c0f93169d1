"""How an entry point starts and ends: compose, run, and say mistakes in our own words."""

from __future__ import annotations

import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.config import CONF, SCHEMAS, STOPPED
from src.errors import UserError

BARE_GAMMA = (
    "'{key}' is ambiguous: papers use it for the margin in reward units and for its ratio to beta. "
    "Write method.gamma_beta_ratio=R for loss = -log sigmoid(beta * (d - R)); "
    "a margin G in reward units (as in TRL's simpo_gamma) is R = G / beta"
)


def entry_point(config_name: str, task: Callable[[DictConfig], int | None]) -> None:
    """Compose conf/<config_name>.yaml with the command line, run ``task`` on it, exit with the code it returns.

    A ``UserError`` and every mistake on the command line end with its message on standard error and exit code 2
    (or the error's own), without a traceback unless HYDRA_FULL_ERROR=1 or ``debug.traceback``.
    """
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra must raise instead of printing, so that we can translate
    register_schemas()
    codes: list[int] = []

    def guarded(config: DictConfig) -> None:
        # caught here, so that the other jobs of a sweep still run
        wanted = wants_traceback or bool(OmegaConf.select(config, "debug.traceback", default=False))
        try:
            code = task(config) or 0
        except (UserError, HydraException, OmegaConfBaseException) as error:
            code = tell(error, config_name, wanted)
        if code == STOPPED:
            sys.exit(code)
        codes.append(code)

    guarded.__module__ = "__main__"
    try:
        refuse_bare_gamma(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        codes.append(tell(error, config_name, wants_traceback))
    sys.exit(max(codes, default=0))


def tell(error: Exception, config_name: str, with_traceback: bool) -> int:
    """Print what went wrong on standard error; returns the exit code that goes with it."""
    if with_traceback:
        traceback.print_exception(error)
    print(f"error: {in_our_words(error, config_name)}", file=sys.stderr)
    return error.exit_code if isinstance(error, UserError) else 2


def register_schemas() -> None:
    """Make the typed schemas known to Hydra, so that defaults lists can name them."""
    store = ConfigStore.instance()
    for name, schema in SCHEMAS.items():
        store.store(name=f"{name}_schema", node=schema)


def refuse_bare_gamma(arguments: list[str]) -> None:
    """Raise ``UserError`` for ``method.gamma=`` and its relatives, with the conversion."""
    for argument in arguments:
        key = argument.split("=", 1)[0].lstrip("+~")
        if key in ("gamma", "method.gamma", "simpo_gamma", "method.simpo_gamma", "gamma_abs", "method.gamma_abs"):
            raise UserError(BARE_GAMMA.format(key=key))


def in_our_words(error: BaseException, config_name: str) -> str:
    """The message for the user of an error of ours, of Hydra or of OmegaConf."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    cause = str(error.__cause__ or "")
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(match.group(1), config_name)
    if match := re.search(r"Could not find '([^'/]+)/([^']+)'", text):
        return unknown_option(match.group(1), match.group(2))
    if match := re.search(r"Key '([^']+)' (?:is )?not in '(\w+)'.*?full_key: (\S+)", text + cause, re.DOTALL):
        return unknown_key(match.group(3), config_name)
    if match := re.search(r"merging override (\S+?)=(.*)", text):
        return f"{match.group(1)}={match.group(2)} has the wrong type: {first_line(cause)}"
    return first_line(text) + (f" ({first_line(cause)})" if cause and first_line(cause) not in text else "")


def first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]


def unknown_key(key: str, config_name: str) -> str:
    """What is wrong with a key that the configuration does not have, and which ones it has there."""
    if key.split(".")[-1] in ("gamma", "gamma_abs", "simpo_gamma"):
        return BARE_GAMMA.format(key=key)
    parent, _, leaf = key.rpartition(".")
    known = known_keys(parent, config_name)
    close = difflib.get_close_matches(leaf, known, n=1)
    prefix = f"{parent}." if parent else ""
    hint = f"; did you mean {prefix}{close[0]}?" if close else ""
    listing = f" Keys of {parent or 'the configuration'}: {', '.join(known)}" if known else ""
    return f"unknown key {key}{hint}{listing}"


def known_keys(parent: str, config_name: str) -> list[str]:
    """Keys below ``parent`` under the groups chosen on the command line ([] when that does not compose)."""
    groups = [a for a in sys.argv[1:] if re.fullmatch(r"[a-z]+=[a-z0-9_]+", a) and (CONF / a.split("=")[0]).is_dir()]
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose(config_name, overrides=groups)
            node = OmegaConf.select(config, parent) if parent else config
    except (HydraException, OmegaConfBaseException):
        return []
    return sorted(map(str, node)) if isinstance(node, DictConfig) else []


def unknown_option(group: str, option: str) -> str:
    """What is wrong with a choice that a group does not have, and which ones it has."""
    options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    close = difflib.get_close_matches(option, options, n=1)
    hint = f"; did you mean {group}={close[0]}?" if close else ""
    return f"{group}={option} does not exist{hint} Choose one of: {', '.join(options)}"
