"""One request to a chat-completions server. The result is an answer, a failure, or an error that stops the run."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, NoReturn

import httpx

from rlaif.config.server import Server
from rlaif.errors import ConfigError, ContractError
from rlaif.feedback.chat_response import ChatCompletion, RequestFailure, parse_completion

TRANSIENT = (408, 409, 425, 429)
"""Statuses after which another attempt may succeed, besides 5xx."""
MAX_RESPONSE_BYTES = 4 * 2**20
"""Far more than any completion of `max_tokens` with log-probs; an endless answer must not fill the memory."""


def api_key(server: Server) -> str | None:
    """Return the API key, or None if the server needs none.

    The key is read from the environment at every use, so that no object holds it. Raises ConfigError if the variable is
    not set, empty, or holds characters that a header cannot hold.
    """
    if server.api_key_env is None:
        return None
    key = os.environ.get(server.api_key_env, "").strip()
    # Printable ASCII without spaces: httpx and h11 reject most other characters with errors that show the key.
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        problem = "characters that a header cannot hold" if key else "nothing"
        raise ConfigError(
            f"the API key for {server.address} in the environment variable {server.api_key_env}",
            f"{problem} there",
            f"Set {server.api_key_env} in the environment of the command that asks the judge.",
        )
    return key


def http_client(server: Server) -> httpx.AsyncClient:
    """Return a client that follows no redirects and checks certificates.

    Proxies and certificate authorities come from the environment, as usual.
    """
    # At INFO both log a line per request; at DEBUG they log headers, in which servers may repeat a key.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # httpx's timeouts bound single reads only; `_exchange` keeps the deadline of a whole request.
    return httpx.AsyncClient(
        timeout=None,
        follow_redirects=False,
        limits=httpx.Limits(max_connections=server.concurrency),
    )


async def post_chat(http: httpx.AsyncClient, server: Server, body: dict[str, Any]) -> ChatCompletion | RequestFailure:
    """Send one request.

    Raises ConfigError if no request can succeed: the key, the model, the address or the certificate is wrong.
    """
    start = time.monotonic()
    response = await _exchange(http, server, body)
    if isinstance(response, RequestFailure):
        return response
    if response.status != 200:
        return _failure_of_status(server, response)
    return parse_completion(response.data, round(time.monotonic() - start, 3))


def check_answering_model(server: Server, answer: ChatCompletion) -> None:
    """Raise ContractError if another model than the pinned one has answered."""
    if answer.model != server.model:
        raise ContractError(
            f"answers of {server.model!r} from {server.address}",
            f"an answer of {answer.model[:200]!r}",
            "Set `model` of the judge to the name that the server's answers carry.",
        )


class _Response(NamedTuple):
    """A response without the API key."""

    status: int
    wait_s: float | None
    """Seconds that the server asks to wait."""
    data: bytes


async def _exchange(http: httpx.AsyncClient, server: Server, body: dict[str, Any]) -> _Response | RequestFailure:
    """Send the request and read its response.

    httpx's errors and responses hold the key, so none of them leaves this function.
    """
    content, address = json.dumps(body).encode(), f"{server.address}/chat/completions"
    try:
        async with asyncio.timeout(server.timeout_s):
            async with http.stream("POST", address, content=content, headers=_headers(server)) as response:
                data = await _limited(response, MAX_RESPONSE_BYTES)
                if data is None:
                    return RequestFailure("garbled", f"more than {MAX_RESPONSE_BYTES} bytes", used=True)
                wait_s = retry_after(response.headers.get("retry-after"))
                return _Response(response.status_code, wait_s, _scrubbed(data, server))
    except TimeoutError:
        return RequestFailure("slow", f"no whole answer within {server.timeout_s:g} s", again=True, used=True)
    except httpx.ConnectError as error:
        problem = str(error)
    except httpx.RequestError as error:
        reason = f"the connection broke: {type(error).__name__}: {error}"
        return RequestFailure("down", reason, again=True, used=True)
    # Outside of the `except` clauses: an error raised inside one would carry httpx's error, and with it the key.
    # httpx turns the TLS error into a ConnectError; only its text tells an untrusted certificate from a server that is down.
    if "CERTIFICATE" in problem:
        _untrusted(server, problem)
    return RequestFailure("down", f"no connection to {server.address}: {problem}", again=True)


def _untrusted(server: Server, problem: str) -> NoReturn:
    raise ConfigError(
        f"a certificate for {server.address} that this machine trusts",
        problem,
        "Correct the server's certificate, or set SSL_CERT_FILE for an authority of your own.",
    )


def _headers(server: Server) -> dict[str, str]:
    # `identity`: a small compressed body could expand to any size within one chunk, past MAX_RESPONSE_BYTES.
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    key = api_key(server)
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return headers


async def _limited(response: httpx.Response, limit: int) -> bytes | None:
    """Return the body, or None if it is longer than the limit."""
    data = bytearray()
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > limit:
            return None
    return bytes(data)


def _scrubbed(data: bytes, server: Server) -> bytes:
    """Remove the key from the body: servers repeat a wrong key in their error messages."""
    key = api_key(server)
    return data.replace(key.encode(), b"***") if key else data


def _failure_of_status(server: Server, response: _Response) -> RequestFailure:
    status, data = response.status, response.data
    if status in (401, 402, 403):
        _no_access(server, status)
    if status == 404:
        raise ConfigError(
            f"the model {server.model!r} at {server.address}",
            f"404: {error_message(data)}",
            f"Set model to a name that {server.address}/models lists, or correct url, which mostly ends in `/v1`.",
        )
    if 300 <= status < 400:
        # Questions and the key go to the configured address only.
        raise ConfigError(
            f"an answer from {server.address}",
            f"a redirect ({status}), which is not followed",
            "Set url to the address that the server itself has.",
        )
    reason = f"{status}: {error_message(data)}"
    if status in TRANSIENT or status >= 500:
        kind = "busy" if status == 429 else "server error"
        return RequestFailure(kind, reason, again=True, wait_s=response.wait_s)
    return RequestFailure("rejected" if status >= 400 else "garbled", reason)


def _no_access(server: Server, status: int) -> NoReturn:
    """Raise ConfigError without the server's own words, which often hold parts of the key."""
    name = server.api_key_env
    if name:
        problem = f"{status} with the key in the environment variable {name}"
        fix = f"Correct the value of {name}, or the account behind it."
    else:
        problem = f"{status} with no API key"
        fix = "Set api_key_env to the NAME of a variable with a key."
    raise ConfigError(f"access to {server.model!r} at {server.address}", problem, fix)


def error_message(data: bytes) -> str:
    """Return what the body of an error says, in at most 200 characters."""
    text = data.decode(errors="replace")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, dict):
        # OpenAI: {"error": {"message": ...}}; FastAPI: {"detail": ...}; others: {"error": "..."}.
        error = body.get("error", body)
        text = _text_of_error(error, text) if isinstance(error, dict) else str(error)
    return " ".join(text.split())[:200]


def _text_of_error(error: dict[str, Any], otherwise: str) -> str:
    return str(error.get("message") or error.get("detail") or otherwise)


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Return the seconds that a Retry-After header (seconds, or a date) asks to wait.

    None if the header is missing or unreadable. `now` replaces the current time for dates.
    """
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
            seconds = (moment - (now or datetime.now(UTC))).total_seconds()
        except (ValueError, TypeError):
            return None
    # `nan` and `inf` parse as numbers; neither compares below infinity.
    return max(seconds, 0.0) if seconds < float("inf") else None
