"""A Python that has imported everything before: jobs of the tests start in a blink instead of six seconds.

``python warm.py serve SOCKET`` imports and then forks for whoever asks; the program that ``client`` writes stands in
for the interpreter: it hands its arguments, environment and output over, passes signals on, and ends as the fork ends.

WARM_PAUSES in the environment ({index in its array or "" for any other: [seconds, ...]}) makes the n-th start of a
training sleep so long at every step, which costs no processor; WARM_PIDS is a folder in which every fork leaves its
process id.
"""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

IMPORTED = (
    "torch.distributed.run", "torch.optim.adamw", "deepspeed", "alpaca_eval", "openai", "pandas", "peft",
    "rich.progress", "transformers.models.llama.modeling_llama", "src.cluster.manifest", "src.data.toy.source",
    "src.data.toy.benchmarks",
    "src.evaluation.alpaca.benchmark", "src.evaluation.ranks.measure", "src.evaluation.judges.oracle",
    "src.evaluation.mtbench.benchmark", "src.evaluation.stages", "src.generation.policy",
    "src.generation.transformers_backend", "src.objective.adaptive", "src.reporting.html", "src.training.checks",
    "src.training.preparing", "src.training.loop",
)  # fmt: skip

CLIENT = """#!{python} -S
import json, os, signal, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
said = json.dumps([{before!r} + sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(link, [len(said).to_bytes(4, "big")], [1, 2])
link.sendall(said)
child = int(link.recv(16))
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: os.kill(child, number))
sys.exit(int(link.recv(16) or 137))
"""


def client(folder: Path, path: Path, *before: str) -> Path:
    """Write the stand-in for the interpreter of the server at ``folder``/socket; ``before``: comes before what it is
    given."""
    path.write_text(CLIENT.format(python=sys.executable, address=str(folder / "socket"), before=list(before)))
    path.chmod(0o755)
    return path


def serve(address: str) -> None:
    """Fork for every caller, until killed."""
    for name in IMPORTED:
        if importlib.util.find_spec(name.split(".")[0]):  # some packages are imported where they are installed
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
    guard = os.fork()
    if guard == 0:  # until the caller's side closes
        for descriptor in outputs:
            os.close(descriptor)
        if not link.recv(1):
            os.kill(child, signal.SIGKILL)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.kill(guard, signal.SIGKILL)  # the child's number may be another's by now
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
    pause(environment)
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


def pause(environment: dict[str, str]) -> None:
    """Do as the module says of WARM_PAUSES and WARM_PIDS."""
    started = int(environment.get("SLURM_RESTART_COUNT", "0"))
    task = environment.get("SLURM_ARRAY_TASK_ID", "")
    if folder := environment.get("WARM_PIDS"):
        name = f"{environment.get('SLURM_JOB_ID')}-{started}-{environment.get('RANK')}"
        (Path(folder) / name).write_text(str(os.getpid()))
    pauses = json.loads(environment.get("WARM_PAUSES", "{}"))
    seconds = dict(enumerate(pauses.get(task, pauses.get("", [])))).get(started, 0)
    from src.training.loop import StopFlag

    agreed = StopFlag.agreed

    def slowly(self: StopFlag, *given: Any) -> bool:
        time.sleep(seconds)
        return agreed(self, *given)

    StopFlag.agreed = slowly  # type: ignore[method-assign]


if __name__ == "__main__":
    serve(sys.argv[2])
