"""What a judge's server answers, and what is made of it: a reply, or a masked question with its reason."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, Field, NonNegativeInt, TypeAdapter, ValidationError

from rlaif.feedback.chat_request import Ask

Kind = Literal[
    "down",  # no connection, or one that broke
    "slow",  # no whole answer within the deadline
    "busy",  # 429
    "server error",  # 5xx
    "rejected",  # another 4xx: this request is not to the server's liking
    "garbled",  # an answer that cannot be read
    "refused",  # by the model or by a filter
    "cut",  # at max_tokens
    "empty",
    "no log-probs",
    "budget",
    "given up",  # not sent: too many before it went unanswered
]
SETTLED = ("refused", "cut")
"""The model's own doing: asked again it would be the same, so that the answer is kept like any other."""


@dataclass(frozen=True)
class Usage:
    """Tokens as the server counts them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def plus(self, other: Usage, times: int = 1) -> Usage:
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
    """`stop`; or `length` where choices were wanted: then the first token is the answer."""
    usage: Usage
    model: str
    prompt_hash: str
    latency_s: float
    """Of the request that was answered, without the failed ones before it."""
    cached: bool = False
    """Answered before, so that nothing was spent now; usage and latency are those of then."""
    first: tuple[tuple[str, float], ...] = ()
    """(token, log-prob) of every reported first token."""

    def record(self) -> dict[str, Any]:
        """What was asked of whom and what it took, to be stored next to a judgement; plain values for JSON.

        The same from the cache as from the server: `cached` says something of one run, not of the judgement.
        """
        return _record(self.prompt_hash, self)


@dataclass(frozen=True)
class Unanswered:
    """A question without a usable answer; what depends on it is masked. It never becomes a number."""

    key: Hashable
    kind: Kind
    reason: str
    prompt_hash: str = ""
    answer: Answer | None = None
    """What the server said, where it said anything."""

    def record(self) -> dict[str, Any]:
        """As of a `Reply`, with the kind of failure as `masked`; empty where the server said nothing."""
        return _record(self.prompt_hash, self.answer) | {"masked": self.kind} if self.answer else {}


@dataclass(frozen=True)
class Failure:
    """One request that brought no answer."""

    kind: Kind
    reason: str
    again: bool = False
    """Another attempt may fare better."""
    wait_s: float | None = None
    """What the server asks to wait before it."""
    used: bool = False
    """The server may have computed an answer, and may charge for it."""


@dataclass(frozen=True)
class Answer:
    """What the server said, as it is kept."""

    model: str
    text: str | None
    refusal: str | None
    finish_reason: str | None
    first: tuple[tuple[str, float], ...] | None
    """(token, log-prob) pairs of the first token's place; None where the server reported none."""
    usage: Usage
    latency_s: float

    @classmethod
    def of(cls, fields: Any) -> Answer:
        """The inverse of `dataclasses.asdict`, also after a way through JSON; ValueError for anything else."""
        return _KEPT.validate_python(fields)


def parse(data: bytes, latency_s: float) -> Answer | Failure:
    """A chat completion's JSON as an answer, or what is wrong with it. Log-probs that are not finite are left out."""
    try:
        found = _Completion.model_validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        # what is no JSON at all comes from something between here and the model, and may not come twice
        no_json = first["type"] == "json_invalid"
        reason = f"{len(data)} bytes that are no JSON" if no_json else f"another form of JSON: {place}: {first['msg']}"
        return Failure("garbled", reason, again=no_json, used=True)
    choice, usage = found.choices[0], found.usage
    return Answer(
        model=found.model,
        text=choice.message.content,
        refusal=choice.message.refusal,
        finish_reason=choice.finish_reason,
        first=choice.logprobs.first() if choice.logprobs else None,
        usage=Usage(usage.prompt_tokens, usage.completion_tokens),
        latency_s=latency_s,
    )


def outcome(answer: Answer, ask: Ask, prompt_hash: str, cached: bool = False) -> Reply | Unanswered:
    """What an answer is worth to the question. With choices the first token decides, so the rest may be cut or empty."""
    masked = _fault(answer, bool(ask.choices))
    if masked:
        return Unanswered(ask.key, masked[0], masked[1], prompt_hash, answer)
    return Reply(
        key=ask.key,
        text=answer.text or "",
        finish_reason=answer.finish_reason or "",
        usage=answer.usage,
        model=answer.model,
        prompt_hash=prompt_hash,
        latency_s=answer.latency_s,
        cached=cached,
        first=answer.first or (),
    )


def _record(prompt_hash: str, said: Reply | Answer) -> dict[str, Any]:
    names = ("model", "finish_reason", "latency_s")
    return {"prompt_hash": prompt_hash, **{name: getattr(said, name) for name in names}, **asdict(said.usage)}


def _fault(answer: Answer, first_token: bool) -> tuple[Kind, str] | None:
    if answer.refusal:
        return "refused", f"the model refused: {answer.refusal[:200]}"
    if answer.finish_reason == "content_filter":
        return "refused", "the server's content filter"
    if first_token:
        return None if answer.first else ("no log-probs", "no log-probs of the first token, although asked for")
    if not (answer.text or "").strip():
        return "empty", f"an empty answer (finish_reason {answer.finish_reason})"
    return ("cut", "the answer was cut at max_tokens") if answer.finish_reason == "length" else None


# -- the forms of JSON that are read


class _Pair(BaseModel):
    token: str
    logprob: float


class _Token(_Pair):
    top_logprobs: list[_Pair] | None = None


class _Logprobs(BaseModel):
    content: list[_Token] | None = None

    def first(self) -> tuple[tuple[str, float], ...] | None:
        """Of the likeliest tokens, and of the sampled one where it is not among them."""
        if not self.content:
            return None
        sampled = self.content[0]
        pairs = [(pair.token, pair.logprob) for pair in sampled.top_logprobs or ()]
        if sampled.token not in dict(pairs):
            pairs.append((sampled.token, sampled.logprob))
        return tuple((token, value) for token, value in pairs if math.isfinite(value)) or None


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


class _Completion(BaseModel):
    model: str
    choices: list[_Choice] = Field(min_length=1)
    usage: _Counts


_KEPT = TypeAdapter(Answer)
