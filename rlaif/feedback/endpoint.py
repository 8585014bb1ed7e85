"""A judge behind a server that speaks OpenAI's chat completions: vLLM's `vllm serve`, or a hosted one.

Questions go out many at a time. What was answered is kept under the hash of what was asked, so that after a kill, an
error, or in another run it costs nothing. A question without a usable answer comes back as `Unanswered` with a reason.
Log-probs are as the server has them: those of vLLM are the model's own, before temperature, unless it was started with
another `--logprobs-mode`.
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
from rlaif.feedback.chat_client import api_key, check_model, client, post
from rlaif.feedback.chat_request import Ask, EndpointOptions, canonical, messages, prompt_hash
from rlaif.feedback.chat_response import SETTLED, Answer, Failure, Reply, Unanswered, Usage, outcome
from rlaif.storage import Location, locate

Outcome = Reply | Unanswered
SILENT = ("down", "slow", "busy", "server error")
"""Failures that say something about the server, not about the question."""


class Endpoint:
    """One judge, what it answered so far (`answers`), and what that took (`used`). For one thread at a time."""

    def __init__(
        self, options: EndpointOptions, used: Usage | None = None, keep: Callable[[Usage], None] = lambda used: None
    ):
        """`used`: what counts against the budgets already, for a run that goes on. `keep`: told what does so now, after every
        request.

        Raises ConfigError where the API key is missing.
        """
        api_key(options.server)
        self.options, self.answers = options, Answers(options.cache)
        self._before, self.keep = used or Usage(), keep
        self.budget, self.counts = Budget(options, self._before), Counts()

    @property
    def used(self) -> Usage:
        """What counts against the budgets: before, and by every request since, failed ones that may have been computed
        included."""
        return self.budget.used

    def spent(self) -> dict[str, float | None]:
        """Requests, questions, tokens and money of this endpoint, without those before; `cost` is None without prices."""
        used = self.used.plus(self._before, -1)
        return {**asdict(self.counts), **asdict(used), "cost": cost(self.options.server, used)}

    def ask_many(self, asks: Iterable[Ask]) -> list[Outcome]:
        """One outcome per question, in order. Questions are taken as there is room, so a generator holds few images.

        Raises:
            ConfigError: where no request can succeed: the key, the model, the address or the certificate is wrong.
            ContractError: an answer by another model, or a question that cannot be asked. What was answered before any
                error is kept, and costs nothing when it is asked again.
        """
        return _finish(_Run(self, asks).all())


@dataclass
class Counts:
    """How questions were answered."""

    requests: int = 0
    """Sent, retries included."""
    retries: int = 0
    cached: int = 0
    """Questions whose answer was kept already: asked in an earlier run, or twice in this one."""


class Answers:
    """Answers by the hash of what was asked: in memory, and one file each where there is a folder.

    A file is replaced as a whole, so that runs can share a folder; one that does not hold what its name says is no answer.
    """

    def __init__(self, folder: str | None):
        self._folder = locate(folder) if folder else None
        self._held: dict[str, Answer] = {}

    def get(self, key: str) -> Answer | None:
        if key not in self._held and (answer := self._load(key)):
            self._held[key] = answer
        return self._held.get(key)

    def put(self, asked: str, answer: Answer) -> None:
        key = prompt_hash(asked)
        self._held[key] = answer
        if self._folder:
            data = json.dumps({"asked": asked, "answer": asdict(answer)}, ensure_ascii=False).encode()
            try:
                self._file(key).write(data)
            except OSError as error:
                raise self._unusable(error) from error

    def _load(self, key: str) -> Answer | None:
        if not self._folder:
            return None
        try:
            kept = json.loads(self._file(key).read())
            return Answer.of(kept["answer"]) if prompt_hash(kept["asked"]) == key else None
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
            "Set cache to a folder that can be written, or change its permissions",
        )


class _Run:
    """One `ask_many`: workers that take questions in turn until none is left or one of them meets an error."""

    def __init__(self, endpoint: Endpoint, asks: Iterable[Ask]):
        self.options, self.server, self.answers = endpoint.options, endpoint.options.server, endpoint.answers
        self.budget, self.counts, self._keep = endpoint.budget, endpoint.counts, endpoint.keep
        self._asks, self._turn = enumerate(asks), asyncio.Lock()
        self._locks: dict[str, asyncio.Lock] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._error: Exception | None = None
        self._silent, self._last = 0, ""

    async def all(self) -> list[Outcome]:
        self.budget.begin()
        async with client(self.server) as self.http:
            await asyncio.gather(*(self._work() for _ in range(self.server.concurrency)))
        if self._error:
            raise self._error
        return [self._outcomes[index] for index in range(len(self._outcomes))]

    async def _work(self) -> None:
        """After an error no worker takes another question, but what is open is waited for: it may be paid for."""
        while not self._error:
            try:
                async with self._turn:  # the next question may have frames to decode: not where deadlines are kept
                    taken = await asyncio.to_thread(next, self._asks, None)
                if taken is None:
                    return
                self._outcomes[taken[0]] = await self._settle(taken[1])
            except Exception as error:
                self._error = self._error or error

    async def _settle(self, ask: Ask) -> Outcome:
        images = sum(len(turn.images) for turn in ask.turns)
        if images > self.server.max_images:
            raise ContractError(
                f"at most {self.server.max_images} images in a question",
                f"{images} in {ask.key!r}",
                "Use fewer frames, or raise max_images (and the server's own limit)",
            )
        asked = canonical(
            self.server.origin or self.server.address, self.options.sampling(ask.seed, bool(ask.choices)), ask.turns
        )
        key = prompt_hash(asked)
        async with self._locks.setdefault(key, asyncio.Lock()):  # the same question twice is asked once
            if kept := await asyncio.to_thread(self.answers.get, key):
                self.budget.seen(kept.usage)
                self.counts.cached += 1
                return outcome(kept, ask, key, cached=True)
            answer = await self._ask(ask)
            if isinstance(answer, Failure):
                return Unanswered(ask.key, answer.kind, answer.reason, key)
            result = outcome(answer, ask, key)
            if isinstance(result, Reply) or result.kind in SETTLED:
                await asyncio.to_thread(self.answers.put, asked, answer)
            return result

    async def _ask(self, ask: Ask) -> Answer | Failure:
        """Send until there is an answer, the failure is of a kind that stays, or the attempts are used up."""
        for attempt in range(self.server.retries + 1):
            if reason := self._stopped():
                return Failure("given up", f"not sent: {reason}")
            if reason := await self.budget.reserve():
                return Failure("budget", reason)
            self.counts.requests += 1
            self.counts.retries += attempt > 0
            got = await self._send(ask)
            if isinstance(got, Answer) or not got.again:
                break
            if attempt < self.server.retries:
                await asyncio.sleep(wait(self.server, attempt, got.wait_s, random.random()))
        self._heed(got)
        return got

    async def _send(self, ask: Ask) -> Answer | Failure:
        """One request, with what it used."""
        used: Usage | None = Usage()
        try:
            sampling = self.options.sampling(ask.seed, bool(ask.choices))
            got = await post(self.http, self.server, {**sampling, "messages": messages(ask.turns)})
            if isinstance(got, Answer):
                used = got.usage
                check_model(self.server, got)
            elif got.used:
                used = None
            return got
        finally:
            await self.budget.settle(used)
            self._keep(self.budget.used)

    def _stopped(self) -> str:
        """Why nothing is sent any more, or ""."""
        if self._error:
            return "an error has stopped the run"
        silent = self._silent >= self.server.give_up_after
        return f"{self._silent} questions in a row went unanswered ({self._last})" if silent else ""

    def _heed(self, got: Answer | Failure) -> None:
        """Count questions in a row to which the server kept silent."""
        if isinstance(got, Failure) and got.kind in SILENT:
            self._silent, self._last = self._silent + 1, got.reason
        elif self._silent < self.server.give_up_after:
            self._silent = 0


def wait(server: Server, attempt: int, asked: float | None, draw: float) -> float:
    """Seconds before the retry after `attempt` (from 0): "full jitter", but what the server asks for at least.

    `draw`: uniform in [0, 1). See Brooker, "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015).
    """
    return min(server.max_backoff_s, max(draw * server.backoff_s * 2**attempt, asked or 0.0))


def _finish(coroutine: Coroutine[Any, Any, list[Outcome]]) -> list[Outcome]:
    """Run to the end; in a thread of its own where this one has an event loop, as in Ray's async actors."""
    try:
        inside = asyncio.get_running_loop()
    except RuntimeError:
        inside = None
    if not inside:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
