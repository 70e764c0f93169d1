"""A Python that has imported everything before: jobs of the tests start in a blink instead of six seconds.

``python warm.py serve SOCKET`` imports and then forks for whoever asks; the program that ``client`` writes stands in
for the interpreter: it hands its arguments, environment and output over, passes signals on, and ends as the fork ends.

WARM_HOLD in the environment of a job, {"task 0, start 1": n} or {"rank 1, start 1": n}, holds that training of an
array, or that rank, when it looks for the n-th time whether to stop: it says HELD, and goes on when it is to stop.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

IMPORTED = (
    "torch.distributed.run", "deepspeed", "src.evaluation.ranking", "src.evaluation.ranks.measure",
    "src.generation.policy", "src.reporting.html", "src.resolved", "src.training.checks", "src.training.preparing",
)  # fmt: skip

HELD = "held until it is to stop"

CLIENT = """#!{python} -S
import contextlib, json, os, signal, socket, sys

link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
heeded = [signal.SIGTERM, signal.SIGUSR1]
ignored = [number for number in heeded if signal.getsignal(number) == signal.SIG_IGN]
said = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), ignored]).encode()
socket.send_fds(link, [len(said).to_bytes(4, "big")], [1, 2])
link.sendall(said)

def pass_on(number, frame):
    with contextlib.suppress(OSError):  # it has ended
        link.send(bytes([number]))

for number in heeded:
    signal.signal(number, pass_on)
sys.exit((link.recv(1) or b"\\x89")[0])
"""
"""Sends a byte for every signal; gets one, the exit code. 0x89: as one that was killed."""


def client(folder: Path) -> Path:
    """The stand-in for the interpreter of the server at ``folder``/socket."""
    path = folder / "python"
    path.write_text(CLIENT.format(python=sys.executable, address=str(folder / "socket")))
    path.chmod(0o755)
    return path


def serve(address: str) -> None:
    """Fork for every caller, until killed or left alone."""
    for name in IMPORTED:
        if importlib.util.find_spec(name):  # deepspeed is imported where it is installed
            importlib.import_module(name)
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(64)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever watches a fork reaps it
        while os.getppid() == parent:
            if not select.select([server], [], [], 1)[0]:
                continue
            link, _ = server.accept()
            if os.fork() == 0:
                server.close()
                watch(link)
            link.close()


def watch(link: socket.socket) -> None:
    """Fork once more for the work, pass signals on to it, and tell the caller its end; kill it when the caller is gone.

    The work is signalled by this process alone, and before this process reaps it: its number cannot be another's.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, outputs, _, _ = socket.recv_fds(link, 4, 2)
    said = b""
    while len(said) < int.from_bytes(size, "big"):
        part = link.recv(65536)
        if not part:  # killed as it spoke
            os._exit(1)
        said += part
    arguments, environment, place, ignored = json.loads(said)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        link.close()
        work(outputs, arguments, environment, place)
    ended = os.pidfd_open(child)
    while ended not in select.select([ended, link.fileno()], [], [])[0]:
        asked = link.recv(1)
        os.kill(child, asked[0] if asked else signal.SIGKILL)
        if not asked:
            break
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(OSError):
        link.send(bytes([code if code >= 0 else 128 - code]))
    os._exit(0)


def work(outputs: list[int], arguments: list[str], environment: dict[str, str], place: str) -> None:
    """Be ``python arguments`` of the caller."""
    for target, descriptor in zip((1, 2), outputs, strict=True):
        os.dup2(descriptor, target)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(place)
    hold(environment)
    arguments = [argument for argument in arguments if argument != "-u"]
    assert arguments[0] == "-m"
    sys.argv = arguments[1:]
    sys.modules.pop(arguments[1], None)  # imported, but not as a program
    code: object = 0
    try:
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        code = ending.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1 if code else 0)


def hold(environment: dict[str, str]) -> None:
    """Do as the module says of WARM_HOLD."""
    rank, task = environment.get("RANK"), environment.get("SLURM_ARRAY_TASK_ID")
    start = int(environment.get("SLURM_RESTART_COUNT", "0")) + 1
    wanted = json.loads(environment.get("WARM_HOLD", "{}"))
    last = wanted.get(f"task {task}, start {start}" if rank is None else f"rank {rank}, start {start}")
    if last is None:
        return
    from src.training.loop import StopFlag

    agreed, looks = StopFlag.agreed, count(1)

    def held(self: StopFlag, ranks: Any) -> bool:
        if next(looks) == last:
            print(HELD, flush=True)
            while self.signal is None and not any(path.exists() for path in self.files):
                time.sleep(0.1)
        return agreed(self, ranks)

    StopFlag.agreed = held  # type: ignore[method-assign]


if __name__ == "__main__":
    serve(sys.argv[2])
