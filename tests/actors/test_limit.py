"""Prompts over `data.max_prompt_tokens` fail for the same reason whether answers are sampled or words are chosen from."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from actors.engine import Engine
from actors.requests import Completion, over_limit
from actors.rollout import RolloutActor
from rlaif.config.schema import Sampling
from rlaif.records import Prompt

PROMPTS = [Prompt("short", "", "x" * 4), Prompt("long", "", "x" * 9)]


class Coder:
    """A tokenizer with one token per character."""

    def unexpanded(self, question, video):
        return [0] * len(question)

    def marks(self, ids):
        return []

    tokenizer = SimpleNamespace(get_vocab=lambda: {"yes": 1})


class Core(Engine):
    """The engine's own code without a model."""

    def __init__(self):
        self.encoded, self.weights = 0, SimpleNamespace(check_version=lambda version: None)

    def _params(self, *args, **options):
        return None

    def _run(self, jobs, progress=None):
        token = SimpleNamespace(outputs=[SimpleNamespace(logprobs=[{1: SimpleNamespace(logprob=-0.5)}])])
        return [[SimpleNamespace(prompt_token_ids=job[0]["prompt_token_ids"], **vars(token))] for job in jobs]

    def generate(self, requests, sampling, version, progress=None):
        none = np.array([], np.int32)
        return [[Completion(np.array(r.prompt_ids), none, none, "", "stop", 0)] for r in requests]


@pytest.fixture
def actor():
    actor = RolloutActor.__new__(RolloutActor)
    actor._limit, actor._engine, actor._encoder, actor._features = 8, Core(), Coder(), None
    actor._tokens, actor._busy_s, actor._reported, actor._tower = 0, 0.0, 0, None
    return actor


def test_prompt_over_the_limit_fails_in_generate_and_in_score_choices(actor):
    choices, samples = actor.score_choices(PROMPTS, ["yes"], 0), actor.generate(PROMPTS, 1, 0, Sampling(), 0)
    assert [one.prompt.prompt_id for one in choices.samples] == ["short"]
    assert [one.prompt.prompt_id for one in samples.samples] == ["short"]
    assert choices.failures == samples.failures and choices.failures[0].prompt_id == "long"
    assert choices.failures[0].reason == "9 prompt positions, over data.max_prompt_tokens (8)"
    actor._limit = None
    assert not actor.score_choices(PROMPTS, ["yes"], 0).failures


def test_prompt_at_the_limit_is_accepted():
    assert over_limit(8, 8) is None and over_limit(9, 8)
