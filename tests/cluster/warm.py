"""A Python that has imported everything before: jobs of the tests start in a blink instead of six seconds.

``python warm.py serve SOCKET`` imports and then forks for whoever asks; the program that ``client`` writes stands in
for the interpreter: it hands its arguments, environment and output over, passes signals on, and ends as the fork ends.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path

IMPORTED = (
    "torch.distributed.run", "deepspeed", "src.evaluation.ranking", "src.evaluation.ranks.measure",
    "src.generation.policy", "src.reporting.html", "src.resolved", "src.training.checks", "src.training.preparing",
)  # fmt: skip

CLIENT = """#!{python} -S
import json, os, signal, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
said = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(link, [len(said).to_bytes(4, "big")], [1, 2])
link.sendall(said)
child = int(link.recv(16))
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: os.kill(child, number))
sys.exit(int(link.recv(16) or 137))
"""


def client(folder: Path) -> Path:
    """The stand-in for the interpreter of the server at ``folder``/socket."""
    path = folder / "python"
    path.write_text(CLIENT.format(python=sys.executable, address=str(folder / "socket")))
    path.chmod(0o755)
    return path


def serve(address: str) -> None:
    """Fork for every caller, until killed."""
    for name in IMPORTED:
        if importlib.util.find_spec(name):  # deepspeed is imported where it is installed
            importlib.import_module(name)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(64)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whoever watches a fork reaps it
        while True:
            link, _ = server.accept()
            if os.fork() == 0:
                server.close()
                watch(link)
            link.close()


def watch(link: socket.socket) -> None:
    """Fork once more for the work, and tell the caller its process and its end; kill it when the caller is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, outputs, _, _ = socket.recv_fds(link, 4, 2)
    said = b""
    while len(said) < int.from_bytes(size, "big"):
        said += link.recv(65536)
    child = os.fork()
    if child == 0:
        work(outputs, *json.loads(said))
    link.sendall(str(child).encode().ljust(16))
    if os.fork() == 0:  # ends when the caller's side closes
        for descriptor in outputs:
            os.close(descriptor)
        if not link.recv(1):
            os.kill(child, signal.SIGKILL)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    link.sendall(str(code if code >= 0 else 128 - code).encode())
    os._exit(0)


def work(outputs: list[int], arguments: list[str], environment: dict[str, str], place: str) -> None:
    """Be ``python arguments`` of the caller."""
    for target, descriptor in zip((1, 2), outputs, strict=True):
        os.dup2(descriptor, target)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(place)
    for number in (signal.SIGTERM, signal.SIGUSR1):  # as slurm/common.sh starts a training
        signal.signal(number, signal.SIG_IGN)
    arguments = [argument for argument in arguments if argument != "-u"]
    assert arguments[0] == "-m"
    sys.argv = arguments[1:]
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


if __name__ == "__main__":
    serve(sys.argv[2])
