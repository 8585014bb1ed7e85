"""A real server on 127.0.0.1: vLLM's OpenAI-compatible server, with a tiny model, a name and an API key."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

KEY = "sk-of-the-test"
NAME = "tiny"
# `vllm serve` reads the metadata of a package named vllm, which a CPU installation does not have.
SERVE = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
FLAGS = (
    *("--served-model-name", NAME, "--dtype", "float32", "--enforce-eager", "--max-model-len", "256"),
    *("--max-num-seqs", "8", "--kv-cache-memory-bytes", str(100 * 2**20), "--max-logprobs", "200"),
    *("--limit-mm-per-prompt", '{"image": 8, "video": 1}', "--no-mm-device-do-normalize"),
)


@dataclass
class Server:
    url: str
    process: subprocess.Popen

    def kill(self) -> None:
        """Kill the server at once, as if its machine were lost."""
        # The whole group: the engine is a process of its own.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


@contextmanager
def serving(model: Path, log: Path) -> Iterator[Server]:
    """Yield the server once it answers; end it afterwards."""
    port = free_port()
    switches = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*SERVE, "--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY, *FLAGS]
    with open(log, "w") as out:
        process = subprocess.Popen(
            command, env={**os.environ, **switches}, stdout=out, stderr=out, start_new_session=True
        )
    server = Server(f"http://127.0.0.1:{port}/v1", process)
    try:
        while not healthy(port):
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.3)
        yield server
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(30)
        server.kill()


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def healthy(port: int) -> bool:
    """Tell whether the server answers."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
