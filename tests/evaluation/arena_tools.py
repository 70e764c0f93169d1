"""Arena-Hard's program without a command line: composed once, then called with other keys, which is quick."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from src.cli import register_schemas
from src.config import CONF
from src.errors import UserError
from src.evaluation.arena_hard import main

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "arena_hard"
needs_data = pytest.mark.skipif(not SHARED.exists(), reason="the published Arena-Hard files are not here")


@cache
def composed(*groups: str) -> DictConfig:
    """conf/arena_hard.yaml with the groups chosen."""
    GlobalHydra.instance().clear()
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("arena_hard", overrides=list(groups))


def printed(*overrides: str, groups: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The objects that the program prints; raises what it refuses."""
    dotted = OmegaConf.from_dotlist(["output=json", *overrides])
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(cast(DictConfig, OmegaConf.merge(composed(*groups), dotted))) == 0
    return [json.loads(line) for line in out.getvalue().splitlines()]


def scored(*overrides: str) -> list[dict[str, Any]]:
    """Those of stage=score."""
    return printed("stage=score", *overrides)


def complaint(*overrides: str, groups: Sequence[str] = ()) -> str:
    """What the program says in refusing."""
    with pytest.raises(UserError) as found:
        printed(*overrides, groups=groups)
    return str(found.value)


def written(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
