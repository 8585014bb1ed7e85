"""The captions that a reward reads travel in the prompts, for a reward model and for a function alike."""

from __future__ import annotations

import logging
from dataclasses import replace
from unittest.mock import Mock

import pytest

from rlaif.config.schema import Reward
from rlaif.errors import DataError
from rlaif.models.reward import CARD, card_text
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.records import Prompt
from rlaif.stages.run import datasets, row_checks
from rlaif.stages.run.reward_context import prompts_with_context
from rlaif.stages.train import evaluate

PROMPTS = [Prompt(f"p{i}", f"v{i}.mp4", "what ?", captions=(f"caption {i}",)) for i in range(5)]


@pytest.fixture
def with_reward(make_config, world, tmp_path):
    """Make a configuration whose reward is a model or a function that reads captions in a given way."""

    def make(kind: str, context: str):
        if kind == "function":
            reward = "{path: 'builtins:len'}"
        else:
            (tmp_path / kind).mkdir(exist_ok=True)
            card = card_text(f"{world}/base", None, RewardPrompt.of(Reward(context=context)))
            (tmp_path / kind / CARD).write_text(card)
            reward = tmp_path / kind
        return make_config(tmp_path, f"ppo.reward={reward}", f"reward.context={context}")

    return make


@pytest.mark.parametrize("kind", ["function", "model"])
@pytest.mark.parametrize("context", ["captions", "none"])
def test_prompts_keep_their_own_captions_unless_the_context_is_shuffled(with_reward, kind, context):
    assert prompts_with_context(with_reward(kind, context), PROMPTS) == PROMPTS


def test_a_function_reads_the_same_shuffled_captions_as_a_reward_model(with_reward):
    shuffled = prompts_with_context(with_reward("model", "shuffled"), PROMPTS)
    assert prompts_with_context(with_reward("function", "shuffled"), PROMPTS) == shuffled
    for own, other in zip(PROMPTS, shuffled, strict=True):
        assert other.captions != own.captions
        assert replace(other, captions=own.captions) == own


def test_prompts_without_captions_are_refused_if_the_reward_model_reads_them(with_reward, caplog):
    without = [replace(prompt, captions=()) for prompt in PROMPTS]
    with pytest.raises(DataError, match="none in any of 5 prompts"):
        prompts_with_context(with_reward("model", "captions"), without)
    assert prompts_with_context(with_reward("model", "none"), without) == without
    assert prompts_with_context(with_reward("function", "captions"), without) == without
    with caplog.at_level(logging.WARNING):
        prompts_with_context(with_reward("model", "captions"), [*PROMPTS, *without[:1]])
    assert "1 of 6 prompts have no captions" in caplog.text


def test_evaluation_without_captions_ends_before_an_actor_starts(with_reward, monkeypatch):
    without = [replace(prompt, captions=()) for prompt in PROMPTS]
    start_workers = Mock()
    monkeypatch.setattr(evaluate, "require_inputs", Mock())
    monkeypatch.setattr(evaluate, "start_workers", start_workers)
    monkeypatch.setattr(row_checks, "eval_checks", Mock())
    monkeypatch.setattr(datasets, "load", Mock(return_value=without))
    with pytest.raises(DataError, match="none in any of 5 prompts"):
        evaluate.evaluate(with_reward("model", "captions"), Mock())
    start_workers.assert_not_called()
