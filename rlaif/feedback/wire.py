"""One request to a chat-completions server: an answer, what went wrong, or an error that stops the run."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx

from rlaif.errors import ConfigError, ContractError
from rlaif.feedback.options import EndpointOptions
from rlaif.feedback.replies import Answer, Failure, parse

TRANSIENT = (408, 409, 425, 429)
"""Besides 5xx, statuses after which another attempt may fare better."""


def client(options: EndpointOptions) -> httpx.AsyncClient:
    """Follows no redirect and checks certificates. Proxies and authorities come from the environment, as usual."""
    for name in ("httpx", "httpcore"):  # a line per request; and they show headers, in which servers may repeat a key
        logging.getLogger(name).setLevel(logging.WARNING)
    return httpx.AsyncClient(
        timeout=None,  # httpx times single reads; the deadline here is that of a whole request
        follow_redirects=False,
        limits=httpx.Limits(max_connections=options.concurrency),
    )


async def post(http: httpx.AsyncClient, options: EndpointOptions, body: dict[str, Any]) -> Answer | Failure:
    """Send one request.

    Raises ConfigError where no request can succeed: key, model, address or certificate are wrong.
    """
    start = time.monotonic()
    got = await _exchange(http, options, body)
    if isinstance(got, Failure):
        return got
    status, wait_s, data = got
    if status != 200:
        return _refused(options, status, wait_s, data)
    return parse(data, round(time.monotonic() - start, 3))


def check_model(options: EndpointOptions, answer: Answer) -> None:
    """ContractError where another model than the pinned one has answered."""
    if answer.model != options.model:
        raise ContractError(
            f"answers of {options.model!r} from {options.url}",
            f"an answer of {answer.model[:200]!r}",
            "pin the name that the server's answers carry (model)",
        )


async def _exchange(
    http: httpx.AsyncClient, options: EndpointOptions, body: dict[str, Any]
) -> tuple[int, float | None, bytes] | Failure:
    """(status, seconds to wait, body), all without the key. httpx's errors and responses end here: they hold the key."""
    certificate, content, address = "", json.dumps(body).encode(), f"{options.url}/chat/completions"
    try:
        async with asyncio.timeout(options.timeout_s):
            async with http.stream("POST", address, content=content, headers=_headers(options)) as response:
                data = await _limited(response, options.max_response_bytes)
                if data is None:
                    return Failure("garbled", f"more than {options.max_response_bytes} bytes", used=True)
                wait_s = retry_after(response.headers.get("retry-after"))
                return response.status_code, wait_s, _scrubbed(data, options)
    except TimeoutError:
        return Failure("slow", f"no whole answer within {options.timeout_s:g} s", again=True, used=True)
    except httpx.ConnectError as error:
        certificate = str(error) if "CERTIFICATE" in str(error) else ""
        if not certificate:
            return Failure("down", f"no connection to {options.url}: {error}", again=True)
    except httpx.RequestError as error:
        broke = f"the connection broke: {type(error).__name__}: {error}"
        return Failure("down", broke, again=True, used=True)
    raise ConfigError(
        f"a certificate for {options.url} that this machine trusts",
        certificate,
        "the server's certificate, or SSL_CERT_FILE for an authority of your own",
    )


def _headers(options: EndpointOptions) -> dict[str, str]:
    key = options.key()
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


def _scrubbed(data: bytes, options: EndpointOptions) -> bytes:
    """Servers repeat a wrong key in what they say about it."""
    key = options.key()
    return data.replace(key.encode(), b"***") if key else data


def _refused(options: EndpointOptions, status: int, wait_s: float | None, data: bytes) -> Failure:
    if status in (401, 402, 403):
        _no_access(options, status)
    if status == 404:
        raise ConfigError(
            f"the model {options.model!r} at {options.url}",
            f"404: {message(data)}",
            f"model, to a name that {options.url}/models lists; or url, which mostly ends in /v1",
        )
    if 300 <= status < 400:
        raise ConfigError(
            f"an answer from {options.url}",
            f"a redirect ({status}), which is not followed",
            "url, to the address that the server itself has",
        )
    reason = f"{status}: {message(data)}"
    if status in TRANSIENT or status >= 500:
        kind = "busy" if status == 429 else "server error"
        return Failure(kind, reason, again=True, wait_s=wait_s)
    return Failure("rejected" if status >= 400 else "garbled", reason)


def _no_access(options: EndpointOptions, status: int) -> NoReturn:
    """The server's own words stay out: they often hold parts of the key."""
    name = options.api_key_env
    raise ConfigError(
        f"access to {options.model!r} at {options.url}",
        f"{status} with " + (f"the key in the environment variable {name}" if name else "no API key"),
        f"the value of {name}, or the account behind it"
        if name
        else "api_key_env, to the NAME of a variable with a key",
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
