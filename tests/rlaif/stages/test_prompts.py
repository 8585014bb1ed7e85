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
from rlaif.stages.train.experience import ExperienceMaker, PendingBatch
from rlaif.stages.train.prompts import mask_gone, open_deck
from rlaif.stages.train.workers import Workers


class Pool:
    """Answers at once, but for the prompts in `broken`."""

    def __init__(self, broken):
        self.broken = broken
        self.submitted = {}

    def submit(self, batch, prompts, n, seed, sampling):
        self.submitted[batch] = prompts

    def results(self, batch, timeout):
        failures = []
        samples = []
        for prompt in self.submitted[batch]:
            if prompt.prompt_id in self.broken:
                failures.append(Failure(prompt.prompt_id, "cut off"))
            else:
                samples.append(SimpleNamespace(key=(prompt.prompt_id, 0), prompt=prompt, response=""))
        yield Answers(samples, failures)


class NoScores:
    def score(self, inputs):
        return None


@pytest.fixture
def run(make_config, tmp_path) -> Run:
    config = make_config(tmp_path)
    return Run(config, RunDir(config.storage, config.name), None, NoTopology(config))


def answer_first(run: Run, broken: set[str], ahead: int = 0) -> tuple[ExperienceMaker, list[str]]:
    """Answer the first iteration with a pool that cannot answer some prompts, with `ahead` more iterations submitted.

    Returns the maker, and the ids of the prompts that were answered.
    """
    config = run.config
    deck = Deck(datasets.load(run, "prompts.jsonl", "prompts"), config.ppo.prompts_per_iteration, config.seed)
    weight_sync = SimpleNamespace(wait=lambda: None)
    frames = SimpleNamespace(prefetch=lambda videos: None)
    workers = Workers(None, Pool(broken), NoScores(), weight_sync, frames, deadline_s=1)
    maker = ExperienceMaker(config, run, workers, deck, Ledger(), 0)
    for iteration in range(ahead + 1):
        maker.submit(iteration)
    pending = PendingBatch()
    maker._receive(0, pending)
    maker._replace_failed(0, pending)
    return maker, [sample.prompt.prompt_id for sample in pending.samples]


def test_substitutes_that_fail_are_replaced_as_well(run):
    prompts = datasets.load(run, "prompts.jsonl", "prompts")
    deck = Deck(prompts, 4, run.config.seed)
    first = [prompt.prompt_id for prompt in deck.of(0)]
    other = next(prompt.prompt_id for prompt in prompts if prompt.prompt_id not in first)
    broken = {first[0], other}
    maker, answered = answer_first(run, broken, ahead=1)
    assert len(set(answered)) == 4 and not broken & set(answered)
    left_out = maker.deck.left_out
    assert {name: why.since for name, why in left_out.items()} == dict.fromkeys(left_out, 2)
    assert first[0] in left_out and set(left_out) <= broken
    again, same = answer_first(run, broken, ahead=1)
    assert again.workers.rollouts.submitted == maker.workers.rollouts.submitted and same == answered


def test_the_run_stops_when_most_prompts_cannot_be_answered(run):
    every = {prompt.prompt_id for prompt in datasets.load(run, "prompts.jsonl", "prompts")}
    with pytest.raises(DataError, match=r"at most 50% of the prompts unusable \(ppo\.max_prompt_failures\)") as caught:
        answer_first(run, every)
    assert "cut off" in caught.value.found and "--resume" in caught.value.fix


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
