"""How an entry point starts and ends: compose, run, and say mistakes in our own words."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import os
import re
import shutil
import string
import sys
import traceback
from collections.abc import Callable
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.build import locate
from src.config import CONF, SCHEMAS, STOPPED, register_schema
from src.errors import UserError
from src.schema import TrainKeys

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
    if {"--help", "-h"} & set(sys.argv[1:]):
        print_as_far_as_read(help_text(config_name))
        sys.exit(0)
    codes: list[int] = []

    def guarded(config: DictConfig) -> None:
        # caught here, so that the other jobs of a sweep still run
        wanted = wants_traceback or bool(OmegaConf.select(config, "debug.traceback", default=False))
        try:
            refuse_unknown_keys(config, config_name)
            code = task(config) or 0
        except (UserError, HydraException, OmegaConfBaseException) as error:
            code = tell(error, config_name, wanted)
        except Exception:
            traceback.print_exc()
            print("error: the program failed; the traceback above says where", file=sys.stderr)
            code = 1
        if code == STOPPED:
            sys.exit(code)
        if code and "SUBMITIT_EXECUTOR" in os.environ:  # a list of codes is not carried back from another node
            raise UserError(f"a run of the sweep failed, see its log: {' '.join(HydraConfig.get().overrides.task)}")
        codes.append(code)

    guarded.__module__ = "__main__"
    try:
        refuse_bare_gamma(sys.argv[1:])
        refuse_group_without_name(sys.argv[1:])
        refuse_cluster_without_means(sys.argv[1:])
        if config_name == "train":
            refuse_sweep_of_one(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(guarded)()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        codes.append(tell(error, config_name, wants_traceback))
    except RuntimeError as error:
        if not type(error).__module__.startswith("submitit."):
            raise
        told = UserError(f"SLURM did not take or finish the sweep: {first_line(str(error))}")
        codes.append(tell(told, config_name, wants_traceback))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        codes.append(130)
    sys.exit(max(codes, default=0))


def print_as_far_as_read(text: str) -> None:
    """Print to a reader who may stop early (``--help | head``)."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(error: Exception, config_name: str, with_traceback: bool) -> int:
    """Print what went wrong on standard error; returns the exit code that goes with it."""
    if with_traceback:
        traceback.print_exception(error)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the others of a machine say the same
        print(f"error: {in_our_words(error, config_name)}", file=sys.stderr)
    return error.exit_code if isinstance(error, UserError) else 2


def register_schemas() -> None:
    """Make the typed schemas known to Hydra, so that defaults lists can name them."""
    for name in SCHEMAS:
        register_schema(name)


def refuse_bare_gamma(arguments: list[str]) -> None:
    """Raise ``UserError`` for ``method.gamma=`` and its relatives, with the conversion."""
    for argument in arguments:
        key = argument.split("=", 1)[0].lstrip("+~")
        if key in ("gamma", "method.gamma", "simpo_gamma", "method.simpo_gamma", "gamma_abs", "method.gamma_abs"):
            raise UserError(BARE_GAMMA.format(key=key))


def refuse_unknown_keys(config: DictConfig, config_name: str) -> None:
    """Raise ``UserError`` for a key that ``+key=...`` added beside those of a training: nothing would read it."""
    schema = SCHEMAS[config_name]
    if issubclass(schema, TrainKeys):
        known = {spec.name for spec in dataclasses.fields(schema)}
        for key in config:
            if key not in known:
                raise UserError(unknown_key(str(key), config_name))


def refuse_group_without_name(arguments: list[str]) -> None:
    """Raise ``UserError`` for ``model=null``, ``~model`` and the like, of which Hydra says nothing helpful."""
    for argument in arguments:
        key, _, option = argument.partition("=")
        group = key.split("@")[0]
        if argument in ("~model", "~method"):
            raise UserError(f"{argument} leaves the run without a {key[1:]}; choose one: {key[1:]}=NAME")
        if key != argument and re.fullmatch(r"null|true|false|[\d.]*|\[.*", option) and (CONF / group).is_dir():
            remedy = "; to compose without a recipe, write ~recipe" if group == "recipe" else ""
            raise UserError(
                f"{argument} is no choice of {group}; choose one of: {', '.join(options_of(group))}{remedy}"
            )


def refuse_sweep_of_one(arguments: list[str]) -> None:
    """Raise ``UserError`` for a sweep without ``-m``: Hydra would run the defaults once and sweep nothing."""
    names = [name for argument in arguments if (name := argument.removeprefix("sweep=")) not in (argument, "none")]
    if names and not {"-m", "--multirun"} & set(arguments) and {"--cfg", "-c", "--info", "-i"}.isdisjoint(arguments):
        raise UserError(f"sweep={names[-1]} gives many runs; add -m to run each of them: -m {' '.join(arguments)}")


def refuse_cluster_without_means(arguments: list[str]) -> None:
    """Raise ``UserError`` for ``hydra/launcher=slurm`` where it would start nothing, or end its tasks at once."""
    if not {"hydra/launcher=slurm", "hydra/launcher=submitit_slurm"} & set(arguments):
        return
    instead = "; without it: python -m src.submit writes and submits an sbatch array"
    if not {"-m", "--multirun"} & set(arguments):
        raise UserError(f"hydra/launcher=slurm starts the runs of a sweep; add -m: -m {' '.join(arguments)}")
    if importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None:
        raise UserError(
            "hydra/launcher=slurm needs the package hydra-submitit-launcher, which is not installed; install it by "
            f"pip install -r requirements/cluster.txt{instead}"
        )
    if shutil.which("sbatch") is None:
        raise UserError(
            "hydra/launcher=slurm needs SLURM's commands, but there is no sbatch on PATH; run it on a login node"
        )
    loaded = OmegaConf.load(CONF / "hydra" / "launcher" / "slurm.yaml")
    given = OmegaConf.from_dotlist([a for a in arguments if a.startswith("hydra.launcher.")])
    settings = OmegaConf.merge(loaded, OmegaConf.select(given, "hydra.launcher", default={}))
    minutes, delay = float(settings.timeout_min), float(settings.signal_delay_s)
    if minutes * 60 < delay + 60:
        raise UserError(
            f"hydra.launcher.timeout_min={minutes:g} is no longer than hydra.launcher.signal_delay_s={delay:g} and the "
            "minute by which SLURM may be early, so every task would be told to stop as it starts; give "
            f"hydra.launcher.timeout_min={math.ceil((delay + 120) / 60)} or more, or a smaller signal_delay_s"
        )


def help_text(config_name: str) -> str:
    """What --help prints, without composing (Hydra composes every option of every group first, which takes seconds).

    The template is ``hydra.help.template`` of conf/<config_name>.yaml; $CONFIG stands for that file's keys.
    """
    path = CONF / f"{config_name}.yaml"
    loaded = cast(DictConfig, OmegaConf.load(path))
    entries = [str(key) for entry in loaded.defaults if isinstance(entry, DictConfig) for key in entry]
    groups = [
        entry.removeprefix("optional ") for entry in entries if not entry.startswith(("override ", "optional local"))
    ]
    shared = [CONF / f"{entry}.yaml" for entry in loaded.defaults if str(entry).startswith("evaluation/")]
    texts = [file.read_text(encoding="utf-8").split("\nhydra:", 1)[0] for file in shared]
    keys = path.read_text(encoding="utf-8").split("\nhydra:", 1)[0].split("\n\n", 1)[1]
    keys = "\n".join([keys.rstrip(), *(text.split("\n", 2)[2].rstrip() for text in texts)])
    listing = "".join(f"{group}: {summary_of(group.split('@')[0])}\n" for group in groups)
    return string.Template(loaded.hydra.help.template).substitute(APP_CONFIG_GROUPS=listing, CONFIG=keys.rstrip())


def summary_of(group: str) -> str:
    """The choices of a group as --help shows them; recipes are too many, and named by what they are of."""
    options = options_of(group)
    return f"<method>__<model>, taken where there is one ({len(options)})" if group == "recipe" else ", ".join(options)


def options_of(group: str) -> list[str]:
    """The choices of a group."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def in_our_words(error: BaseException, config_name: str) -> str:
    """The message for the user of an error of ours, of Hydra or of OmegaConf."""
    if isinstance(error, UserError):
        return str(error)
    text = str(error)
    cause = str(error.__cause__ or "")
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} cannot be read; write key=value, and a value with special characters in quotes: "
            "'key=\"a = b\"'"
        )
    if match := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        key, values = match.groups()
        return (
            f"{key}={values} gives several values: add -m to run each of them, or write '{key}=[{values}]' for a list"
        )
    if match := re.search(r"^(\S+) appears more than once", text):
        return f"{match.group(1)} is chosen twice; write {match.group(1)}=NAME once, without a +"
    if match := re.search(r"An item is already at '([^']+)'", text):
        given = next((a.lstrip("+") for a in sys.argv[1:] if a.startswith(f"+{match.group(1)}=")), match.group(1))
        return f"{match.group(1)} exists already; write {given} without a +"
    if match := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(match.group(1), config_name)
    if match := re.search(r"Could not find '([^'/]+)/([^']+)'", text):
        return unknown_option(match.group(1), match.group(2))
    if match := re.search(r"Key '([^']+)' (?:is )?not in '(\w+)'.*?full_key: (\S+)", text + cause, re.DOTALL):
        return unknown_key(match.group(3), config_name)
    if match := re.search(r"merging override (\S+?)=(.*)", text):
        return f"{match.group(1)}={match.group(2)} has the wrong type; {wanted_type(cause)}"
    return first_line(text) + (f" ({first_line(cause)})" if cause and first_line(cause) not in text else "")


def wanted_type(cause: str) -> str:
    """What OmegaConf wanted instead, from its complaint."""
    wishes = {
        "to Float": "give a number",
        "to Integer": "give a whole number",
        "valid bool": "give true or false",
        "to string": "give a text",
        "not Optional": "it cannot be null, give a value",
        "is not a subclass of": "it is a section, so set a key of it",
    }
    return next((wish for complaint, wish in wishes.items() if complaint in cause), first_line(cause))


def first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]


def unknown_key(key: str, config_name: str) -> str:
    """What is wrong with a key that the configuration does not have, and which ones it has there."""
    if key.split(".")[-1] in ("gamma", "gamma_abs", "simpo_gamma"):
        return BARE_GAMMA.format(key=key)
    parent, leaf, known = where_it_ends(key, config_name)
    prefix = f"{parent}." if parent else ""
    if leaf in known:  # a field of the class that the YAML leaves at its default
        return f"unknown key {key}: {prefix}{leaf} is not written out in conf/, so write +{key}=... to set it"
    close = difflib.get_close_matches(leaf, known, n=1)
    rest = key.removeprefix(prefix + leaf)
    hint = f"; did you mean {known[close[0]]}{prefix}{close[0]}{rest}?" if close else "."
    listing = f" Keys of {parent or 'the configuration'}: {', '.join(sorted(known))}" if known else ""
    return f"unknown key {key}{hint}{listing}"


def where_it_ends(key: str, config_name: str) -> tuple[str, str, dict[str, str]]:
    """The last node that exists on the way to ``key``, the part that it lacks, and the keys that it has.

    A key that is a field of the node's ``_target_`` alone is marked "+", as Hydra wants it written.
    """
    node = chosen_groups(config_name)
    parts = key.split(".")
    for depth, part in enumerate(parts):
        known = {str(name): "" for name in node} if isinstance(node, DictConfig) else {}
        if "_target_" in known:
            known = dict.fromkeys(field_names(str(node["_target_"])), "+") | known
        if part not in known or known[part] or depth == len(parts) - 1:
            break
        node = node[part]
    return ".".join(parts[:depth]), part, known


def field_names(target: str) -> list[str]:
    """Fields of the dataclass at a dotted path ([] where there is none)."""
    try:
        return [spec.name for spec in dataclasses.fields(locate(target)) if spec.init]
    except UserError:
        return []


def chosen_groups(config_name: str) -> Any:
    """The configuration under the groups chosen on the command line alone; {} when that does not compose."""
    choices = [a for a in sys.argv[1:] if re.fullmatch(r"[a-z]+(@[a-z]+)?=[a-z0-9_]+", a)]
    groups = [choice for choice in choices if (CONF / re.split("[@=]", choice)[0]).is_dir()]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose(config_name, overrides=groups)
    except (HydraException, OmegaConfBaseException):
        return {}


def unknown_option(group: str, option: str) -> str:
    """What is wrong with a choice that a group does not have, and which ones it has."""
    options = options_of(group)
    close = difflib.get_close_matches(option, options, n=1)
    hint = f"; did you mean {group}={close[0]}?" if close else "."
    return f"{group}={option} does not exist{hint} Choose one of: {', '.join(options)}"
