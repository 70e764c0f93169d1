"""Content-addressed folders: built once, aside, then renamed, so a folder that is there is complete.

And what such files need: a hash of plain data for their names, and the wait until they are on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from src.errors import UserError


def build_once(folder: Path, build: Callable[[Path], None]) -> bool:
    """Make ``folder`` by ``build(empty folder)`` unless it is there; True when it was built now.

    Several processes may ask at once: one builds, the others wait. A failed build leaves nothing behind, a killed one
    what the next removes. Raises ``UserError`` when the place cannot be written.
    """
    if folder.is_dir():
        return False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.parent, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise UserError(
            f"the cache folder {folder.parent} cannot be written ({error.strerror}); set cache_root to a folder you own"
        ) from error
    with FileLock(f"{folder}.lock"):
        if folder.is_dir():
            return False
        for left in folder.parent.glob(f".{folder.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            build(aside)
            aside.chmod(0o777 & ~current_umask())
            sync_tree(aside)
            aside.rename(folder)
            sync(folder.parent)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
    return True


def keep_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; where it cannot be written, do without: what it says can be found again."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):
        aside.write_text(text, encoding="ascii")
        os.replace(aside, path)


def sync(path: Path) -> None:
    """Wait until a file, or the list of a folder's files, is on the disk, so that it outlives the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """The same for every file below ``folder``, and the folders."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def json_hash(value: Any) -> str:
    """Hex SHA-256 of plain data, whatever the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def current_umask() -> int:
    """The process's umask (readable only by setting it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
