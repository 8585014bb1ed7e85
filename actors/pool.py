"""Which actor answers which prompts, and what happens when one dies. Plain scheduling over actor handles."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from actors.rollout import Answers
from cluster.publish import Manifest
from cluster.remote import fetch_result
from rlaif.config.schema import Sampling
from rlaif.errors import ContractError, PlacementError
from rlaif.records import Probe, Probed, Prompt

log = logging.getLogger(__name__)

PATIENCE_S = 3600.0
"""Deadline of a wait for which the caller gives none."""


class Calls(Protocol):
    """How the pool waits for what it asked actors to do."""

    def first(self, refs: list[Any], timeout: float) -> Any | None:
        """One finished ref, or None at the timeout."""

    def get(self, ref: Any, timeout: float) -> Any:
        """Its result. Raises RayActorError for a dead actor, GetTimeoutError, or the actor's own error."""

    def kill(self, actor: Any) -> None:
        """End an actor that does not answer; what it was asked for then fails as with any dead actor."""


class RayCalls:
    """The real thing."""

    def first(self, refs: list[Any], timeout: float) -> Any | None:
        ready, _ = ray.wait(refs, num_returns=1, timeout=timeout)
        return ready[0] if ready else None

    def get(self, ref: Any, timeout: float) -> Any:
        return fetch_result(ref, timeout)

    def kill(self, actor: Any) -> None:
        ray.kill(actor)


@dataclass
class Part:
    """Prompts that one actor was asked to answer in one call."""

    actor: str
    prompts: list[Prompt]


@dataclass
class Batch:
    """Everything needed to ask again, and what is still open."""

    prompts: list[Prompt]
    n: int
    """Answers to each."""
    call: Callable[[Any, list[Prompt], int], Any]
    """f(actor, prompts, version): asks the actor."""
    open: dict[Any, Part] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    """Ids of the prompts whose answers have been handed out."""


@dataclass
class Weights:
    """The last version given to the actors; kept for an actor that needs it again or joins later."""

    manifest: Manifest
    buckets: Sequence[Any] | None
    """None: they came from GPU to GPU."""
    timeout: float = PATIENCE_S
    refs: dict[str, Any] = field(default_factory=dict)
    receipts: dict[str, Any] = field(default_factory=dict)
    """Of actors that hold them already."""


class RolloutPool:
    """Spreads prompts over rollout actors and keeps them on one version of the weights.

    Each actor runs its calls in the order in which they were made. So a publish waits for the answers asked for before
    it, and everything asked for after it uses the new weights: no answer mixes versions.
    """

    def __init__(self, actors: Mapping[str, Any], version: int = 0, calls: Calls | None = None):
        """`actors` by the name that errors shall use; `version`: the weights that all of them hold."""
        self._actors = dict(actors)
        self._calls = calls or RayCalls()
        self._batches: dict[Any, Batch] = {}
        self._weights: Weights | None = None
        self.version = version
        """The version that a call made now will use."""
        self.reissued = 0
        """Prompts asked for again because their actor died."""
        self.dead: dict[str, str] = {}
        """Actors that are gone, and why."""

    @property
    def actors(self) -> list[str]:
        """Names of the actors that are alive as far as the pool knows."""
        return list(self._actors)

    @property
    def handles(self) -> dict[str, Any]:
        """The same actors' handles, by name."""
        return dict(self._actors)

    # ---------------------------------------------------------------- sampling

    def submit(
        self, batch_id: Any, prompts: Sequence[Prompt], n: int, seed: int, sampling: Sampling, parts: int = 1
    ) -> None:
        """Ask for n answers to each prompt with the weights published last; returns at once.

        Prompts go to the actors in the order of their keys, so the split depends on nothing but the batch and the
        actors. `parts`: calls per actor; more of them give results earlier and keep fewer answers in flight.
        """

        def call(actor: Any, prompts: list[Prompt], version: int) -> Any:
            return actor.generate.remote(prompts, n, seed, sampling, version)

        self._spread(batch_id, prompts, n, call, parts, _interleaved)

    def submit_choices(self, batch_id: Any, prompts: Sequence[Prompt], words: Sequence[str], parts: int = 1) -> None:
        """Ask which of some words would begin the answer to each prompt (`RolloutActor.choose`); else as `submit`.

        Prompts whose keys are neighbours go to the same actor: what they begin with in common is computed once.
        """

        def call(actor: Any, prompts: list[Prompt], version: int) -> Any:
            return actor.choose.remote(prompts, words, version)

        self._spread(batch_id, prompts, 1, call, parts, _neighbours)

    def _spread(
        self, batch_id: Any, prompts: Sequence[Prompt], n: int, call: Callable, parts: int, shares_of: Callable
    ) -> None:
        ordered = sorted(prompts, key=lambda prompt: prompt.prompt_id)
        if batch_id in self._batches or len({prompt.prompt_id for prompt in ordered}) != len(ordered):
            raise ContractError(
                "new batches of different prompts",
                f"a repetition in batch {batch_id!r}",
                "Give every batch an id of its own and each prompt once",
            )
        batch = self._batches[batch_id] = Batch(ordered, n, call)
        shares = min(len(self._live()) * parts, len(ordered))
        for index, share in enumerate(shares_of(ordered, shares)):
            self._issue(batch, share, self.actors[index % len(self._actors)])

    def results(self, batch_id: Any, timeout: float = PATIENCE_S) -> Iterator[Answers]:
        """The answers of a batch, part by part as they finish. Order is not by key: sort where it matters.

        Raises:
            PlacementError: no actor is left, or `timeout` seconds passed without any part finishing.
            ContractError: an actor's answers are not those asked for.
        """
        batch = self._batches[batch_id]
        try:
            while batch.open:
                ref = self._calls.first(list(batch.open), timeout)
                if ref is None:
                    raise self._too_late({part.actor for part in batch.open.values()}, timeout)
                yield from self._take(batch, ref)
        finally:  # also where an actor's error ends the batch: its id is free again
            del self._batches[batch_id]
        answered, expected = sorted(batch.done), [prompt.prompt_id for prompt in batch.prompts]
        if answered != expected:
            raise ContractError(
                f"every one of {len(expected)} prompts of batch {batch_id!r} answered once",
                f"{len(answered)} answered, {len(set(expected) - set(answered))} of them never",
                "Report this with the rollout actors' logs",
            )

    def ready(self, batch_id: Any) -> Iterator[Answers]:
        """Those parts of a batch that have finished, without waiting; `results` gives the rest. Raises as `results`."""
        batch = self._batches[batch_id]
        while batch.open and (ref := self._calls.first(list(batch.open), 0)) is not None:
            yield from self._take(batch, ref)

    def _take(self, batch: Batch, ref: Any) -> Iterator[Answers]:
        """A finished part, or nothing where its actor died and others were asked."""
        part = batch.open.pop(ref)
        try:
            answers = self._calls.get(ref, PATIENCE_S)  # they are there, perhaps on another node
        except RayActorError as error:
            self._bury(part.actor, error)
            return self._reissue(batch, part)
        except GetTimeoutError:
            raise self._too_late({part.actor}, PATIENCE_S) from None
        _check(part, batch.n, answers)
        batch.done += [prompt.prompt_id for prompt in part.prompts]
        yield answers

    def _issue(self, batch: Batch, prompts: list[Prompt], actor: str) -> None:
        ref = batch.call(self._actors[actor], prompts, self.version)
        batch.open[ref] = Part(actor, prompts)

    def _reissue(self, batch: Batch, part: Part) -> None:
        """Ask the actor with the least to do. It may have newer weights by then: its samples will say so."""
        load = self._pending_samples()
        self.reissued += len(part.prompts)
        self._issue(batch, part.prompts, min(load, key=load.get))

    def _pending_samples(self) -> dict[str, int]:
        """Return how many samples each live actor has still to give, over all batches; ties go to the first of them."""
        load = dict.fromkeys(self._live(), 0)
        for batch in self._batches.values():
            for part in batch.open.values():
                if part.actor in load:
                    load[part.actor] += len(part.prompts) * batch.n
        return load

    # -------------------------------------------------------------- publishing

    def publish(self, manifest: Manifest, buckets: Sequence[Any], timeout: float = PATIENCE_S) -> None:
        """Queue new weights behind what every actor still has to answer; returns at once.

        Actors that have this version already (`delivered`) are left out. `timeout`: seconds an actor waits for the buckets
        to arrive.

        Wait for `committed` before the next `submit`: an actor that did not take the weights cannot answer with them.
        """
        same = self._weights is not None and self._weights.manifest.version == manifest.version
        held = self._weights.receipts if same else {}
        self._weights = Weights(manifest, list(buckets), timeout, receipts=held)
        self.version = manifest.version
        for name in self._live():
            if name not in held:
                self._send(name)

    def delivered(self, manifest: Manifest, receipts: Mapping[str, Any]) -> None:
        """These actors hold a new version, which reached them on another way than `publish`."""
        self._weights = Weights(manifest, None, receipts=dict(receipts))
        self.version = manifest.version

    def committed(self, timeout: float = PATIENCE_S) -> dict[str, Any]:
        """Wait until the weights published last are in place everywhere: receipts by actor.

        An actor that refuses them (a damaged transfer) gets them once more. One that refuses again or does not answer
        within `timeout` seconds is ended, and the others go on; `dead` says why.

        Raises:
            PlacementError: no actor is left.
            ContractError: all that are left refused twice; names actor and tensor.
        """
        receipts: dict[str, Any] = dict(self._weights.receipts) if self._weights else {}
        refused: dict[str, ContractError] = {}
        for name in list(self._weights.refs) if self._weights else []:  # nothing published yet: the model as loaded
            try:
                receipts[name] = self._receipt(name, timeout)
            except RayActorError as error:
                self._bury(name, error)
            except GetTimeoutError:
                self._end(name, f"did not take version {self.version} within {timeout:g} s")
            except ContractError as error:
                refused[name] = error
        if refused and not receipts:
            raise next(iter(refused.values()))
        for name, error in refused.items():
            self._end(name, f"refused version {self.version}: {error.found}")
        self._live()
        return receipts

    def _receipt(self, name: str, timeout: float) -> Any:
        try:
            return self._calls.get(self._weights.refs[name], timeout)
        except ContractError:
            self._send(name)
        try:
            return self._calls.get(self._weights.refs[name], timeout)
        except ContractError as error:
            raise ContractError(error.expected, f"{error.found} (rollout actor {name!r}, twice)", error.fix) from error

    def _send(self, name: str) -> None:
        weights = self._weights
        ref = self._actors[name].publish.remote(weights.manifest, weights.buckets, weights.timeout)
        self._weights.refs[name] = ref

    def sleep(self, level: int, timeout: float = PATIENCE_S) -> None:
        """Leave the GPUs to others; each actor wakes by itself when it is next used. See `EngineWeights.sleep`."""
        for name, ref in {name: actor.sleep.remote(level) for name, actor in self._actors.items()}.items():
            self._collected(name, ref, timeout)

    # ----------------------------------------------------------------- probing

    def respond(self, probe: Probe, sampling: Sampling, seed: int, timeout: float = PATIENCE_S) -> Probe:
        """The probe with a response sampled by one of the actors from the weights published last."""
        while True:
            name = self._live()[0]
            ref = self._actors[name].respond.remote(probe, sampling, seed, self.version)
            if (found := self._collected(name, ref, timeout)) is not None:
                return found

    def probe(
        self, probes: Sequence[Probe], sampling: Sampling, timeout: float = PATIENCE_S, fresh: bool = False
    ) -> dict[str, list[Probed]]:
        """What every live actor makes of the probes with the weights published last, by its name."""
        refs = {name: self._actors[name].probe.remote(probes, sampling, self.version, fresh) for name in self._live()}
        found = {name: self._collected(name, ref, timeout) for name, ref in refs.items()}
        self._live()
        return {name: probed for name, probed in found.items() if probed is not None}

    def _collected(self, name: str, ref: Any, timeout: float) -> Any | None:
        """An actor's answer; None for an actor that died, PlacementError for one that does not answer in time."""
        try:
            return self._calls.get(ref, timeout)
        except RayActorError as error:
            self._bury(name, error)
            return None
        except GetTimeoutError:
            raise self._too_late({name}, timeout) from None

    # ------------------------------------------------------------------ members

    def add(self, name: str, actor: Any) -> None:
        """Let a new actor take part; it gets the weights published last before anything else."""
        if name in self._actors:
            raise ContractError("a new name", f"{name!r} again", "remove the old actor first")
        if self._weights is not None and self._weights.buckets is None:
            raise ContractError(
                "weights in the object store for an actor that joins",
                f"version {self.version} only on the GPUs of the others",
                "publish this version through the object store first",
            )
        self._actors[name] = actor
        if self._weights is not None:
            self._send(name)

    def remove(self, name: str) -> Any:
        """Give an actor nothing more to do; what it was asked for is still collected. Returns its handle."""
        actor = self._actors.pop(name)
        if self._weights is not None:
            self._weights.refs.pop(name, None)
        return actor

    def _bury(self, name: str, error: Exception) -> None:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        self.dead.setdefault(name, " ... ".join(dict.fromkeys([lines[0], lines[-1]])))  # between them, Ray's traceback
        if name in self._actors:
            self.remove(name)

    def _end(self, name: str, reason: str) -> None:
        """Give up an actor that is alive but cannot be used; what it still owes is asked of the others."""
        log.warning("rollout actor %s is ended: it %s", name, reason)
        self.dead.setdefault(name, reason)
        self._calls.kill(self.remove(name))

    def _live(self) -> list[str]:
        if not self._actors:
            gone = "; ".join(f"{name}: {reason}" for name, reason in self.dead.items())
            raise PlacementError(
                "at least one rollout actor", f"none alive ({gone})", "Look at the actors' logs, then resume the run"
            )
        return list(self._actors)

    def _too_late(self, names: set[str], timeout: float) -> PlacementError:
        return PlacementError(
            f"an answer within {timeout:g} s",
            f"none from rollout actor {', '.join(sorted(names))}",
            "Raise cluster.collective_timeout_s if the actor is only slow; else look at its log and resume the run",
        )


def _interleaved(prompts: list[Prompt], shares: int) -> list[list[Prompt]]:
    return [prompts[index::shares] for index in range(shares)]


def _neighbours(prompts: list[Prompt], shares: int) -> list[list[Prompt]]:
    edges = [len(prompts) * index // max(1, shares) for index in range(shares + 1)]
    return [prompts[start:end] for start, end in itertools.pairwise(edges)]


def _check(part: Part, n: int, answers: Answers) -> None:
    """Every prompt of the part has all its samples, or one failure.

    Raises:
        ContractError: naming the actor and the first prompt for which that is not so.
    """
    found = {prompt.prompt_id: [] for prompt in part.prompts}
    for failure in answers.failures:
        found.setdefault(failure.prompt_id, []).append(None)
    for sample in answers.samples:
        found.setdefault(sample.prompt.prompt_id, []).append(sample.sample_index)
    asked = {prompt.prompt_id for prompt in part.prompts}
    wrong = [key for key, got in found.items() if key not in asked or got not in ([None], list(range(n)))]
    if wrong:
        raise ContractError(
            f"{n} samples or one failure per prompt asked for",
            f"{found[wrong[0]]} for prompt {wrong[0]!r} from rollout actor {part.actor!r}",
            "Report this with the actor's log",
        )
