"""Which rollout actor answers which prompts, and who answers them if it dies. Plain scheduling over actor handles."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import GetTimeoutError, RayActorError

from actors.calls import Calls
from actors.fleet import PATIENCE_S, RolloutFleet, late_answer
from actors.rollout import Answers
from rlaif.config.schema import Sampling
from rlaif.errors import ContractError
from rlaif.records import Probe, Probed, Prompt


@dataclass
class Part:
    """Prompts that one actor answers in one call."""

    actor: str
    prompts: list[Prompt]


@dataclass
class RequestBatch:
    """Prompts, how to ask for their answers again, and which of them are still open."""

    prompts: list[Prompt]
    n: int
    """Answers to each."""
    call: Callable[[Any, list[Prompt], int], Any]
    """f(actor, prompts, version): starts the call and returns its ref."""
    open: dict[Any, Part] = field(default_factory=dict)
    """Calls that have not ended, by ref."""
    answered: list[str] = field(default_factory=list)
    """Ids of the prompts whose answers have been handed out."""


class RolloutPool:
    """Spreads prompts over the actors of a fleet, and gives those of an actor that died to the others."""

    def __init__(self, actors: Mapping[str, Any], version: int = 0, calls: Calls | None = None):
        """Begin without requests; the arguments are RolloutFleet's."""
        self.fleet = RolloutFleet(actors, version, calls)
        self._batches: dict[Any, RequestBatch] = {}
        self.reissued = 0
        """Prompts that were issued again because their actor died."""

    # ---------------------------------------------------------------- sampling

    def submit(
        self, batch_id: Any, prompts: Sequence[Prompt], n: int, seed: int, sampling: Sampling, parts: int = 1
    ) -> None:
        """Request n answers to each prompt with the weights published last; returns at once.

        Prompts go to the actors in the order of their keys, so the split depends on nothing but the batch and the
        actors. `parts`: calls per actor; more of them give results earlier and keep fewer answers in flight.
        """

        def call(actor: Any, prompts: list[Prompt], version: int) -> Any:
            return actor.generate.remote(prompts, n, seed, sampling, version)

        self._spread(batch_id, prompts, n, call, parts, _interleaved)

    def submit_choices(self, batch_id: Any, prompts: Sequence[Prompt], words: Sequence[str], parts: int = 1) -> None:
        """Request the odds of some words as the first of the answer (`RolloutActor.score_choices`); else as `submit`.

        Prompts whose keys are neighbours go to the same actor: what they begin with in common is computed once.
        """

        def call(actor: Any, prompts: list[Prompt], version: int) -> Any:
            return actor.score_choices.remote(prompts, words, version)

        self._spread(batch_id, prompts, 1, call, parts, _neighbours)

    def _spread(
        self, batch_id: Any, prompts: Sequence[Prompt], n: int, call: Callable, parts: int, shares_of: Callable
    ) -> None:
        # by key, not as given: a resumed run then splits the batch alike
        ordered = sorted(prompts, key=lambda prompt: prompt.prompt_id)
        if batch_id in self._batches or len(set(_ids(ordered))) != len(ordered):
            raise ContractError(
                "new batches of different prompts",
                f"a repetition in batch {batch_id!r}",
                "Give every batch an id of its own and each prompt once.",
            )
        batch = self._batches[batch_id] = RequestBatch(ordered, n, call)
        names = self.fleet.live()
        # fewer prompts than calls: no call is empty
        shares = min(len(names) * parts, len(ordered))
        for index, share in enumerate(shares_of(ordered, shares)):
            self._issue(batch, share, names[index % len(names)])

    def results(self, batch_id: Any, timeout: float = PATIENCE_S) -> Iterator[Answers]:
        """Yield the answers of a batch, part by part as they finish. Order is not by key: sort if it matters.

        Raises:
            PlacementError: no actor is left, or `timeout` seconds passed without any part finishing.
            ContractError: an actor's answers are not those requested.
        """
        batch = self._batches[batch_id]
        try:
            while batch.open:
                ref = self.fleet.calls.first(list(batch.open), timeout)
                if ref is None:
                    raise late_answer({part.actor for part in batch.open.values()}, timeout)
                yield from self._take(batch, ref)
        finally:  # also if an actor's error ends the batch: its id is free again
            del self._batches[batch_id]
        expected = _ids(batch.prompts)
        if sorted(batch.answered) != expected:
            never = set(expected) - set(batch.answered)
            raise ContractError(
                f"every one of {len(expected)} prompts of batch {batch_id!r} answered once",
                f"{len(batch.answered)} answered, {len(never)} of them never",
                "Report this with the rollout actors' logs.",
            )

    def ready(self, batch_id: Any) -> Iterator[Answers]:
        """Yield those parts of a batch that have finished, without waiting; `results` gives the rest. Raises as `results`."""
        batch = self._batches[batch_id]
        while batch.open:
            ref = self.fleet.calls.first(list(batch.open), 0)
            if ref is None:
                return
            yield from self._take(batch, ref)

    def _take(self, batch: RequestBatch, ref: Any) -> Iterator[Answers]:
        """Yield a finished part; nothing if its actor died and others have its prompts now."""
        part = batch.open.pop(ref)
        try:
            # the answers are there, but perhaps on another node
            answers = self.fleet.calls.get(ref, PATIENCE_S)
        except RayActorError as error:
            # marked first: the part must not go to the same actor
            self.fleet.mark_dead(part.actor, error)
            self._reissue(batch, part)
            return
        except GetTimeoutError:
            raise late_answer([part.actor], PATIENCE_S) from None
        _check_answers(part, batch.n, answers)
        batch.answered += _ids(part.prompts)
        yield answers

    def _issue(self, batch: RequestBatch, prompts: list[Prompt], actor: str) -> None:
        ref = batch.call(self.fleet.handles[actor], prompts, self.fleet.version)
        batch.open[ref] = Part(actor, prompts)

    def _reissue(self, batch: RequestBatch, part: Part) -> None:
        """Give a part to the actor with the least to do. It may have newer weights by then: its samples will say so."""
        # by samples, not by prompts: batches differ in how many answers they want to each
        load = self._pending_samples()
        self.reissued += len(part.prompts)
        self._issue(batch, part.prompts, min(load, key=load.get))

    def _pending_samples(self) -> dict[str, int]:
        """Return how many samples each live actor has still to give, over all batches; ties go to the first of them."""
        load = dict.fromkeys(self.fleet.live(), 0)
        for batch in self._batches.values():
            for part in batch.open.values():
                if part.actor in load:
                    load[part.actor] += len(part.prompts) * batch.n
        return load

    # ----------------------------------------------------------------- probing

    def respond(self, probe: Probe, sampling: Sampling, seed: int, timeout: float = PATIENCE_S) -> Probe:
        """Return the probe with a response sampled by one of the actors from the weights published last."""
        while True:
            name = self.fleet.live()[0]
            actor = self.fleet.handles[name]
            ref = actor.respond.remote(probe, sampling, seed, self.fleet.version)
            answer = self.fleet.result(name, ref, timeout)
            if answer is not None:
                return answer

    def probe(
        self, probes: Sequence[Probe], sampling: Sampling, timeout: float = PATIENCE_S, fresh: bool = False
    ) -> dict[str, list[Probed]]:
        """Return what every live actor computes for the probes with the weights published last, by its name."""
        handles = self.fleet.handles
        refs = {}
        for name in self.fleet.live():
            refs[name] = handles[name].probe.remote(probes, sampling, self.fleet.version, fresh)
        results = {}
        for name, ref in refs.items():
            result = self.fleet.result(name, ref, timeout)
            if result is not None:
                results[name] = result
        self.fleet.live()  # if all of them died, that is the error
        return results


def _ids(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.prompt_id for prompt in prompts]


def _interleaved(prompts: list[Prompt], shares: int) -> list[list[Prompt]]:
    return [prompts[index::shares] for index in range(shares)]


def _neighbours(prompts: list[Prompt], shares: int) -> list[list[Prompt]]:
    edges = [len(prompts) * index // max(1, shares) for index in range(shares + 1)]
    return [prompts[start:end] for start, end in itertools.pairwise(edges)]


def _check_answers(part: Part, n: int, answers: Answers) -> None:
    """Check that every prompt of the part has all its samples, or one failure.

    Raises:
        ContractError: naming the actor and the first prompt for which that is not so.
    """
    requested = _ids(part.prompts)
    indices: dict[str, list[int | None]] = {prompt_id: [] for prompt_id in requested}
    for failure in answers.failures:
        indices.setdefault(failure.prompt_id, []).append(None)
    for sample in answers.samples:
        indices.setdefault(sample.prompt.prompt_id, []).append(sample.sample_index)
    valid = ([None], list(range(n)))
    for prompt_id, got in indices.items():
        if prompt_id not in requested or got not in valid:
            raise ContractError(
                f"{n} samples or one failure per prompt asked for",
                f"{got} for prompt {prompt_id!r} from rollout actor {part.actor!r}",
                "Report this with the actor's log.",
            )
