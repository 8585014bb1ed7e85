"""How a judge behind a chat-completions server is reached, and what asking it may take."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from rlaif.errors import ConfigError
from rlaif.feedback.replies import Usage

OURS = ("model", "messages", "n", "stream", "seed", "logprobs", "top_logprobs")
"""Fields of a request that `extra` may not set: the client depends on them."""


@dataclass(frozen=True)
class EndpointOptions:
    """One judge: a model behind a server that speaks OpenAI's chat completions. Raises ConfigError for nonsense."""

    url: str
    """Address below which `chat/completions` lies, such as http://127.0.0.1:8000/v1. No secrets in it."""
    model: str
    """Pinned: an answer that names another model stops the run."""
    api_key_env: str | None = None
    """NAME of the environment variable with the API key; None: the server wants none."""
    timeout_s: float = 120.0
    """Deadline of one request, from connecting to the last byte."""
    retries: int = 4
    """Further attempts after one that failed for a reason that may pass."""
    backoff_s: float = 1.0
    """The wait before retry n is drawn from 0 to backoff_s * 2^n, and is no shorter than the server asks for."""
    max_backoff_s: float = 60.0
    """No wait is longer, whatever the server asks for."""
    give_up_after: int = 16
    """After so many questions in a row that the server left unanswered, the rest of them is not sent."""
    concurrency: int = 8
    """Requests that are open at a time."""
    max_tokens: int = 256
    temperature: float = 0.0
    top_logprobs: int = 20
    """How many of the first token's log-probs are asked for where choices are wanted (most servers: at most 20)."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of every request, such as {"chat_template_kwargs": {"enable_thinking": False}}. A field that is
    None is left out: {"max_tokens": None, "max_completion_tokens": 8}."""
    max_images: int = 32
    """Of one question; more is an error of whoever asks."""
    max_response_bytes: int = 4 * 2**20
    token_budget: int | None = None
    """Prompt and completion tokens that all questions together may take."""
    cost_budget: float | None = None
    """The same in money; needs the prices."""
    prompt_price: float = 0.0
    """Per million prompt tokens; so is `completion_price`."""
    completion_price: float = 0.0
    cache: str | None = None
    """Folder, or a bucket's URI, in which answers are kept; None: only in memory."""
    origin: str | None = None
    """What answers are kept under instead of the address, for a server that moves while its model stays the same."""

    def __post_init__(self) -> None:
        _check_url(self.url)
        object.__setattr__(self, "url", self.url.rstrip("/"))
        if self.api_key_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", self.api_key_env):
            # it may be the key itself: not shown
            raise ConfigError(
                "the NAME of an environment variable", "something else", "api_key_env, e.g. JUDGE_API_KEY"
            )
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                raise ConfigError(f"{name} of at least {least}", repr(value), name)
        if not self.timeout_s > 0:
            raise ConfigError("a timeout_s above 0", repr(self.timeout_s), "timeout_s")
        if self.cost_budget is not None and not self.prompt_price + self.completion_price > 0:
            raise ConfigError(
                "prices for a cost_budget", "none", "prompt_price and completion_price, per million tokens"
            )
        if taken := sorted(set(OURS) & set(self.extra)):
            raise ConfigError(f"none of {', '.join(OURS)} in extra", taken[0], "extra; some are options of their own")

    def cost(self, usage: Usage) -> float:
        """In money."""
        return (usage.prompt_tokens * self.prompt_price + usage.completion_tokens * self.completion_price) / 1e6

    def sampling(self, seed: int, first_token: bool) -> dict[str, Any]:
        """Every field of a request but its messages. `first_token`: its log-probs are wanted, and nothing behind it."""
        fields = {
            "model": self.model,
            "max_tokens": 1 if first_token else self.max_tokens,
            "temperature": self.temperature,
            "seed": seed,
            **({"logprobs": True, "top_logprobs": self.top_logprobs} if first_token else {}),
            **self.extra,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def key(self) -> str | None:
        """The API key, read from the environment at every use, so that nothing holds it."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not re.fullmatch(r"[\x21-\x7e]+", key):
            found = "characters that a header cannot hold" if key else "nothing"
            raise ConfigError(
                f"the API key for {self.url} in the environment variable {self.api_key_env}",
                f"{found} there",
                "set that variable where the judge is asked from",
            )
        return key


LEAST = {
    "retries": 0,
    "backoff_s": 0,
    "max_backoff_s": 0,
    "give_up_after": 1,
    "concurrency": 1,
    "max_tokens": 1,
    "temperature": 0,
    "top_logprobs": 1,
    "max_images": 0,
    "max_response_bytes": 1,
    "token_budget": 0,
    "cost_budget": 0,
    "prompt_price": 0,
    "completion_price": 0,
}


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if not good:
        raise ConfigError("an http or https address", "something else", "url, e.g. http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:  # where secrets lie: not shown
        raise ConfigError("an address without user, query or fragment", "one of them", "url; api_key_env for a key")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise ConfigError("the address above chat/completions", url, "url, e.g. http://127.0.0.1:8000/v1")
