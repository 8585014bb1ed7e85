"""Scheduling of prompts and weights over actors: with handles that only record calls, then with dying Ray actors."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError

from actors.pool import RequestBatch, RolloutPool
from actors.rollout import Answers, Failure
from cluster.publish import Manifest
from rlaif.config.schema import Sampling
from rlaif.errors import ContractError, PlacementError
from rlaif.records import Choice, Prompt, Sample

SAMPLING = Sampling(max_tokens=4)
PROMPTS = [Prompt(f"p{index:02d}", "v.mp4", "q") for index in (3, 1, 4, 0, 5, 9, 2, 6)]
KEYS = sorted((prompt.prompt_id, index) for prompt, index in product(PROMPTS, range(2)))
"""Keys of two answers to each prompt."""


def sample(prompt: Prompt, index: int, version: int) -> Sample:
    ids = np.zeros(1, np.int32)
    return Sample(prompt, index, "hash", 1, ids, ids, ids.astype(np.float32), "", "stop", version)


@dataclass
class Recorder:
    """An actor that answers in order and records its calls; its fields make it misbehave."""

    version: int = 0
    dies_at: int | None = None
    """Number of calls after which it dies."""
    refuses: int = 0
    """Number of publishes that arrive damaged."""
    hangs: bool = False
    log: list = field(default_factory=list)

    def generate(self, prompts, n, seed, sampling, version) -> Answers:
        self._count("generate", [prompt.prompt_id for prompt in prompts], version)
        if version != self.version:
            raise ContractError(f"version {version}", f"version {self.version}", "publish")
        good = [prompt for prompt in prompts if prompt.extra.get("bad") is None]
        samples = []
        for prompt in good:
            samples += [sample(prompt, index, self.version) for index in range(n)]
        return Answers(samples, [Failure(prompt.prompt_id, "no video") for prompt in prompts if prompt not in good])

    def score_choices(self, prompts, words, version) -> Answers:
        self._count("score_choices", [prompt.prompt_id for prompt in prompts], version)
        return Answers([Choice(prompt, np.zeros(len(words), np.float32)) for prompt in prompts], [])

    def publish(self, manifest, buckets, timeout) -> str:
        self._count("publish", manifest.version, buckets)
        if self.refuses:
            self.refuses -= 1
            raise ContractError("weights", "tensor 'w' with checksum 0", "again")
        self.version = manifest.version
        return f"has {manifest.version}"

    def _count(self, *call) -> None:
        if self.dies_at is not None and len(self.log) >= self.dies_at:
            raise ActorDiedError
        self.log.append(call)


class Handle:
    """Records calls by `.method.remote(...)` and runs them in order when the pool waits for one."""

    def __init__(self, actor: Recorder):
        self.actor, self.queue, self.done = actor, deque(), {}
        self.generate, self.score_choices, self.publish = (
            Method(self, name) for name in ("generate", "score_choices", "publish")
        )

    def run_until(self, ref) -> None:
        while ref not in self.done:
            head, call = self.queue.popleft()
            try:
                self.done[head] = (call(), None)
            except Exception as error:  # raised by the `get` of this ref, as in Ray
                self.done[head] = (None, error)


@dataclass
class Method:
    handle: Handle
    name: str

    def remote(self, *args):
        ref = (self.handle, object())
        self.handle.queue.append((ref, partial(getattr(self.handle.actor, self.name), *args)))
        return ref


class DirectCalls:
    """Waits for the calls of such handles; the call that was requested last finishes first."""

    def first(self, refs, timeout):
        refs = [ref for ref in refs if not ref[0].actor.hangs]
        return refs[-1] if refs else None

    def get(self, ref, timeout=None):
        if ref[0].actor.hangs:
            raise GetTimeoutError
        ref[0].run_until(ref)
        value, error = ref[0].done[ref]
        if error is not None:
            raise error
        return value

    def kill(self, handle):
        handle.actor.hangs, handle.actor.dies_at = False, 0


def pool_of(*actors: Recorder, version: int = 0) -> RolloutPool:
    return RolloutPool({f"rollout-{i}": Handle(actor) for i, actor in enumerate(actors)}, version, DirectCalls())


def collect(pool, batch="b") -> Answers:
    samples, failures = [], []
    for part in pool.results(batch, timeout=5):
        samples += part.samples
        failures += part.failures
    return Answers(samples, failures)


def requested_ids(actor: Recorder, method: str = "generate") -> list[str]:
    prompts = []
    for name, *arguments in actor.log:
        if name == method:
            prompts += arguments[0]
    return prompts


def manifest(version: int) -> Manifest:
    return Manifest(version, "full", {})


def test_all_prompts_come_back_and_the_split_depends_on_keys_only():
    splits = []
    for prompts in (PROMPTS, PROMPTS[::-1]):
        actors = [Recorder(), Recorder(), Recorder()]
        pool = pool_of(*actors)
        pool.submit("b", prompts, 2, 0, SAMPLING)
        answers = collect(pool)
        assert sorted(s.key for s in answers.samples) == KEYS
        splits.append([requested_ids(actor) for actor in actors])
    assert splits[0] == splits[1]
    assert max(map(len, splits[0])) - min(map(len, splits[0])) <= 1


def test_questions_with_neighbouring_keys_go_to_the_same_actor():
    """Questions about one prompt have the same beginning, which an actor then computes only once."""
    prompts = [Prompt(f"{case}:{order}", "v.mp4", "q") for order, case in product(range(4), range(3))]
    for count, shares in ((1, [12]), (2, [6, 6]), (3, [4, 4, 4]), (5, [2, 2, 3, 2, 3])):
        actors = [Recorder() for _ in range(count)]
        pool = pool_of(*actors)
        pool.submit_choices("b", prompts, ["yes", "no"])
        answers = collect(pool)
        assert len(answers.samples) == 12
        split = [requested_ids(actor, "score_choices") for actor in actors]
        assert sum(split, []) == sorted(prompt.prompt_id for prompt in prompts)
        assert [len(part) for part in split] == shares
    pool.submit_choices("none", [], ["yes", "no"])
    assert collect(pool, "none").samples == []


def test_ready_yields_finished_parts_without_waiting():
    slow = Recorder()
    pool = pool_of(Recorder(), slow, Recorder(dies_at=0))
    pool.submit("b", PROMPTS, 2, 0, SAMPLING)
    slow.hangs = True
    early = []
    for part in pool.ready("b"):
        early += [s.key for s in part.samples]
    slow.hangs = False
    late = [s.key for s in collect(pool).samples]
    assert early and late and sorted(early + late) == KEYS
    assert pool.reissued and set(pool.fleet.dead) == {"rollout-2"}
    with pytest.raises(KeyError):
        list(pool.ready("b"))


def test_delivered_versions_count_as_committed():
    actors = [Recorder(), Recorder()]
    pool = pool_of(*actors)
    pool.fleet.delivered(manifest(1), {"rollout-0": "receipt"})
    assert pool.fleet.version == 1 and pool.fleet.committed() == {"rollout-0": "receipt"}
    pool.fleet.publish(manifest(1), ["bucket"])  # to those it did not reach
    assert set(pool.fleet.committed()) == {"rollout-0", "rollout-1"}
    assert [call[0] for call in actors[0].log] == [] and [call[0] for call in actors[1].log] == ["publish"]
    pool.fleet.publish(manifest(2), ["bucket"])
    pool.fleet.committed()
    assert [call[0] for call in actors[0].log] == ["publish"]


def test_more_parts_are_more_calls_and_fewer_prompts_than_actors_are_fine():
    actors = [Recorder(), Recorder()]
    pool = pool_of(*actors)
    pool.submit("b", PROMPTS, 1, 0, SAMPLING, parts=3)
    assert len(collect(pool).samples) == 8 and [len(actor.log) for actor in actors] == [3, 3]
    pool.submit("c", PROMPTS[:1], 1, 0, SAMPLING)
    assert len(collect(pool, "c").samples) == 1
    pool.submit("none", [], 1, 0, SAMPLING)
    assert collect(pool, "none") == Answers([], [])


def test_a_failed_prompt_counts_as_answered():
    pool = pool_of(Recorder())
    bad = Prompt("p99", "gone.mp4", "q", extra={"bad": True})
    pool.submit("b", [*PROMPTS, bad], 2, 0, SAMPLING)
    answers = collect(pool)
    assert len(answers.samples) == 16 and answers.failures == [Failure("p99", "no video")]


def test_publish_applies_after_earlier_requests():
    actor = Recorder()
    pool = pool_of(actor)
    pool.submit("old", PROMPTS[:2], 1, 0, SAMPLING)
    pool.fleet.publish(manifest(1), ["bucket"])
    pool.submit("new", PROMPTS[2:4], 1, 1, SAMPLING)
    new, old = collect(pool, "new"), collect(pool, "old")
    assert {s.policy_version for s in old.samples} == {0} and {s.policy_version for s in new.samples} == {1}
    assert pool.fleet.committed() == {"rollout-0": "has 1"}
    assert [call[0] for call in actor.log] == ["generate", "publish", "generate"]


def test_part_of_a_dead_actor_is_reissued():
    dead, alive = Recorder(dies_at=0), Recorder()
    pool = pool_of(dead, alive)
    pool.submit("b", PROMPTS, 2, 0, SAMPLING)
    assert len({s.key for s in collect(pool).samples}) == 16
    assert pool.reissued == 4 and pool.fleet.names == ["rollout-1"] and "rollout-0" in pool.fleet.dead
    pool.submit("c", PROMPTS, 1, 1, SAMPLING)
    assert len(collect(pool, "c").samples) == 8 and pool.reissued == 4


def batch_of(pool, name: str, prompts: list[Prompt], answers: int, actor: str) -> RequestBatch:
    """Return a batch that was issued to one actor as a whole."""

    def call(handle, prompts, version):
        return handle.generate.remote(prompts, answers, 0, SAMPLING, version)

    batch = pool._batches[name] = RequestBatch(prompts, answers, call)
    if prompts:
        pool._issue(batch, prompts, actor)
    return batch


PENDING = {
    "fewer prompts but more samples": ((6, 1), (2, 8), "rollout-1"),
    "as many prompts, more samples": ((4, 1), (4, 2), "rollout-1"),
    "nothing pending": ((6, 1), (0, 1), "rollout-2"),
}
"""(prompts, answers to each) that rollout-1 and rollout-2 have pending, and which of them is asked again."""


@pytest.mark.parametrize("name", PENDING)
def test_a_lost_part_is_reissued_to_the_actor_with_the_fewest_pending_samples(name):
    *loads, expected = PENDING[name]
    pool = pool_of(Recorder(dies_at=0), Recorder(), Recorder())
    for place, (count, answers) in enumerate(loads, start=1):
        rows = [Prompt(f"{place}-{number}", "v.mp4", "q") for number in range(count)]
        batch_of(pool, str(place), rows, answers, f"rollout-{place}")
    lost = batch_of(pool, "lost", PROMPTS[:1], 3, "rollout-0")
    list(pool._take(lost, next(iter(lost.open))))
    assert [part.actor for part in lost.open.values()] == [expected]


def test_the_batch_of_a_lost_part_counts_once():
    """Two samples of the batch are pending with one actor, and three of another batch with the other actor."""
    pool = pool_of(Recorder(dies_at=0), Recorder(), Recorder())
    own = batch_of(pool, "own", PROMPTS[:1], 1, "rollout-0")
    pool._issue(own, PROMPTS[1:3], "rollout-1")
    batch_of(pool, "other", PROMPTS[3:6], 1, "rollout-2")
    list(pool._take(own, next(iter(own.open))))
    assert [part.actor for part in own.open.values()] == ["rollout-1", "rollout-1"]


def test_unanswered_prompt_raises_contract_error():
    pool = pool_of(Recorder())
    pool.submit("b", PROMPTS[:2], 1, 0, SAMPLING)
    pool._batches["b"].prompts.append(Prompt("p99", "v.mp4", "q"))
    with pytest.raises(ContractError, match="every one of 3 prompts(.|\n)*1 of them never"):
        collect(pool)


def test_a_reissued_part_names_the_version_it_was_sampled_with():
    """The survivor already has newer weights: its samples must not name the version first requested."""
    dead, alive = Recorder(dies_at=0), Recorder()
    pool = pool_of(dead, alive)
    pool.submit("b", PROMPTS, 1, 0, SAMPLING)
    pool.fleet.publish(manifest(1), ["bucket"])
    versions = {s.prompt.prompt_id: s.policy_version for s in collect(pool).samples}
    assert sorted(versions.values()) == [0] * 4 + [1] * 4
    assert list(pool.fleet.committed()) == ["rollout-1"]


def test_part_of_a_dead_actor_goes_to_the_least_loaded_one():
    dead, busy, free = Recorder(dies_at=0), Recorder(), Recorder()
    pool = pool_of(dead, busy, free)
    pool.submit("b", PROMPTS[:3], 1, 0, SAMPLING)
    pool.fleet.add("again", pool.fleet.remove("rollout-0"))  # now the first in line is `busy`
    pool.submit("more", [Prompt("z", "v.mp4", "q")], 1, 0, SAMPLING)
    collect(pool)
    assert requested_ids(busy) == ["p03"] and requested_ids(free) == ["p04", "p01"]


def test_error_names_all_dead_actors():
    pool = pool_of(Recorder(dies_at=0), Recorder(dies_at=0))
    pool.submit("b", PROMPTS, 1, 0, SAMPLING)
    with pytest.raises(PlacementError, match=r"rollout-\d: .*rollout-\d: "):
        collect(pool)
    with pytest.raises(PlacementError, match="none alive"):
        pool.submit("c", PROMPTS, 1, 0, SAMPLING)


def test_a_damaged_publish_is_sent_once_more_and_then_named():
    pool = pool_of(Recorder(), Recorder(refuses=1))
    pool.fleet.publish(manifest(1), ["bucket"])
    assert pool.fleet.committed() == {"rollout-0": "has 1", "rollout-1": "has 1"}
    pool = pool_of(Recorder(refuses=2), Recorder(refuses=2))
    pool.fleet.publish(manifest(1), ["bucket"])
    with pytest.raises(ContractError, match=r"tensor 'w'.*rollout-0"):
        pool.fleet.committed()


def test_an_actor_that_refuses_twice_or_hangs_is_ended_and_the_others_go_on():
    pool = pool_of(Recorder(), Recorder(refuses=2), Recorder(hangs=True))
    pool.submit("b", PROMPTS, 1, 0, SAMPLING)
    pool.fleet.publish(manifest(1), ["bucket"])
    assert pool.fleet.committed(timeout=5) == {"rollout-0": "has 1"} and pool.fleet.names == ["rollout-0"]
    assert "tensor 'w'" in pool.fleet.dead["rollout-1"] and "version 1 within 5 s" in pool.fleet.dead["rollout-2"]
    answers = collect(pool)  # what the ended actors owed is asked of the one that is left
    assert sorted(s.prompt.prompt_id for s in answers.samples) == sorted(p.prompt_id for p in PROMPTS)
    assert pool.reissued > 0


def test_two_pending_publishes_end_on_the_second():
    pool = pool_of(Recorder(), Recorder())
    pool.fleet.publish(manifest(1), ["bucket"])
    pool.fleet.publish(manifest(2), ["bucket"])
    assert pool.fleet.committed() == {"rollout-0": "has 2", "rollout-1": "has 2"}
    pool.submit("b", PROMPTS, 1, 0, SAMPLING)
    assert {s.policy_version for s in collect(pool).samples} == {2}


def test_an_actor_that_dies_during_a_publish_drops_out():
    pool = pool_of(Recorder(), Recorder(dies_at=0))
    pool.fleet.publish(manifest(1), ["bucket"])
    assert list(pool.fleet.committed()) == ["rollout-0"] and pool.fleet.names == ["rollout-0"]


def test_late_actors_are_named():
    pool = pool_of(Recorder(), Recorder(hangs=True))
    pool.submit("b", PROMPTS, 1, 0, SAMPLING)
    with pytest.raises(PlacementError, match="rollout-1"):
        collect(pool)
    pool = pool_of(Recorder(hangs=True))
    pool.fleet.publish(manifest(1), ["bucket"])
    with pytest.raises(PlacementError, match=r"rollout-0: did not take version 1 within 5 s"):
        pool.fleet.committed(timeout=5)


def test_a_new_actor_gets_the_weights_before_its_first_prompts_and_a_removed_one_gets_none():
    pool = pool_of(Recorder())
    pool.fleet.publish(manifest(4), ["bucket"])
    late = Recorder()
    pool.fleet.add("late", Handle(late))
    pool.submit("b", PROMPTS, 1, 0, SAMPLING)
    assert {s.policy_version for s in collect(pool).samples} == {4}
    assert [call[0] for call in late.log] == ["publish", "generate"]
    pool.fleet.remove("late")
    pool.submit("c", PROMPTS, 1, 1, SAMPLING)
    assert len(collect(pool, "c").samples) == 8 and len(late.log) == 2


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda a: Answers(a.samples[1:], []), r"\[1\] for prompt 'p00'"),
        (lambda a: Answers(a.samples + a.samples[:1], []), r"\[0, 1, 0\] for prompt 'p00'"),
        (lambda a: Answers(a.samples, [Failure("p00", "?")]), "'p00'"),
        (lambda a: Answers(a.samples + [sample(Prompt("x", "v", "q"), 0, 0)], []), "'x'"),
    ],
)
def test_unrequested_answers_raise_contract_error(wrong, named):
    actor = Recorder()
    honest = actor.generate
    actor.generate = lambda *args: wrong(honest(*args))
    pool = pool_of(actor)
    pool.submit("b", PROMPTS, 2, 0, SAMPLING)
    with pytest.raises(ContractError, match=named):
        collect(pool)


def test_batch_id_is_free_after_an_actor_refused_the_batch():
    pool = pool_of(Recorder(version=3))
    pool.submit("b", PROMPTS, 1, 0, SAMPLING)
    with pytest.raises(ContractError, match="version 3"):
        collect(pool)
    pool.fleet.version = 3
    pool.submit("b", PROMPTS, 1, 0, SAMPLING)
    assert len(collect(pool).samples) == len(PROMPTS)


def test_repeated_prompts_and_batches_are_errors():
    pool = pool_of(Recorder())
    with pytest.raises(ContractError, match="repetition"):
        pool.submit("b", [PROMPTS[0], PROMPTS[0]], 1, 0, SAMPLING)
    pool.submit("c", PROMPTS, 1, 0, SAMPLING)
    with pytest.raises(ContractError, match="repetition"):
        pool.submit("c", PROMPTS, 1, 0, SAMPLING)


def test_dying_ray_actor_is_survived(ray_session):
    import os

    @ray_session.remote(num_cpus=0)
    class Mortal:
        def __init__(self, dies):
            self.dies, self.recorder = dies, Recorder()

        def generate(self, *args):
            if self.dies:
                os._exit(1)
            return self.recorder.generate(*args)

        def publish(self, manifest, refs, timeout):
            return self.recorder.publish(manifest, ray_session.get(refs), timeout)

    pool = RolloutPool({"first": Mortal.remote(True), "second": Mortal.remote(False)})
    pool.fleet.publish(manifest(1), [ray_session.put("bucket")])
    assert pool.fleet.committed(timeout=60) == {"first": "has 1", "second": "has 1"}
    pool.submit("b", PROMPTS, 2, 0, SAMPLING)
    assert len({s.key for s in collect(pool).samples}) == 16
    assert pool.reissued == 4 and list(pool.fleet.dead) == ["first"]


def test_a_hanging_ray_actor_is_ended_and_the_other_answers_its_requests(ray_session):
    import time

    @ray_session.remote(num_cpus=0)
    class Sleeper:
        def __init__(self, hangs):
            self.hangs, self.recorder = hangs, Recorder()

        def ready(self):
            return True

        def generate(self, *args):
            return self.recorder.generate(*args)

        def publish(self, manifest, refs, timeout):
            if self.hangs:
                time.sleep(3600)
            return self.recorder.publish(manifest, refs, timeout)

    actors = {"stuck": Sleeper.remote(True), "fine": Sleeper.remote(False)}
    ray_session.get([actor.ready.remote() for actor in actors.values()])
    pool = RolloutPool(actors)
    pool.fleet.publish(manifest(1), [])
    pool.submit("b", PROMPTS, 2, 0, SAMPLING)  # half of them wait behind a publish that never ends
    assert pool.fleet.committed(timeout=5) == {"fine": "has 1"}
    assert "did not take version 1 within 5 s" in pool.fleet.dead["stuck"]
    assert len({s.key for s in collect(pool).samples}) == 16 and pool.reissued == 4


def test_committed_returns_nothing_before_the_first_publish():
    assert RolloutPool({"a": object()}).fleet.committed(1.0) == {}
