"""A resume with files that broke since, a pool that answers, and prompts that it cannot answer; without a cluster."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from without_actors import NoTopology

from actors.rollout import Answers, Failure
from cluster.ledger import Ledger
from rlaif.data.videos import decode_videos
from rlaif.errors import DataError
from rlaif.io.rundir import RunDir
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.train.deck import Deck
from rlaif.stages.train.replacing import mask_gone, open_deck, replace_failed


class Pool:
    """Answers at once, but for the prompts in `broken`."""

    def __init__(self, broken):
        self.broken, self.asked = broken, {}

    def submit(self, batch, prompts, n, seed, sampling):
        self.asked[batch] = [prompt.prompt_id for prompt in prompts]

    def results(self, batch, timeout):
        failures = [Failure(name, "cut off") for name in self.asked[batch] if name in self.broken]
        yield Answers([name for name in self.asked[batch] if name not in self.broken], failures)


class Arrived:
    def __init__(self, answers):
        self.samples, self.failures = list(answers.samples), list(answers.failures)

    def take(self, roles, answers):
        self.samples += answers.samples
        self.failures += answers.failures


@pytest.fixture
def run(make_config, tmp_path) -> Run:
    config = make_config(tmp_path)
    return Run(config, RunDir(config.storage, config.name), None, NoTopology(config))


def answered(run: Run, broken: set[str], iteration: int = 0, ahead: int = 0):
    """One iteration on a pool that cannot answer some prompts, with `ahead` more iterations asked for already."""
    config = run.config
    deck = Deck(datasets.load(run, "prompts.jsonl", "prompts"), config.ppo.prompts_per_iteration, config.seed)
    pool, ledger = Pool(broken), Ledger()
    roles = SimpleNamespace(deck=deck, rollouts=pool, ledger=ledger, run=run, deadline_s=1)
    roles.arriving = dict.fromkeys(range(iteration, iteration + ahead + 1))
    for number in roles.arriving:
        ledger.issue(number, [(prompt.prompt_id, 0) for prompt in deck.of(number)])
    pool.submit("first", deck.of(iteration), 2, 0, None)
    arriving = Arrived(next(pool.results("first", 1)))
    replace_failed(config, roles, iteration, arriving)
    return roles, arriving


def test_substitutes_that_fail_are_replaced_as_well(run):
    every = [prompt.prompt_id for prompt in datasets.load(run, "prompts.jsonl", "prompts")]
    deck = Deck(datasets.load(run, "prompts.jsonl", "prompts"), 4, run.config.seed)
    asked = [prompt.prompt_id for prompt in deck.of(0)]
    broken = {asked[0], next(name for name in every if name not in asked)}
    roles, arriving = answered(run, broken, ahead=1)
    assert len(set(arriving.samples)) == 4 and not broken & set(arriving.samples)
    assert {name: why.since for name, why in roles.deck.left_out.items()} == dict.fromkeys(roles.deck.left_out, 2)
    assert asked[0] in roles.deck.left_out and set(roles.deck.left_out) <= broken
    again, same = answered(run, broken, ahead=1)
    assert again.rollouts.asked == roles.rollouts.asked and same.samples == arriving.samples


def test_the_run_stops_when_most_prompts_cannot_be_answered(run):
    every = {prompt.prompt_id for prompt in datasets.load(run, "prompts.jsonl", "prompts")}
    with pytest.raises(DataError, match=r"at most 50% of the prompts unusable \(ppo\.max_prompt_failures\)") as caught:
        answered(run, every)
    assert "cut off" in caught.value.found and "--resume" in caught.value.change


def test_a_resume_without_a_prompt_asks_for_what_is_left_of_the_open_iterations(run):
    prompts = datasets.load(run, "prompts.jsonl", "prompts")
    deck = Deck(prompts, run.config.ppo.prompts_per_iteration, run.config.seed)
    ledger = Ledger()
    for iteration in (0, 1):
        ledger.issue(iteration, [(prompt.prompt_id, 0) for prompt in deck.of(iteration)])
    meta = json.loads(json.dumps({"deck": deck.state_dict(), "ledger": ledger.state_dict()}))
    newest = SimpleNamespace(iteration=0, meta=meta)
    gone = deck.of(1)[0]
    rest = [prompt for prompt in prompts if prompt.prompt_id != gone.prompt_id]
    resumed = open_deck(run.config, run, rest, newest)
    mask_gone(ledger, resumed)
    for iteration in (0, 1):  # raises if anything else is asked for than what is in flight
        ledger.issue(iteration, [(prompt.prompt_id, 0) for prompt in resumed.of(iteration)])
    assert resumed.left_out[gone.prompt_id].since == 2
    assert all(len(resumed.of(n)) == 4 and gone not in resumed.of(n) for n in range(2, 9))


def test_a_resume_with_other_prompts_is_refused(run):
    prompts = datasets.load(run, "prompts.jsonl", "prompts")
    deck = Deck(prompts, 4, run.config.seed)
    newest = SimpleNamespace(iteration=0, meta={"deck": deck.state_dict(), "ledger": Ledger().state_dict()})
    with pytest.raises(DataError, match="ppo.max_prompt_failures"):
        open_deck(run.config, run, prompts[:2], newest)


def test_videos_are_decoded_in_order_until_the_time_is_up():
    tried = []

    def decode(video):
        tried.append(video)
        if video == "b":
            raise DataError("frames", "none", "replace it")

    assert decode_videos("abcab", decode) == ({"b": "b: expected frames, found none"}, 3)
    assert tried == ["a", "b", "c"]
    assert decode_videos("abc", decode, seconds=0) == ({}, 0)
