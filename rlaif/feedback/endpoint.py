"""A judge behind a server that speaks OpenAI's chat completions: vLLM's `vllm serve`, or a hosted one.

Many questions are open at a time. Answers are stored under the hash of the question, so that after a kill, after an
error, or in another run they cost nothing. A question without a usable answer comes back as `Unanswered` with a reason.
Log-probs are reported as the server computes them: those of vLLM are the model's own, before temperature, unless it was
started with another `--logprobs-mode`.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from rlaif.config.server import Server
from rlaif.errors import ConfigError, ContractError
from rlaif.feedback.budget import Budget, cost
from rlaif.feedback.chat_client import api_key, check_answering_model, http_client, post_chat
from rlaif.feedback.chat_request import ChatRequest, EndpointOptions, canonical, messages, prompt_hash
from rlaif.feedback.chat_response import (
    SETTLED,
    ChatCompletion,
    Reply,
    RequestFailure,
    Unanswered,
    Usage,
    outcome_of,
)
from rlaif.io.storage import Location, locate

ChatOutcome = Reply | Unanswered
SILENT = ("down", "slow", "busy", "server error")
"""Failures that say something about the server, not about the question."""


class Endpoint:
    """One judge with its stored answers (`answers`) and its usage (`used`). For one thread at a time."""

    def __init__(
        self, options: EndpointOptions, used: Usage | None = None, keep: Callable[[Usage], None] = lambda used: None
    ):
        """Prepare to ask; nothing is sent yet.

        `used`: usage that counts against the budgets already, for a run that continues. `keep`: called after every
        request with the usage that counts now.

        Raises ConfigError if the API key is missing.
        """
        api_key(options.server)
        self.options, self.answers = options, AnswerCache(options.cache)
        self._before, self.keep = used or Usage(), keep
        self.budget, self.counts = Budget(options, self._before), Counts()

    @property
    def used(self) -> Usage:
        """Usage that counts against the budgets: the usage from before and that of every request since.

        Failed requests that the server may have computed are included.
        """
        return self.budget.used

    def spent(self) -> dict[str, float | None]:
        """Return requests, questions, tokens and money of this endpoint alone; `cost` is None without prices."""
        used = self.used.plus(self._before, -1)
        money = cost(self.options.server, used)
        return {**asdict(self.counts), **asdict(used), "cost": money}

    def ask_many(self, requests: Iterable[ChatRequest]) -> list[ChatOutcome]:
        """Return one outcome per question, in order.

        Questions are taken from the iterable as room becomes free, so a generator holds few images.

        Raises:
            ConfigError: if no request can succeed: the key, the model, the address or the certificate is wrong.
            ContractError: for an answer by another model, or a question that cannot be asked. Answers from before any
                error are stored, and cost nothing when the questions are asked again.
        """
        return _finish(_Run(self, requests).all())


@dataclass
class Counts:
    """How questions were answered."""

    requests: int = 0
    """Requests sent, retries included."""
    retries: int = 0
    cached: int = 0
    """Questions whose answer was stored already: asked in an earlier run, or twice in this one."""


class AnswerCache:
    """Answers by the hash of the question: in memory, and in one file each if there is a folder.

    A file is replaced as a whole, so that runs can share a folder. A file whose content does not match its name is
    ignored.
    """

    def __init__(self, folder: str | None):
        self._folder = locate(folder) if folder else None
        self._answers: dict[str, ChatCompletion] = {}

    def get(self, key: str) -> ChatCompletion | None:
        """Return the answer under a prompt hash, or None. Raises ConfigError if the folder cannot be read."""
        if key not in self._answers:
            answer = self._load(key)
            if answer:
                self._answers[key] = answer
        return self._answers.get(key)

    def put(self, canonical_text: str, answer: ChatCompletion) -> None:
        """Store the answer to a question (`canonical`). Raises ConfigError if the folder cannot be written."""
        key = prompt_hash(canonical_text)
        self._answers[key] = answer
        if self._folder:
            # The question itself is stored too: `_load` checks it against the name of the file.
            content = {"asked": canonical_text, "answer": asdict(answer)}
            data = json.dumps(content, ensure_ascii=False).encode()
            try:
                self._file(key).write(data)
            except OSError as error:
                raise self._unusable(error) from error

    def _load(self, key: str) -> ChatCompletion | None:
        """Return the answer in a file; None if there is none, or none that can be read: the question is asked again."""
        if not self._folder:
            return None
        try:
            content = json.loads(self._file(key).read())
            return ChatCompletion.of(content["answer"]) if prompt_hash(content["asked"]) == key else None
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None
        except OSError as error:
            raise self._unusable(error) from error

    def _file(self, key: str) -> Location:
        return self._folder / key[:2] / f"{key}.json"

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"a folder for answers at {self._folder}",
            str(error),
            "Set cache to a folder that can be written, or change its permissions.",
        )


class _Run:
    """One `ask_many`: workers take questions in turn until none is left or one of them meets an error."""

    def __init__(self, endpoint: Endpoint, requests: Iterable[ChatRequest]):
        self.options, self.server, self.answers = endpoint.options, endpoint.options.server, endpoint.answers
        self.budget, self.counts, self._keep = endpoint.budget, endpoint.counts, endpoint.keep
        self._requests, self._turn = enumerate(requests), asyncio.Lock()
        self._locks: dict[str, asyncio.Lock] = {}
        self._outcomes: dict[int, ChatOutcome] = {}
        self._error: Exception | None = None
        self._silent, self._last_reason = 0, ""

    async def all(self) -> list[ChatOutcome]:
        """Return the outcomes in the order of the questions, or raise the first error after open requests have ended."""
        self.budget.begin()
        async with http_client(self.server) as self.http:
            workers = [self._work() for _ in range(self.server.concurrency)]
            await asyncio.gather(*workers)
        if self._error:
            raise self._error
        return [self._outcomes[index] for index in range(len(self._outcomes))]

    async def _work(self) -> None:
        """Answer one question after the other.

        After an error no worker takes another question, but open requests are waited for: they may be paid for.
        """
        while not self._error:
            try:
                # The next question may decode frames: in a thread, so that it does not block the deadlines of requests.
                async with self._turn:
                    numbered = await asyncio.to_thread(next, self._requests, None)
                if numbered is None:
                    return
                number, request = numbered
                self._outcomes[number] = await self._settle(request)
            except Exception as error:
                # The first error is raised by `all`; later ones are mostly its consequences.
                self._error = self._error or error

    async def _settle(self, request: ChatRequest) -> ChatOutcome:
        """Return the stored answer, or ask and store the new one."""
        self._check_images(request)
        sampling = self.options.sampling(request.seed, bool(request.choices))
        text = canonical(self.server.origin or self.server.address, sampling, request.turns)
        key = prompt_hash(text)
        # One lock per question: a question that comes twice is sent once, and the second finds the stored answer.
        async with self._locks.setdefault(key, asyncio.Lock()):
            # In a thread, as in `put` below: the folder may be a bucket.
            stored = await asyncio.to_thread(self.answers.get, key)
            if stored:
                self.budget.note(stored.usage)
                self.counts.cached += 1
                return outcome_of(stored, request, key, cached=True)
            answer = await self._ask(request)
            if isinstance(answer, RequestFailure):
                return Unanswered(request.key, answer.kind, answer.reason, key)
            result = outcome_of(answer, request, key)
            if isinstance(result, Reply) or result.kind in SETTLED:
                await asyncio.to_thread(self.answers.put, text, answer)
            return result

    def _check_images(self, request: ChatRequest) -> None:
        images = 0
        for turn in request.turns:
            images += len(turn.images)
        if images > self.server.max_images:
            raise ContractError(
                f"at most {self.server.max_images} images in a question",
                f"{images} in {request.key!r}",
                "Use fewer frames, or raise max_images (and the server's own limit).",
            )

    async def _ask(self, request: ChatRequest) -> ChatCompletion | RequestFailure:
        """Send until there is an answer, a failure that another attempt cannot change, or no attempt is left."""
        for attempt in range(self.server.retries + 1):
            if reason := self._stop_reason():
                return RequestFailure("given up", f"not sent: {reason}")
            if reason := await self.budget.reserve():
                return RequestFailure("budget", reason)
            self.counts.requests += 1
            self.counts.retries += attempt > 0
            result = await self._send(request)
            if isinstance(result, ChatCompletion) or not result.again:
                break
            if attempt < self.server.retries:
                await asyncio.sleep(backoff_seconds(self.server, attempt, result.wait_s, random.random()))
        self._count_silence(result)
        return result

    async def _send(self, request: ChatRequest) -> ChatCompletion | RequestFailure:
        """Send one request and settle its usage with the budget, whatever happens."""
        used: Usage | None = Usage()
        try:
            sampling = self.options.sampling(request.seed, bool(request.choices))
            body = {**sampling, "messages": messages(request.turns)}
            result = await post_chat(self.http, self.server, body)
            if isinstance(result, ChatCompletion):
                # The usage first: an answer of another model is an error, and is paid for all the same.
                used = result.usage
                check_answering_model(self.server, result)
            elif result.used:
                used = None
            return result
        finally:
            await self.budget.settle(used)
            self._keep(self.budget.used)

    def _stop_reason(self) -> str:
        """Return why nothing is sent any more, or ""."""
        if self._error:
            return "an error has stopped the run"
        if self._silent >= self.server.give_up_after:
            return f"{self._silent} questions in a row went unanswered ({self._last_reason})"
        return ""

    def _count_silence(self, result: ChatCompletion | RequestFailure) -> None:
        """Count the questions in a row to which the server kept silent."""
        if isinstance(result, RequestFailure) and result.kind in SILENT:
            self._silent, self._last_reason = self._silent + 1, result.reason
        elif self._silent < self.server.give_up_after:
            # Once the limit is reached it stays reached: answers that were still open do not restart the run.
            self._silent = 0


def backoff_seconds(server: Server, attempt: int, requested: float | None, draw: float) -> float:
    """Return the seconds before the retry after `attempt` (from 0): "full jitter", at least `requested` by the server.

    `draw` is uniform in [0, 1); no wait exceeds `max_backoff_s`. See Brooker, "Exponential Backoff and Jitter" (AWS
    Architecture Blog, 2015).
    """
    jitter = draw * server.backoff_s * 2**attempt
    return min(server.max_backoff_s, max(jitter, requested or 0.0))


def _finish(coroutine: Coroutine[Any, Any, list[ChatOutcome]]) -> list[ChatOutcome]:
    """Run to the end; in a thread of its own if this one has an event loop, as in Ray's async actors."""
    try:
        inside_loop = asyncio.get_running_loop() is not None
    except RuntimeError:
        inside_loop = False
    # Not inside the `except` clause: errors of the coroutine would carry the RuntimeError as their context.
    if not inside_loop:
        return asyncio.run(coroutine)
    # `asyncio.run` refuses to start inside a running loop; a thread has none.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
