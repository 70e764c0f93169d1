"""Parts taken from other methods: `method=dpo parts.target=amapo parts.weight=gappo`.

The part comes with the constants it reads. Constants of the same name are shared (AMaPO's target on DPO's reward uses
DPO's beta); those that the method lacks keep the donor's value, and are set with `+method.NAME=...`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from src.combinations import constants_of, constants_read_by, unread_constants
from src.config import CONF, composed_train
from src.errors import UserError


def with_parts(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """``config`` with the parts of its method that ``parts`` names replaced; ``parts`` is empty afterwards.

    ``overrides``: what the command line set, so that a constant which no part reads any more is refused if it was
    given, and dropped if it was not. Raises ``UserError`` for an unknown slot or method, or a method without the part.
    """
    chosen = {str(slot): name for slot, name in (config.get("parts") or {}).items() if name is not None}
    if not chosen or OmegaConf.is_missing(config, "method"):
        return config
    method = cast(dict[str, Any], OmegaConf.to_container(config.method, resolve=False))
    idle = unread_constants(method)
    for slot, donor in chosen.items():
        graft(method, slot, str(donor))
    for name in set(unread_constants(method)) - set(idle):
        refuse_idle(name, chosen, overrides)
        del method[name]
    changed = config.copy()
    OmegaConf.set_struct(changed, False)
    changed.method, changed.parts = OmegaConf.create(method), OmegaConf.create(dict.fromkeys(config.parts))
    return changed


def graft(method: dict[str, Any], slot: str, donor: str) -> None:
    """Put ``donor``'s part into ``slot`` of ``method``, with the constants it reads."""
    known = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
    if donor not in known:
        close = difflib.get_close_matches(donor, known, n=1)
        hint = f"; did you mean parts.{slot}={close[0]}?" if close else ""
        raise UserError(f"parts.{slot}={donor}: there is no such method{hint} Choose one of: {', '.join(known)}")
    source = OmegaConf.to_container(composed_train([f"method={donor}", "~recipe"]).method, resolve=False)
    assert isinstance(source, dict)
    if slot not in source:
        raise UserError(f"parts.{slot}={donor}: method={donor} has no {slot} of its own; leave parts.{slot} out")
    method[slot] = source[slot]
    read = constants_read_by(source, source[slot])
    method |= {name: source[name] for name in constants_of(source) if name in read and name not in method}
    method["name"] = f"{method['name']}-{slot}_{donor}"


def refuse_idle(name: str, chosen: dict[str, str], overrides: Sequence[str]) -> None:
    """Raise ``UserError`` when the command line sets a constant that only a replaced part would have read."""
    if any(override.lstrip("+").startswith(f"method.{name}=") for override in overrides):
        taken = ", ".join(f"parts.{slot}={donor}" for slot, donor in chosen.items())
        raise UserError(f"method.{name} is given, but with {taken} no part reads it any more; leave one of them out")


def given_overrides() -> list[str]:
    """What the command line of this job set; [] outside of Hydra's main."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
