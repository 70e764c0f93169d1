"""Worker processes: programs of their own that are sent shards through a pipe.

They run nothing of the program that starts them a second time (as ``multiprocessing`` does with a script's main
module), inherit none of its locks, and end when its end of the pipe does, even when it was killed.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from src.data.preparation.pieces import Piece, make_shard
from src.data.preparation.work import Work
from src.errors import UserError

PROGRAM = "from src.data.preparation.workers import serve; serve()"


class PreparationStopped(UserError):  # noqa: N818 - says what happened
    """Preparation could not go on, but the same command can: finished shards are kept."""


class Workers:
    """``count`` processes that make shards by ``work``; each is started when there is something for it to do."""

    def __init__(self, count: int, work: Work) -> None:
        try:
            self._work = pickle.dumps(work)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise PreparationStopped(
                f"template or noise cannot be sent to another process ({error}); set prepare_workers=1"
            ) from error
        self._threads = ThreadPoolExecutor(count, "preparation")
        self._own = threading.local()
        self._processes: list[subprocess.Popen[bytes]] = []

    def submit(self, piece: Piece, path: Path) -> Future[None]:
        """The promise of ``piece``'s shard in ``path``. Its exception is what the worker met; ``PreparationStopped``
        where the worker itself came to an end."""
        return self._threads.submit(self._ask, piece, path)

    def close(self) -> None:
        """End the processes, whatever they are at."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        self._threads.shutdown()
        for process in self._processes:
            process.communicate()

    def _ask(self, piece: Piece, path: Path) -> None:
        request = pickle.dumps((piece, path))
        try:
            process = self._process()
            assert process.stdin
            assert process.stdout
            process.stdin.write(request)
            process.stdin.flush()
            error = pickle.load(process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError) as broken:
            raise PreparationStopped(
                "a process that prepares data ended before its work was done (killed for want of memory?); the same "
                "command goes on from the shards that are finished; prepare_workers=1 needs the least memory"
            ) from broken
        if error is not None:
            raise error

    def _process(self) -> subprocess.Popen[bytes]:
        """The process of this thread."""
        if not hasattr(self._own, "process"):
            # the workers are the parallelism, and what can be imported here can be there
            extra = {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | extra,
            )
            self._processes.append(process)
            assert process.stdin
            process.stdin.write(self._work)
            self._own.process = process
        found: subprocess.Popen[bytes] = self._own.process
        return found


def serve() -> None:
    """What a worker does: read its ``Work``, then shard after shard, and answer each with ``None`` or an exception."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests: Any = sys.stdin.buffer
    with os.fdopen(os.dup(1), "wb") as replies:
        # what a library prints is no reply
        os.dup2(2, 1)
        try:
            work = pickle.load(requests)
            while True:
                piece, path = pickle.load(requests)
                reply = None
                try:
                    make_shard(work, piece, path)
                except Exception as error:
                    error.add_note(traceback.format_exc())
                    reply = error
                pickle.dump(reply, replies)
                replies.flush()
        except (EOFError, BrokenPipeError):
            # the program is done, or gone
            os._exit(0)
