"""Reward actors that hang or die: with handles that only record calls, and a clock that the test moves."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain, product

import pytest
from ray.exceptions import ActorDiedError, GetTimeoutError

from actors.reward_pool import RewardPool
from rlaif.errors import ContractError, DeadlineError
from rlaif.records import Masked, Prompt, RewardInput, Scored

LIMIT, LOADING = 10.0, 100.0


@dataclass
class Call:
    """A call of an actor. Actors run their calls in order, by the world's clock."""

    actor: Actor
    answers: list[RewardInput] | None


@dataclass(eq=False)
class Actor:
    """Takes a second for each answer, and never returns for a prompt at which it hangs."""

    world: World
    requests: list[list] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    free_at: float = 0.0
    dead: bool = False

    def __post_init__(self):
        self.ready, self.score_timed = Method(self, "ready"), Method(self, "score_timed")


@dataclass
class Method:
    actor: Actor
    name: str

    def remote(self, answers=None):
        if answers is not None:
            self.actor.requests.append([answer.key for answer in answers])
        call = Call(self.actor, answers)
        self.actor.calls.append(call)
        return id(self.actor.world.add(call))  # the world keeps the call, so that ids stay unique


class World:
    """Actors, their calls, and the time. It is the pool's clock and its way of waiting."""

    def __init__(self, hangs=(), kills=(), loads=True):
        self.hangs, self.kills, self.loads = set(hangs), set(kills), loads
        self.now, self.actors, self.refs, self.ends = 0.0, [], {}, {}

    def start(self, index):
        self.actors.append(Actor(self, free_at=self.now))
        return self.actors[-1]

    def add(self, call):
        actor = call.actor
        began = max(actor.free_at, self.now)
        prompts = {answer.key[0] for answer in call.answers or ()}
        stuck = bool(prompts & self.hangs) or (call.answers is None and not self.loads)
        actor.free_at = float("inf") if stuck else began + len(call.answers or ())
        self.refs[id(call)], self.ends[id(call)] = call, actor.free_at
        return call

    def first(self, refs, timeout):
        ref = min(refs, key=self.ends.get)
        if self.ends[ref] > self.now + timeout:
            self.now += timeout
            return None
        self.now = max(self.now, self.ends[ref])
        return ref

    def get(self, ref, timeout=None):
        call = self.refs[ref]
        if self.ends[ref] > self.now:
            raise GetTimeoutError
        if call.actor.dead or {answer.key[0] for answer in call.answers or ()} & self.kills:
            raise ActorDiedError
        if call.answers is None:
            return True
        return {answer.key: Scored(1.0, {"score": 1.0}) for answer in call.answers}, float(len(call.answers))

    def kill(self, actor):
        actor.dead = True

    def clock(self):
        return self.now

    def pool(self, count=1):
        return RewardPool(self.start, count, timeout_s=LIMIT, loading_timeout_s=LOADING, calls=self, clock=self.clock)


def answers(*prompts, n=2):
    return [RewardInput((name, index), Prompt(name, "v", "q"), "a") for name, index in product(prompts, range(n))]


def masked(outcomes):
    return sorted({key[0] for key, outcome in outcomes.items() if isinstance(outcome, Masked)})


def test_every_answer_is_scored_and_each_batch_goes_to_the_actor_with_the_least_to_do():
    world = World()
    pool = world.pool(2)
    batches = [pool.score(answers(*names)) for names in (["a", "b", "c"], ["d"], ["e"], ["f"], [])]
    outcomes = pool.collect(batches)
    assert outcomes.keys() == {answer.key for answer in answers(*"abcdef")} and masked(outcomes) == []
    assert [len(actor.requests) for actor in world.actors] == [1, 3]
    assert pool.busy_seconds() == 6.0 and pool.replaced == []


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("harm", "reason"), [("hangs", "within 10 s"), ("kills", "died")])
def test_a_prompt_that_stops_its_actor_masks_no_other_prompt(harm, reason, count):
    world = World(**{harm: ["b"]})
    pool = world.pool(count)
    batches = [pool.score(answers(*names)) for names in (["a", "b", "c"], ["d"], ["e"])]
    outcomes = pool.collect(batches)
    assert outcomes.keys() == {answer.key for answer in answers(*"abcde")}
    assert masked(outcomes) == ["b"]
    assert reason in outcomes["b", 0].reason and "2 times" in outcomes["b", 0].reason
    assert len(pool.replaced) == 2 and len(world.actors) == count + 2
    assert [actor.dead for actor in world.actors].count(True) == 2
    requests = []
    for actor in world.actors:
        requests += chain.from_iterable(actor.requests)
    assert requests.count(("b", 0)) == 2
    assert not masked(pool.collect([pool.score(answers("f"))]))  # it goes on


def test_several_hanging_prompts_are_masked():
    world = World(hangs="abc")
    outcomes = (pool := world.pool()).collect([pool.score(answers(*"abcd"))])
    assert masked(outcomes) == ["a", "b", "c"] and len(pool.replaced) == 4
    assert world.now < 5 * LIMIT + 10


def test_timeout_counts_from_the_start_of_a_batch():
    world = World()
    pool = world.pool()
    batches = [pool.score(answers(name, n=8)) for name in "abcd"]
    assert masked(pool.collect(batches)) == [] and world.now == 32.0 and pool.replaced == []


def test_finished_results_are_taken_before_a_timeout_is_judged():
    world = World()
    pool = world.pool()
    batches = [pool.score(answers(name, n=8)) for name in "ab"]
    world.now = 1000.0
    assert masked(pool.collect(batches)) == [] and pool.replaced == []


def test_actor_that_never_loads_raises_instead_of_being_replaced():
    world = World(loads=False)
    pool = world.pool()
    with pytest.raises(DeadlineError, match="ready within 100 s"):
        pool.wait_ready()
    with pytest.raises(DeadlineError, match="ready within 100 s"):
        pool.collect([pool.score(answers("a"))])


def test_scores_of_other_answers_are_an_error():
    world = World()
    pool = world.pool()
    usual = world.get
    world.get = lambda ref, timeout=None: ({}, 0.0) if world.refs[ref].answers else usual(ref)
    with pytest.raises(ContractError, match="2 scores"):
        pool.collect([pool.score(answers("a"))])
