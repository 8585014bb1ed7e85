"""Address and limits of a judge behind a chat-completions server."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from rlaif.config.section import Section

CLIENT_FIELDS = ("model", "messages", "n", "stream", "seed", "logprobs", "top_logprobs")
"""Fields of a request that `extra` may not set: the client depends on them."""
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A finite number that is not negative."""


class Server(Section):
    """One judge: a model behind a server that speaks OpenAI's chat completions.

    Options with `repr=False` may hold a secret by mistake: no error shows what was found there.
    """

    url: str = Field(repr=False)
    """Address that `chat/completions` is added to, such as http://127.0.0.1:8000/v1. It must not hold secrets."""
    model: str
    """Model to ask for. A reply that names another model stops the run."""
    api_key_env: str | None = Field(None, repr=False)
    """NAME of the environment variable that holds the API key; null: the server needs none."""
    timeout_s: float = Field(60.0, gt=0, allow_inf_nan=False)
    """Longest time of one request, in seconds, from connecting to the last byte."""
    retries: int = Field(4, ge=0)
    """Number of further attempts after one that failed for a reason that may pass."""
    concurrency: int = Field(8, ge=1)
    """Largest number of open requests."""
    price_per_million: tuple[Amount, Amount] = (0.0, 0.0)
    """Prices of a million input tokens and of a million output tokens, in the unit of `cost_budget`."""
    token_budget: int | None = Field(None, ge=0)
    """Largest number of input and output tokens that all commands of a run may use together; null: no limit."""
    cost_budget: Amount | None = None
    """Largest cost of all commands of a run together; needs `price_per_million`. null: no limit."""
    # Full jitter: a random wait keeps clients that failed together from retrying together.
    backoff_s: Amount = 1.0
    """Factor of the wait before a retry, in seconds: the wait before retry n is drawn from 0 to backoff_s * 2^n, and is
    no shorter than the server asks for."""
    max_backoff_s: Amount = 60.0
    """Longest wait before a retry, in seconds, whatever the server asks for."""
    give_up_after: int = Field(16, ge=1)
    """Number of questions in a row without a reply from the server, after which the remaining questions are not sent."""
    max_images: int = Field(32, ge=1)
    """Largest number of frames in one question; more is an error."""
    # 20 is the most that OpenAI's API allows.
    top_logprobs: int = Field(20, ge=1)
    """Number of first tokens whose log-probs a verdict lists. Raise it if a choice is often missing, as far as the
    server allows (most allow 20)."""
    extra: dict[str, Any] = Field({}, repr=False)
    """Further fields of every request, such as `{"chat_template_kwargs": {"enable_thinking": false}}`. A field that is
    null is left out of the request: `{"max_tokens": null, "max_completion_tokens": 8}`."""
    origin: str | None = None
    """Name that stands for the address in labels and stored replies, for a server that moves while its model stays the
    same; null: the address."""

    @property
    def address(self) -> str:
        """Return `url` without a slash at its end: replies are stored under it, and paths are appended to it."""
        return self.url.rstrip("/")

    @field_validator("url")
    @classmethod
    def _usable_url(cls, url: str) -> str:
        if fault := _fault(url):
            raise ValueError(f"needs an address such as http://127.0.0.1:8000/v1 (found {fault})")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _variable_name(cls, name: str | None) -> str | None:
        # The message does not show the value: a user may have written the key itself.
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
            raise ValueError("needs the NAME of an environment variable, such as JUDGE_API_KEY (found something else)")
        return name

    @field_validator("extra")
    @classmethod
    def _free_fields(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if reserved := [name for name in CLIENT_FIELDS if name in extra]:
            raise ValueError(
                f"must not set {', '.join(reserved)}: some are options of their own, the others the client's"
            )
        return extra

    @field_validator("cost_budget")
    @classmethod
    def _priced(cls, budget: float | None, info: ValidationInfo) -> float | None:
        # The prices are missing here if they are wrong themselves; that error is enough.
        prices = info.data.get("price_per_million")
        if budget is not None and prices == (0.0, 0.0):
            raise ValueError("needs price_per_million, of input and of output tokens")
        return budget


def _fault(url: str) -> str:
    """Return what makes an address unusable, in words that do not show it, or ""."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            return "neither http:// nor https:// at its beginning"
        if not parts.hostname:
            return "no host in it"
        if parts.port == 0:
            return "port 0"
    except ValueError:  # `urlsplit` and `port` raise it, for brackets and for numbers beyond 65535
        return "a host or port that none can have"
    if parts.username is not None or parts.query or parts.fragment:
        return "a user, query or fragment in it; api_key_env is for a key"
    if parts.path.rstrip("/").endswith("/chat/completions"):
        return "chat/completions at its end, which is added"
    return ""
