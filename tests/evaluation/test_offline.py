"""Local files need no network, installed packages stay as they are, and standard output holds results alone."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.entry import call
from tests.evaluation.stored_files import STORED
from tests.evaluation.toy_runs import JUDGED, module, result, results, toy
from tests.unit.generation_tools import tiny_model

PACKAGES = ("alpaca_eval", "lm_eval")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every way out of this machine fails, and is noted. The hub is not told to be offline: it must not be asked."""
    attempts: list[str] = []
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def is_local(host: Any) -> bool:
        if host in (None, "", "localhost", b"localhost"):
            return True
        try:
            return ipaddress.ip_address(str(host)).is_loopback
        except ValueError:
            return False

    def guarded(name: str) -> None:
        original = getattr(socket.socket, name)

        def connect(self: socket.socket, address: Any) -> Any:
            if self.family != socket.AF_UNIX and not is_local(address[0]):
                attempts.append(f"{name} {address}")
                raise OSError(101, "no network in this test")
            return original(self, address)

        monkeypatch.setattr(socket.socket, name, connect)

    guarded("connect")
    guarded("connect_ex")
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **settings: Any) -> Any:
        if not is_local(host):
            attempts.append(f"getaddrinfo {host}")
            raise socket.gaierror(-2, "no network in this test")
        return look_up(host, *rest, **settings)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return attempts


def snapshot() -> dict[str, tuple[int, int]]:
    """Size and time of every file of the benchmarks' packages, and the names beside them; compiled files apart."""
    found = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec
        assert spec.origin
        folder = Path(spec.origin).parent
        found |= {str(path): (0, 0) for path in folder.parent.iterdir()}
        for root, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if name != "__pycache__"]
            for file in files:
                state = os.stat(os.path.join(root, file))
                found[os.path.join(root, file)] = (state.st_size, state.st_mtime_ns)
    assert len(found) > 1000
    return found


@pytest.mark.parametrize("benchmark", STORED)
def test_stored_files_are_scored_in_place(benchmark: str, tmp_path: Path, no_network: list[str]) -> None:
    files = STORED[benchmark](tmp_path)
    given = set(tmp_path.iterdir())
    names = ("output_root", "records_root") if benchmark == "ranking" else ("output_root", "records_root", "cache_root")
    roots = [f"{name}={tmp_path / name}" for name in names]
    before = snapshot()
    outcome = call(module(benchmark), "stage=score", *files, "output=json", *roots)
    assert outcome.code == 0, outcome.err
    for found in results(outcome.out):
        assert found["benchmark"] == benchmark
        assert {"model", "judge", "counts", "notes"} <= set(found)
    assert no_network == []
    assert snapshot() == before
    assert set(tmp_path.iterdir()) - given <= {tmp_path / "cache_root"}, "no record, no answers, no judgments"


@pytest.mark.parametrize("benchmark", JUDGED)
def test_a_whole_evaluation_stays_on_this_machine(benchmark: str, tmp_path: Path, no_network: list[str]) -> None:
    """Model, judge and files are here: nothing else is reached for, and all that is written is below the roots."""
    settings = (f"checkpoint={tiny_model(4096)}", "judge=oracle", "decoding.max_new_tokens=8", "generator.device=cpu")
    before = snapshot()
    here = set(Path.cwd().iterdir())
    outcome = call(module(benchmark), *toy(tmp_path, *settings))
    assert outcome.code == 0, outcome.err
    assert result(outcome.out)["judge"] == "oracle"
    assert no_network == []
    assert snapshot() == before
    assert set(Path.cwd().iterdir()) == here


def test_every_entry_point_is_walked() -> None:
    folder = Path(__file__).resolve().parents[2] / "src" / "evaluation"
    programs = {path.stem for path in folder.glob("*.py") if 'entry_point("' in path.read_text()}
    assert programs - {"curvature"} == set(STORED)  # which scores no stored file


def test_the_guard_sees_who_goes_out(no_network: list[str]) -> None:
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(OSError, match="no network"):
        socket.getaddrinfo("example.org", 443)
    assert no_network == ["getaddrinfo 192.0.2.1", "getaddrinfo example.org"]
