"""A chat endpoint on this machine that answers as a test tells it to, and counts what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What the endpoint does with one request.

    ``dropped``: it closes the connection without a word; ``missing``: bytes of the body that it announces and keeps.
    """

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0
    dropped: bool = False
    missing: int = 0


def answer(text: str, finish_reason: str = "stop", tokens: int = 3) -> Reply:
    """A chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return Reply(body=json.dumps({"choices": [choice], "usage": {"completion_tokens": tokens}}).encode())


class ChatServer:
    """``script(payload, number of the request)`` gives each reply; ``payloads`` and ``headers`` are what came.

    ``port``: 0 takes a free one.
    """

    def __init__(self, script: Callable[[dict[str, Any], int], Reply], port: int = 0) -> None:
        self.script = script
        self.payloads: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                owner.handle(self)

            def log_message(self, *_: Any) -> None:
                """Nothing on the terminal."""

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        payload = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self.lock:
            self.payloads.append(payload)
            self.headers.append(dict(request.headers))
            self.times.append(time.monotonic())
            number = len(self.payloads)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            reply = self.script(payload, number)
            time.sleep(reply.delay)
        finally:
            with self.lock:
                self.under_way -= 1
        try:
            self.send(request, reply)
        except OSError:
            request.close_connection = True  # the client has hung up

    def send(self, request: BaseHTTPRequestHandler, reply: Reply) -> None:
        if reply.dropped:
            request.close_connection = True
            return
        request.send_response(reply.status)
        for name, value in reply.headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(reply.body) + reply.missing))
        request.end_headers()
        for place in range(len(reply.body)) if reply.drip else ():
            request.wfile.write(reply.body[place : place + 1])
            request.wfile.flush()
            time.sleep(reply.drip)
        if not reply.drip:
            request.wfile.write(reply.body)
        request.close_connection = request.close_connection or reply.missing > 0


@contextmanager
def serving(script: Callable[[dict[str, Any], int], Reply], port: int = 0) -> Iterator[ChatServer]:
    """A server on a free port, or this one, while inside."""
    server = ChatServer(script, port)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
