"""How a judge behind a chat-completions server is reached, and what asking it may take."""

from __future__ import annotations

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from rlaif.config.section import Section

OURS = ("model", "messages", "n", "stream", "seed", "logprobs", "top_logprobs")
"""Fields of a request that `extra` may not set: the client depends on them."""
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Server(Section):
    """One judge: a model behind a server that speaks OpenAI's chat completions.

    Options with `repr=False` may hold a secret by mistake: no error shows what was found there.
    """

    url: str = Field(repr=False)
    """Address below which `chat/completions` lies, such as http://127.0.0.1:8000/v1. No secrets in it."""
    model: str
    """Pinned: an answer that names another model stops the run."""
    api_key_env: str | None = Field(None, repr=False)
    """NAME of the environment variable with the API key; None: the server wants none."""
    timeout_s: float = Field(60.0, gt=0, allow_inf_nan=False)
    """Deadline of one request, from connecting to the last byte."""
    retries: int = Field(4, ge=0)
    """Further attempts after one that failed for a reason that may pass."""
    concurrency: int = Field(8, ge=1)
    """Requests that are open at a time."""
    price_per_million: tuple[Amount, Amount] = (0.0, 0.0)
    """Of input and of output tokens, in the unit of `cost_budget`."""
    token_budget: int | None = Field(None, ge=0)
    """Input and output tokens that all commands of a run together may take."""
    cost_budget: Amount | None = None
    """The same in money; needs `price_per_million`."""
    backoff_s: Amount = 1.0
    """The wait before retry n is drawn from 0 to backoff_s * 2^n, and is no shorter than the server asks for."""
    max_backoff_s: Amount = 60.0
    """No wait is longer, whatever the server asks for."""
    give_up_after: int = Field(16, ge=1)
    """After so many questions in a row that the server left unanswered, the rest of them is not sent."""
    max_images: int = Field(32, ge=1)
    """Frames of one question; more is an error."""
    top_logprobs: int = Field(20, ge=1)
    """First tokens listed of a verdict; more where a choice is often missing, as far as the server goes (most: 20)."""
    extra: dict[str, Any] = Field({}, repr=False)
    """Further fields of every request, such as {"chat_template_kwargs": {"enable_thinking": False}}. A field that is
    None is left out: {"max_tokens": None, "max_completion_tokens": 8}."""
    origin: str | None = None
    """What labels and kept replies are known by instead of the address, for a server that moves while its model stays
    the same."""

    @property
    def address(self) -> str:
        """`url` as replies are kept under it and paths are added to it: without a slash at its end."""
        return self.url.rstrip("/")

    @field_validator("url")
    @classmethod
    def _reachable(cls, url: str) -> str:
        if found := _fault(url):
            raise ValueError(f"needs an address such as http://127.0.0.1:8000/v1 (found {found})")
        return url

    @field_validator("api_key_env")
    @classmethod
    def _name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", name):
            raise ValueError("needs the NAME of an environment variable, such as JUDGE_API_KEY (found something else)")
        return name

    @field_validator("extra")
    @classmethod
    def _not_ours(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if taken := [name for name in OURS if name in extra]:
            raise ValueError(f"must not set {', '.join(taken)}: some are options of their own, the others the client's")
        return extra

    @field_validator("cost_budget")
    @classmethod
    def _priced(cls, budget: float | None, info: ValidationInfo) -> float | None:
        prices = info.data.get("price_per_million")  # missing where they are wrong themselves
        if budget is not None and prices == (0.0, 0.0):
            raise ValueError("needs price_per_million, of input and of output tokens")
        return budget


def _fault(url: str) -> str:
    """What keeps an address from being used, in words without the address, or ""."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https"):
            return "neither http:// nor https:// at its beginning"
        if not parts.hostname:
            return "no host in it"
        if parts.port == 0:
            return "port 0"
    except ValueError:
        return "a host or port that none can have"
    if parts.username is not None or parts.query or parts.fragment:
        return "a user, query or fragment in it; api_key_env is for a key"
    return "chat/completions at its end, which is added" if parts.path.rstrip("/").endswith("/chat/completions") else ""
