"""Real chat servers of a tiny model on loopback: `transformers serve`, and one of our own that gives log-probs.

Run as a program (``python -m tests.evaluation.chat_model MODEL PORT``) it is the former, and ends by itself: when the
process that started it ends or closes its standard input, and after ``LONGEST`` seconds in any case.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support import ROOT
from tests.unit.chat_server import Reply

LONGEST = 300
STARTING = 90


def serve(model: str, port: int) -> None:
    """`transformers serve MODEL` until standard input ends."""
    from transformers.cli.serve import Serve

    def wait_for_the_end() -> None:
        sys.stdin.read()
        os._exit(0)

    signal.alarm(LONGEST)
    threading.Thread(target=wait_for_the_end, daemon=True).start()
    Serve(model, host="127.0.0.1", port=port, device="cpu", log_level="error")


@contextmanager
def transformers_serving(model: Path, log: Path) -> Iterator[str]:
    """The base_url of `transformers serve` with one model; what it says goes into ``log``."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.evaluation.chat_model", str(model), str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=file, stderr=subprocess.STDOUT
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(process, address, log)
        yield f"{address}/v1"
    finally:
        process.kill()
        process.communicate()


def wait_until_healthy(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Until the server answers."""
    deadline = time.monotonic() + STARTING
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            if httpx.get(f"{address}/health", trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)


class LogProbs:
    """A script for ``tests.unit.chat_server``: the next token of a real model after the rendered conversation.

    As an endpoint with logit_bias would have it, only ``letters`` come: their log-probs are the model's own, among
    themselves.
    """

    def __init__(self, model: Path, letters: tuple[str, ...] = ("m", "M")) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModelForCausalLM.from_pretrained(model)
        self.letters, self.lock = letters, threading.Lock()
        self.ids = self.tokenizer.convert_tokens_to_ids(list(letters))

    def log_probs(self, messages: list[dict[str, str]]) -> dict[str, float]:
        """Of each letter."""
        import torch

        ids = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        with self.lock, torch.inference_mode():
            logits = self.model(ids).logits[0, -1, self.ids]
        return dict(zip(self.letters, torch.log_softmax(logits, -1).tolist(), strict=True))

    def __call__(self, payload: dict[str, Any], number: int) -> Reply:
        found = self.log_probs(payload["messages"])
        alternatives = [
            {"token": token, "logprob": value} for token, value in sorted(found.items(), key=lambda item: -item[1])
        ]
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": alternatives[0]["token"]},
            "finish_reason": "length",
            "logprobs": None,
        }
        if payload.get("logprobs"):
            shown = alternatives[: payload.get("top_logprobs", 0)]
            choice["logprobs"] = {"content": [{**alternatives[0], "top_logprobs": shown}]}
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
        return Reply(body=json.dumps({"choices": [choice], "usage": usage}).encode())


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
