"""One request to a chat-completions server: an answer, what went wrong, or an error that stops the run."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx

from rlaif.config.server import Server
from rlaif.errors import ConfigError, ContractError
from rlaif.feedback.chat_response import Answer, Failure, parse

TRANSIENT = (408, 409, 425, 429)
"""Besides 5xx, statuses after which another attempt may fare better."""
MAX_RESPONSE_BYTES = 4 * 2**20


def api_key(server: Server) -> str | None:
    """The API key, read from the environment at every use, so that nothing holds it."""
    if server.api_key_env is None:
        return None
    key = os.environ.get(server.api_key_env, "").strip()
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        found = "characters that a header cannot hold" if key else "nothing"
        raise ConfigError(
            f"the API key for {server.address} in the environment variable {server.api_key_env}",
            f"{found} there",
            "set that variable where the judge is asked from",
        )
    return key


def client(server: Server) -> httpx.AsyncClient:
    """Follows no redirect and checks certificates. Proxies and authorities come from the environment, as usual."""
    for name in ("httpx", "httpcore"):  # a line per request; and they show headers, in which servers may repeat a key
        logging.getLogger(name).setLevel(logging.WARNING)
    return httpx.AsyncClient(
        timeout=None,  # httpx times single reads; the deadline here is that of a whole request
        follow_redirects=False,
        limits=httpx.Limits(max_connections=server.concurrency),
    )


async def post(http: httpx.AsyncClient, server: Server, body: dict[str, Any]) -> Answer | Failure:
    """Send one request.

    Raises ConfigError where no request can succeed: key, model, address or certificate are wrong.
    """
    start = time.monotonic()
    got = await _exchange(http, server, body)
    if isinstance(got, Failure):
        return got
    status, wait_s, data = got
    if status != 200:
        return _refused(server, status, wait_s, data)
    return parse(data, round(time.monotonic() - start, 3))


def check_model(server: Server, answer: Answer) -> None:
    """ContractError where another model than the pinned one has answered."""
    if answer.model != server.model:
        raise ContractError(
            f"answers of {server.model!r} from {server.address}",
            f"an answer of {answer.model[:200]!r}",
            "pin the name that the server's answers carry (model)",
        )


async def _exchange(
    http: httpx.AsyncClient, server: Server, body: dict[str, Any]
) -> tuple[int, float | None, bytes] | Failure:
    """(status, seconds to wait, body), all without the key. httpx's errors and responses end here: they hold the key."""
    certificate, content, address = "", json.dumps(body).encode(), f"{server.address}/chat/completions"
    try:
        async with asyncio.timeout(server.timeout_s):
            async with http.stream("POST", address, content=content, headers=_headers(server)) as response:
                data = await _limited(response, MAX_RESPONSE_BYTES)
                if data is None:
                    return Failure("garbled", f"more than {MAX_RESPONSE_BYTES} bytes", used=True)
                wait_s = retry_after(response.headers.get("retry-after"))
                return response.status_code, wait_s, _scrubbed(data, server)
    except TimeoutError:
        return Failure("slow", f"no whole answer within {server.timeout_s:g} s", again=True, used=True)
    except httpx.ConnectError as error:
        certificate = str(error) if "CERTIFICATE" in str(error) else ""
        if not certificate:
            return Failure("down", f"no connection to {server.address}: {error}", again=True)
    except httpx.RequestError as error:
        broke = f"the connection broke: {type(error).__name__}: {error}"
        return Failure("down", broke, again=True, used=True)
    raise ConfigError(
        f"a certificate for {server.address} that this machine trusts",
        certificate,
        "Correct the server's certificate, or set SSL_CERT_FILE for an authority of your own",
    )


def _headers(server: Server) -> dict[str, str]:
    key = api_key(server)
    plain = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    return {**plain, "Authorization": f"Bearer {key}"} if key else plain


async def _limited(response: httpx.Response, limit: int) -> bytes | None:
    """The body, or None where it is longer than the limit."""
    data = bytearray()
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > limit:
            return None
    return bytes(data)


def _scrubbed(data: bytes, server: Server) -> bytes:
    """Servers repeat a wrong key in what they say about it."""
    key = api_key(server)
    return data.replace(key.encode(), b"***") if key else data


def _refused(server: Server, status: int, wait_s: float | None, data: bytes) -> Failure:
    if status in (401, 402, 403):
        _no_access(server, status)
    if status == 404:
        raise ConfigError(
            f"the model {server.model!r} at {server.address}",
            f"404: {message(data)}",
            f"Set model to a name that {server.address}/models lists, or correct url, which mostly ends in /v1",
        )
    if 300 <= status < 400:
        raise ConfigError(
            f"an answer from {server.address}",
            f"a redirect ({status}), which is not followed",
            "Set url to the address that the server itself has",
        )
    reason = f"{status}: {message(data)}"
    if status in TRANSIENT or status >= 500:
        kind = "busy" if status == 429 else "server error"
        return Failure(kind, reason, again=True, wait_s=wait_s)
    return Failure("rejected" if status >= 400 else "garbled", reason)


def _no_access(server: Server, status: int) -> NoReturn:
    """The server's own words stay out: they often hold parts of the key."""
    name = server.api_key_env
    raise ConfigError(
        f"access to {server.model!r} at {server.address}",
        f"{status} with " + (f"the key in the environment variable {name}" if name else "no API key"),
        f"Correct the value of {name}, or the account behind it"
        if name
        else "Set api_key_env to the NAME of a variable with a key",
    )


def message(data: bytes) -> str:
    """What an error's body says, in 200 characters."""
    text = data.decode(errors="replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        error = found.get("error", found)
        text = str(error.get("message") or error.get("detail") or text) if isinstance(error, dict) else str(error)
    return " ".join(text.split())[:200]


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Seconds that a Retry-After header (seconds, or a date) asks to wait; None where it is missing or unreadable."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - (now or datetime.now(UTC))).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if seconds < float("inf") else None
