"""A chat-completions server on 127.0.0.1 whose answers and failures a test chooses. It needs no torch and no vLLM."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Step = Callable[[BaseHTTPRequestHandler, dict], None]
MODEL = "judge-1"


def completion(body: dict | None = None, text: str | None = "A", **changes: Any) -> dict:
    """Return an answer in OpenAI's form, with log-probs if the request has them. `changes` go into its one choice."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if (body or {}).get("logprobs"):
        top = [{"token": "A", "logprob": -0.2}, {"token": " B", "logprob": -2.0}, {"token": "B", "logprob": -3.0}]
        choice["logprobs"] = {"content": [{"token": "A", "logprob": -0.2, "top_logprobs": top}]}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "x", "object": "chat.completion", "model": MODEL, "choices": [choice | changes], "usage": usage}


def send(handler: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict | None = None) -> None:
    """Send a response; `headers` replace or extend the usual ones."""
    usual = {"Content-Type": "application/json", "Content-Length": str(len(data))}
    handler.send_response(status)
    for name, value in (usual | (headers or {})).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def answer(text: str | None = "A", delay: float = 0.0, top: dict | None = None, **changes: Any) -> Step:
    """Return a step that answers. `top` goes into the answer, `changes` into its choice."""

    def step(handler: BaseHTTPRequestHandler, body: dict) -> None:
        time.sleep(delay)
        fields = completion(body, text, **changes) | (top or {})
        send(handler, 200, json.dumps(fields).encode())

    return step


def status(code: int, data: Any = None, **headers: str) -> Step:
    """Return a step that answers with a status. Headers are named with underscores: retry_after="1"."""
    if not isinstance(data, bytes):
        data = json.dumps(data or {"error": {"message": f"no. {code}"}}).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, _: send(handler, code, data, named)


def raw(data: bytes) -> Step:
    """Return a step that answers with these bytes."""
    return lambda handler, _: send(handler, 200, data)


def trickle(handler: BaseHTTPRequestHandler, body: dict) -> None:
    """Send a byte now and then, so that no single read takes long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.1)


def stall(handler: BaseHTTPRequestHandler, body: dict) -> None:
    """Wait longer than any test does before closing without an answer."""
    time.sleep(4)


def half(handler: BaseHTTPRequestHandler, body: dict) -> None:
    """Announce the length of the answer, and close the connection in its middle."""
    data = json.dumps(completion(body)).encode()
    send(handler, 200, data[: len(data) // 2], {"Content-Length": str(len(data))})
    handler.close_connection = True


def hang_up(handler: BaseHTTPRequestHandler, body: dict) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True


class JudgeServer:
    """Answers request n with step n; the last step repeats. `by` chooses the step by the request's body instead."""

    def __init__(self, *steps: Step, by: Callable[[dict], Step] | None = None):
        self.steps, self.by = steps, by
        self.bodies: list[dict] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.open = self.most_open = 0
        self._guard = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads, self._http.block_on_close = True, False
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self) -> JudgeServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        # Inside of the class `self` is one request.
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                step = server._next_step(body, dict(self.headers), self.path)
                try:
                    step(self, body)
                except OSError:
                    self.close_connection = True  # the client has gone
                finally:
                    with server._guard:
                        server.open -= 1

            def log_message(self, *args: object) -> None:
                pass

        return Handler

    def _next_step(self, body: dict, headers: dict[str, str], path: str) -> Step:
        """Record the request and return the step that answers it."""
        with self._guard:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(headers)
            self.paths.append(path)
            self.times.append(time.monotonic())
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        if self.by:
            return self.by(body)
        return self.steps[min(number, len(self.steps) - 1)]
