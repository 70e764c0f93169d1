"""What a result was made with: commit and versions."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "accelerate", "peft", "numpy", "hydra-core")


def environment() -> dict[str, Any]:
    """Commit, whether tracked files differ from it, and the versions that matter; None for what is not known
    (``commit_reason``: why there is no commit)."""
    found: dict[str, Any] = {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    if found["commit"] is None:
        found["commit_reason"] = f"{ROOT} is no git checkout, or there is no git to ask"
    else:
        found["dirty"] = _git("status", "--porcelain", "--untracked-files=no") != ""
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def _git(*arguments: str) -> str | None:
    """Output of git in our own checkout; None without git, or where the code lies outside its own repository."""
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
