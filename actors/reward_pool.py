"""Which reward actor scores which answers, and what happens to one that hangs or dies. Plain scheduling over handles."""

from __future__ import annotations

import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from actors.calls import Calls, RayCalls
from actors.reward import RewardActor
from cluster.env import actor_env
from rlaif.config.schema import Model
from rlaif.errors import ContractError, DeadlineError
from rlaif.records import Key, Masked, Outcome, RewardInput

log = logging.getLogger(__name__)

ATTEMPTS = 2
"""How often an answer is asked for before it is masked."""


@dataclass(eq=False)
class Scoring:
    """A batch of answers that was handed to the pool, for `RewardPool.collect`."""

    keys: frozenset[Key]
    outcomes: dict[Key, Outcome] = field(default_factory=dict)


@dataclass
class _Part:
    """Answers that one actor scores in one call. Without a batch, it is the call that returns when a model is loaded."""

    answers: list[RewardInput]
    batch: Scoring | None
    attempt: int = 1


@dataclass
class _Slot:
    """One reward actor's place. Another actor takes it if the first one fails."""

    index: int
    actor: Any
    waiting: deque[tuple[Any, _Part]] = field(default_factory=deque)
    """References and parts in the order of the calls, which is the order in which the actor runs them."""
    since: float = 0.0
    """When the first of them began, as far as the pool has seen."""
    busy_s: float = 0.0

    @property
    def load(self) -> int:
        """Answers that are not scored yet."""
        return sum(len(part.answers) for _, part in self.waiting)

    @property
    def limit(self) -> str:
        return "loading" if self.waiting and self.waiting[0][1].batch is None else "scoring"


class RewardPool:
    """Reward actors side by side. Each batch goes to the one with the fewest answers to score.

    An actor that takes longer than `timeout_s` for a batch, or dies, is replaced. What waited behind that batch is asked of
    the others as it is. The batch itself is asked once more, prompt by prompt, since one bad prompt must not cost the
    others; answers to a prompt that fails again are masked with the reason.
    """

    def __init__(
        self,
        start: Callable[[int], Any],
        count: int,
        *,
        timeout_s: float,
        loading_timeout_s: float,
        calls: Calls | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`start(index)` makes an actor; `loading_timeout_s`: how long it may take until it can score."""
        self._start, self._calls, self._clock = start, calls or RayCalls(), clock
        self._limits = {"loading": loading_timeout_s, "scoring": timeout_s}
        self._slots = [_Slot(index, None) for index in range(count)]
        self.replaced: list[str] = []
        """Why actors were replaced."""
        for slot in self._slots:
            self._fill(slot)

    @property
    def handles(self) -> list[Any]:
        return [slot.actor for slot in self._slots]

    def score(self, answers: Sequence[RewardInput]) -> Scoring:
        """Ask for scores; returns at once."""
        self._drain()
        batch = Scoring(frozenset(answer.key for answer in answers))
        if answers:
            self._issue(_Part(list(answers), batch))
        return batch

    def collect(self, batches: Sequence[Scoring]) -> dict[Key, Outcome]:
        """Wait for batches; return one outcome per answer. Every wait has a deadline, so this ends.

        Raises:
            DeadlineError: an actor does not finish loading.
            ContractError: an actor scored other answers than it was asked to.
        """
        while any(batch.outcomes.keys() != batch.keys for batch in batches):
            self._step()
        return {key: outcome for batch in batches for key, outcome in batch.outcomes.items()}

    def wait_ready(self) -> None:
        """Return when every actor has loaded its model; an error while loading comes out here."""
        while any(part.batch is None for slot in self._slots for _, part in slot.waiting):
            self._step()

    def busy_seconds(self) -> float:
        """Seconds that the busiest actor has spent on what was collected."""
        return max(slot.busy_s for slot in self._slots)

    def stop(self) -> None:
        for slot in self._slots:
            self._calls.kill(slot.actor)

    # ------------------------------------------------------------------ waiting

    def _step(self) -> None:
        """Wait until an actor has finished what it does, or has taken too long for it."""
        working = [slot for slot in self._slots if slot.waiting]
        left = min(self._until(slot) for slot in working) - self._clock()
        if (slot := self._finished(working, max(0.0, left))) is not None:
            return self._take(slot)
        for slot in working:
            if self._clock() >= self._until(slot):
                self._too_late(slot)

    def _drain(self) -> None:
        """Take what has finished already, so that loads are as they are."""
        while (slot := self._finished([slot for slot in self._slots if slot.waiting], 0.0)) is not None:
            self._take(slot)

    def _finished(self, slots: Sequence[_Slot], timeout_s: float) -> _Slot | None:
        heads = {slot.waiting[0][0]: slot for slot in slots}
        ref = self._calls.first(list(heads), timeout_s) if heads else None
        return None if ref is None else heads[ref]

    def _until(self, slot: _Slot) -> float:
        return slot.since + self._limits[slot.limit]

    def _take(self, slot: _Slot) -> None:
        """The result of a call that has ended."""
        ref, part = slot.waiting[0]
        try:
            result = self._calls.get(ref, self._limits["scoring"])
        except RayActorError as error:
            if part.batch is None:
                raise  # a model that cannot be loaded here cannot be loaded by another actor either
            return self._replace(slot, f"died ({str(error).strip().splitlines()[0]})")
        except GetTimeoutError:
            return self._too_late(slot)
        slot.waiting.popleft()
        slot.since = self._clock()
        if part.batch is not None:
            outcomes, seconds = result
            slot.busy_s += seconds
            part.batch.outcomes |= _checked(part, outcomes)

    def _too_late(self, slot: _Slot) -> None:
        limit = self._limits[slot.limit]
        if slot.limit == "loading":
            raise DeadlineError(
                f"a reward actor that is ready within {limit:g} s",
                f"none from reward actor {slot.index}",
                "Look at its log; raise cluster.collective_timeout_s if it is only slow",
            )
        self._replace(slot, f"did not score a batch within {limit:g} s (ppo.reward_timeout_s)")

    # ---------------------------------------------------------------- scheduling

    def _issue(self, part: _Part) -> None:
        """Ask the actor with the least to do."""
        slot = min(self._slots, key=lambda slot: (slot.load, len(slot.waiting)))
        if not slot.waiting:
            slot.since = self._clock()
        slot.waiting.append((slot.actor.score_timed.remote(part.answers), part))

    def _fill(self, slot: _Slot) -> None:
        slot.actor, slot.since = self._start(slot.index), self._clock()
        slot.waiting.append((slot.actor.ready.remote(), _Part([], None)))

    def _replace(self, slot: _Slot, reason: str) -> None:
        """Start another actor in the place of one that failed at the first of its parts."""
        failed, *others = [part for _, part in slot.waiting]
        log.warning("reward actor %d is replaced: it %s", slot.index, reason)
        self.replaced.append(reason)
        self._calls.kill(slot.actor)
        slot.waiting.clear()
        self._fill(slot)
        for part in others:  # before those that may hang again
            self._issue(part)
        if failed.attempt == ATTEMPTS:
            masked = Masked(f"the reward actor {reason}, {ATTEMPTS} times")
            failed.batch.outcomes |= {answer.key: masked for answer in failed.answers}
            return
        for answers in _by_prompt(failed.answers):
            self._issue(_Part(answers, failed.batch, failed.attempt + 1))


def start_reward_pool(
    options: Sequence[dict],
    threads: int,
    device: str,
    *,
    timeout_s: float,
    loading_timeout_s: float,
    model: Model,
    **actor_args: Any,
) -> RewardPool:
    """Start a reward actor for each of `options` (Ray's actor options); `actor_args` are RewardActor's."""
    env = {"env_vars": actor_env(threads, device, model.dtype)}
    make = ray.remote(RewardActor)

    def start(index: int) -> Any:
        return make.options(runtime_env=env, **options[index]).remote(threads=threads, model=model, **actor_args)

    return RewardPool(start, len(options), timeout_s=timeout_s, loading_timeout_s=loading_timeout_s)


def _by_prompt(answers: Iterable[RewardInput]) -> list[list[RewardInput]]:
    ordered = sorted(answers, key=lambda answer: answer.key)
    return [list(group) for _, group in itertools.groupby(ordered, key=lambda answer: answer.key[0])]


def _checked(part: _Part, outcomes: dict[Key, Outcome]) -> dict[Key, Outcome]:
    asked = {answer.key for answer in part.answers}
    if outcomes.keys() != asked:
        raise ContractError(
            f"{len(asked)} scores for as many answers", f"{len(outcomes)}", "Report this with the reward actors' logs"
        )
    return outcomes
