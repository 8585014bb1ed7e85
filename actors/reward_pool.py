"""Which reward actor scores which answers, and what replaces one that hangs or dies. Plain scheduling over handles."""

from __future__ import annotations

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
"""How often an answer is sent to an actor before it is masked."""


@dataclass(eq=False)
class ScoringBatch:
    """A batch of answers that the pool scores, for `RewardPool.collect`."""

    keys: frozenset[Key]
    outcomes: dict[Key, Outcome] = field(default_factory=dict)


@dataclass
class _Part:
    """Answers that one actor scores in one call. Without a batch, it is the call that returns when a model is loaded."""

    answers: list[RewardInput]
    batch: ScoringBatch | None
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
    def is_loading(self) -> bool:
        """Return whether the actor has not loaded its model yet."""
        return any(part.batch is None for _, part in self.waiting)

    @property
    def load(self) -> int:
        """Return the number of answers that are not scored yet."""
        return sum(len(part.answers) for _, part in self.waiting)

    @property
    def limit(self) -> str:
        """Return which limit holds for the first of them."""
        if not self.waiting:
            return "scoring"
        _, part = self.waiting[0]
        return "loading" if part.batch is None else "scoring"


class RewardPool:
    """Reward actors side by side. Each batch goes to the one with the fewest answers to score.

    An actor that takes longer than `timeout_s` for a batch, or dies, is replaced. Its later batches go to the other actors as
    they are. The batch itself is sent once more, prompt by prompt, since one bad prompt must not cost the others; answers to
    a prompt that fails again are masked with the reason.
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
        """Start `count` actors; `start(index)` makes one; `loading_timeout_s`: how long it may take until it can score."""
        self._start, self._calls, self._clock = start, calls or RayCalls(), clock
        self._limits = {"loading": loading_timeout_s, "scoring": timeout_s}
        self._slots = [_Slot(index, None) for index in range(count)]
        self.replaced: list[str] = []
        """Why actors were replaced."""
        for slot in self._slots:
            self._fill(slot)

    @property
    def handles(self) -> list[Any]:
        """Return the actors' handles."""
        return [slot.actor for slot in self._slots]

    def score(self, answers: Sequence[RewardInput]) -> ScoringBatch:
        """Request scores; returns at once."""
        self._drain()
        batch = ScoringBatch(_keys(answers))
        if answers:
            self._issue(_Part(list(answers), batch))
        return batch

    def collect(self, batches: Sequence[ScoringBatch]) -> dict[Key, Outcome]:
        """Wait for batches; return one outcome per answer. Every wait has a deadline, so this ends.

        Raises:
            DeadlineError: an actor does not finish loading.
            ContractError: an actor scored other answers than it was sent.
        """
        while any(batch.outcomes.keys() != batch.keys for batch in batches):
            self._step()
        outcomes: dict[Key, Outcome] = {}
        for batch in batches:
            outcomes |= batch.outcomes
        return outcomes

    def wait_ready(self) -> None:
        """Return when every actor has loaded its model; an error while loading is raised here."""
        while any(slot.is_loading for slot in self._slots):
            self._step()

    def busy_seconds(self) -> float:
        """Return the seconds that the busiest actor has spent on what was collected."""
        return max(slot.busy_s for slot in self._slots)

    def stop(self) -> None:
        """End all actors."""
        for slot in self._slots:
            self._calls.kill(slot.actor)

    # ------------------------------------------------------------------ waiting

    def _step(self) -> None:
        """Wait until an actor has finished what it does, or has taken too long for it."""
        working = self._working()
        remaining_s = min(self._deadline(slot) for slot in working) - self._clock()
        slot = self._finished(working, max(0.0, remaining_s))
        if slot is not None:
            return self._take(slot)
        for slot in working:
            if self._clock() >= self._deadline(slot):
                self._too_late(slot)

    def _drain(self) -> None:
        """Take what has finished already, so that each actor's load is what it still has to do."""
        slot = self._finished(self._working(), 0.0)
        while slot is not None:
            self._take(slot)
            slot = self._finished(self._working(), 0.0)

    def _working(self) -> list[_Slot]:
        return [slot for slot in self._slots if slot.waiting]

    def _finished(self, slots: Sequence[_Slot], timeout_s: float) -> _Slot | None:
        """Return a slot whose first call has ended; None at the timeout."""
        by_ref = {slot.waiting[0][0]: slot for slot in slots}
        ref = self._calls.first(list(by_ref), timeout_s) if by_ref else None
        return None if ref is None else by_ref[ref]

    def _deadline(self, slot: _Slot) -> float:
        return slot.since + self._limits[slot.limit]

    def _take(self, slot: _Slot) -> None:
        """Take the result of a call that has ended."""
        ref, part = slot.waiting[0]
        try:
            result = self._calls.get(ref, self._limits["scoring"])
        except RayActorError as error:
            if part.batch is None:
                raise  # a model that cannot be loaded here cannot be loaded by another actor either
            first_line = str(error).strip().splitlines()[0]
            return self._replace(slot, f"died ({first_line})")
        except GetTimeoutError:
            return self._too_late(slot)
        slot.waiting.popleft()
        # the actor began its next call when it ended this one, as far as can be seen from here
        slot.since = self._clock()
        if part.batch is not None:
            outcomes, seconds = result
            slot.busy_s += seconds
            _check_keys(part, outcomes)
            part.batch.outcomes |= outcomes

    def _too_late(self, slot: _Slot) -> None:
        limit = self._limits[slot.limit]
        if slot.limit == "loading":
            raise DeadlineError(
                f"a reward actor that is ready within {limit:g} s",
                f"none from reward actor {slot.index}",
                "Look at its log; raise cluster.collective_timeout_s if it is only slow.",
            )
        self._replace(slot, f"did not score a batch within {limit:g} s (ppo.reward_timeout_s)")

    # ---------------------------------------------------------------- scheduling

    def _issue(self, part: _Part) -> None:
        """Give a part to the actor with the least to do."""
        # by answers, then by calls: an actor that still loads its model has no answers, but is not free
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
        # A hung actor is in a call and would never read a polite request; what it computes later must not come back.
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
        actor = make.options(runtime_env=env, **options[index])
        return actor.remote(threads=threads, model=model, **actor_args)

    return RewardPool(start, len(options), timeout_s=timeout_s, loading_timeout_s=loading_timeout_s)


def _by_prompt(answers: Iterable[RewardInput]) -> list[list[RewardInput]]:
    """Return the answers to each prompt, in the order of their keys."""
    ordered = sorted(answers, key=lambda answer: answer.key)
    groups: dict[str, list[RewardInput]] = {}
    for answer in ordered:
        prompt_id, _ = answer.key
        groups.setdefault(prompt_id, []).append(answer)
    return list(groups.values())


def _keys(answers: Iterable[RewardInput]) -> frozenset[Key]:
    return frozenset(answer.key for answer in answers)


def _check_keys(part: _Part, outcomes: dict[Key, Outcome]) -> None:
    """Raise ContractError unless there is one outcome per answer."""
    keys = _keys(part.answers)
    if outcomes.keys() != keys:
        raise ContractError(
            f"{len(keys)} scores, one for each answer", f"{len(outcomes)}", "Report this with the reward actors' logs."
        )
