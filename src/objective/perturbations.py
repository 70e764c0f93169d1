"""Perturbations: what a step does to the parameters besides the update.

Constants only: ``training/probe.py`` carries them out.
"""

from __future__ import annotations

from dataclasses import dataclass

from src.objective.types import Needs


@dataclass(frozen=True)
class NoPerturbation:
    """The parameters are only updated."""

    needs = Needs()
