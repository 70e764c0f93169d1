"""Reaching the Hugging Face hub, or saying within seconds that it cannot be reached."""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

from src.errors import UserError

PROBE_SECONDS = 3.0
Result = TypeVar("Result")


def hub_reachable(timeout: float = PROBE_SECONDS) -> bool:
    """Whether the hub answers at all within ``timeout`` seconds.

    The hub libraries retry for a minute before they give up, so we ask once ourselves beforehand.
    Proxies and ``HF_ENDPOINT`` are honoured; ``HF_HUB_OFFLINE`` counts as unreachable.
    """
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    request = urllib.request.Request(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=timeout):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        # an answer whose certificate only the hub library knows how to check
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False


@contextmanager
def offline() -> Iterator[None]:
    """Keep the hub libraries to their local cache while inside."""
    import datasets.config
    import huggingface_hub.constants

    switches: list[Any] = [huggingface_hub.constants, datasets.config]
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    for switch in switches:
        switch.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value


def load_hub_dataset(hub_id: str, *, split: str, revision: str | None = None, data_dir: str | None = None) -> Any:
    """A ``datasets.Dataset`` from the hub, or from the hub library's cache when there is no network.

    Raises ``UserError`` within seconds when it is in neither, naming ``dataset.source.path``.
    """
    import datasets

    def load(cached_only: bool) -> Any:
        with offline() if cached_only else nullcontext():
            return datasets.load_dataset(hub_id, data_dir=data_dir, split=split, revision=revision)

    return from_hub(load, f"dataset '{hub_id}'", "set dataset.source.path to a local copy")


def from_hub(load: Callable[[bool], Result], what: str, remedy: str, *, local_only: bool = False) -> Result:
    """``load(cached_only)``: from the hub when it answers, else from the hub library's cache alone.

    Raises ``UserError`` in place of whatever ``load`` raises, ending in ``remedy``.
    """
    cached_only = local_only or not hub_reachable()
    try:
        return load(cached_only)
    except Exception as error:
        if cached_only:
            why = "downloads are switched off" if local_only else "the hub cannot be reached from this machine"
            raise UserError(f"{what}: {why}, and it is not in the local hub cache; {remedy}") from error
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{what} could not be loaded from the hub ({lines[0]}); check the name, or {remedy}") from error
