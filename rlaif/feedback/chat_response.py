"""What a judge's server answers, and its result: a usable reply, or an unanswered question with the reason."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field, NonNegativeInt, TypeAdapter, ValidationError

from rlaif.feedback.chat_request import ChatRequest

FailureKind = Literal[
    "down",  # no connection, or a connection that broke
    "slow",  # no complete answer within the deadline
    "busy",  # 429
    "server error",  # 5xx
    "rejected",  # another 4xx: the server does not accept this request
    "garbled",  # an answer that cannot be read
    "refused",  # by the model or by a filter
    "cut",  # at max_tokens
    "empty",
    "no log-probs",
    "budget",
    "given up",  # not sent: too many questions in a row had no answer
]
SETTLED = ("refused", "cut")
"""Failures that are the model's own answer: the same question would end the same way, so the answer is stored."""


@dataclass(frozen=True)
class Usage:
    """Tokens as the server counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def plus(self, other: Usage, times: int = 1) -> Usage:
        """Return this usage plus `times` times the other one; -1 subtracts it."""
        return Usage(
            self.prompt_tokens + times * other.prompt_tokens,
            self.completion_tokens + times * other.completion_tokens,
        )


@dataclass(frozen=True)
class Reply:
    """An answer that can be used."""

    key: Hashable
    text: str
    finish_reason: str
    """`stop`; or `length` if the request has choices: then the first token is the answer."""
    usage: Usage
    model: str
    prompt_hash: str
    latency_s: float
    """Seconds of the request that was answered, without failed requests before it."""
    cached: bool = False
    """The answer was stored before, so nothing was spent now; usage and latency are those of the first time."""
    first: tuple[tuple[str, float], ...] = ()
    """(token, log-prob) of every reported first token."""

    def record(self) -> dict[str, Any]:
        """Return the facts that are stored next to a judgement, as plain values for JSON.

        They are the same from the cache as from the server: `cached` describes one run, not the judgement.
        """
        return _record(self.prompt_hash, self)


@dataclass(frozen=True)
class Unanswered:
    """A question without a usable answer. Whatever depends on it is masked; it never becomes a number."""

    key: Hashable
    kind: FailureKind
    reason: str
    prompt_hash: str = ""
    answer: ChatCompletion | None = None
    """The server's answer, if there was one."""

    def record(self) -> dict[str, Any]:
        """Return the same facts as `Reply.record`, with the kind of failure as `masked`; {} without an answer."""
        if not self.answer:
            return {}
        return _record(self.prompt_hash, self.answer) | {"masked": self.kind}


@dataclass(frozen=True)
class RequestFailure:
    """One request that brought no answer."""

    kind: FailureKind
    reason: str
    again: bool = False
    """Another attempt may succeed."""
    wait_s: float | None = None
    """Seconds that the server asks to wait before another attempt."""
    used: bool = False
    """The server may have computed an answer, and may charge for it."""


@dataclass(frozen=True)
class ChatCompletion:
    """The server's answer in the form in which it is stored."""

    model: str
    text: str | None
    refusal: str | None
    finish_reason: str | None
    first: tuple[tuple[str, float], ...] | None
    """(token, log-prob) pairs at the first token's position; None if the server reported none."""
    usage: Usage
    latency_s: float

    @classmethod
    def of(cls, fields: Any) -> ChatCompletion:
        """Build a completion from the output of `dataclasses.asdict`, also after a way through JSON.

        Raises ValueError for anything else.
        """
        return _STORED.validate_python(fields)


def parse_completion(data: bytes, latency_s: float) -> ChatCompletion | RequestFailure:
    """Return a chat completion's JSON as an answer, or what is wrong with it.

    Log-probs that are not finite are left out.
    """
    try:
        # Strict: nothing is converted, so a number in the place of the text is an error and not its digits.
        parsed = _CompletionJson.model_validate_json(data, strict=True)
    except ValidationError as error:
        return _garbled(data, error)
    choice, usage = parsed.choices[0], parsed.usage
    return ChatCompletion(
        model=parsed.model,
        text=choice.message.content,
        refusal=choice.message.refusal,
        finish_reason=choice.finish_reason,
        first=choice.logprobs.first() if choice.logprobs else None,
        usage=Usage(usage.prompt_tokens, usage.completion_tokens),
        latency_s=latency_s,
    )


def _garbled(data: bytes, error: ValidationError) -> RequestFailure:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # Bytes that are not JSON come from something between here and the model (a proxy's page), so another attempt may
    # succeed. JSON in another form is the server's own, and would come again.
    if first["type"] == "json_invalid":
        return RequestFailure("garbled", f"{len(data)} bytes that are not JSON", again=True, used=True)
    place = ".".join(map(str, first["loc"]))
    return RequestFailure("garbled", f"another form of JSON: {place}: {first['msg']}", used=True)


def outcome_of(
    answer: ChatCompletion, request: ChatRequest, prompt_hash: str, cached: bool = False
) -> Reply | Unanswered:
    """Return the reply that an answer gives to a request, or why it gives none.

    With choices the first token decides, so the rest of the answer may be cut or empty.
    """
    fault = _fault(answer, bool(request.choices))
    if fault:
        kind, reason = fault
        return Unanswered(request.key, kind, reason, prompt_hash, answer)
    return Reply(
        key=request.key,
        text=answer.text or "",
        finish_reason=answer.finish_reason or "",
        usage=answer.usage,
        model=answer.model,
        prompt_hash=prompt_hash,
        latency_s=answer.latency_s,
        cached=cached,
        first=answer.first or (),
    )


def _record(prompt_hash: str, answer: Reply | ChatCompletion) -> dict[str, Any]:
    return {
        "prompt_hash": prompt_hash,
        "model": answer.model,
        "finish_reason": answer.finish_reason,
        "latency_s": answer.latency_s,
        **asdict(answer.usage),
    }


def _fault(answer: ChatCompletion, first_token: bool) -> tuple[FailureKind, str] | None:
    """Return (kind, reason) for an answer that cannot be used. The order matters: a refusal comes before all others."""
    if answer.refusal:
        return "refused", f"the model refused: {answer.refusal[:200]}"
    if answer.finish_reason == "content_filter":
        return "refused", "the server's content filter"
    if first_token:
        return None if answer.first else ("no log-probs", "no log-probs of the first token, although asked for")
    if not (answer.text or "").strip():
        return "empty", f"an empty answer (finish_reason {answer.finish_reason})"
    if answer.finish_reason == "length":
        return "cut", "the answer was cut at max_tokens"
    return None


# -- the forms of JSON that are read; fields that are not named here are ignored, as every server adds its own


class _Pair(BaseModel):
    token: str
    logprob: float


class _Token(_Pair):
    top_logprobs: list[_Pair] | None = None


class _Logprobs(BaseModel):
    content: list[_Token] | None = None

    def first(self) -> tuple[tuple[str, float], ...] | None:
        """Return the likeliest first tokens, and the sampled one if it is not among them; None without any."""
        if not self.content:
            return None
        sampled = self.content[0]
        pairs = [(pair.token, pair.logprob) for pair in sampled.top_logprobs or ()]
        if sampled.token not in dict(pairs):
            pairs.append((sampled.token, sampled.logprob))
        finite = [(token, value) for token, value in pairs if math.isfinite(value)]
        return tuple(finite) or None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Counts(BaseModel):
    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt


class _CompletionJson(BaseModel):
    model: str
    choices: list[_Choice] = Field(min_length=1)
    usage: _Counts


_STORED = TypeAdapter(ChatCompletion)
