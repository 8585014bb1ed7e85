"""The checks that the rows of each stage must pass before an engine or a learner starts (rlaif/models/usable.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from rlaif.config.schema import Config, Reward
from rlaif.config.section import Function
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import Conversation
from rlaif.io.storage import fetch
from rlaif.models.encode import Encoder
from rlaif.models.model_dir import ModelDir
from rlaif.models.reward import read_card
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.models.usable import Reader, Room
from rlaif.records import Prompt
from rlaif.stages.run.run import Run

Check = Callable[[Any], str | None]
"""Raises RowError for a row that can never be used; returns a remark about one that is not read as it looks."""


@lru_cache(maxsize=8)
def encoder_of(model: str) -> Encoder:
    """Return tokenizer and processor of a model directory, or of an adapter's base; no weights are read."""
    return Encoder(ModelDir(model).base.location)


def reader_of(run: Run, model: str) -> Reader:
    """Return what checks rows as a model reads them."""
    return Reader(encoder_of(model), run.topology.client().spec, model)


def answer_check(config: Config, run: Run, model: str, max_tokens: int, option: str) -> Check:
    """Return the check of prompts that an engine answers.

    It remarks on a prompt that leaves no room for `max_tokens`, the value of `option`.
    """
    reader, rooms = reader_of(run, model), engine_rooms(config)
    for_whole_answer = config.rollout.max_model_len - max_tokens
    wish = Room(for_whole_answer, f"rollout.max_model_len less the {max_tokens} of {option}")
    return lambda prompt: reader.prompt(prompt, rooms, wish)


def engine_rooms(config: Config, max_tokens: int = 1, option: str = "an answer") -> list[Room]:
    """Return the limits of a prompt: the options' own, and the rest of the engine's length after an answer."""
    rest = config.rollout.max_model_len - max_tokens
    return [
        Room(config.data.max_prompt_tokens, "data.max_prompt_tokens"),
        Room(rest, f"rollout.max_model_len less the {max_tokens} of {option}"),
    ]


def reward_checks(config: Config, run: Run) -> list[Check]:
    """Return the checks of what a reward model, if `ppo.reward` is one, reads of prompts beside the answers."""
    if isinstance(config.ppo.reward, Function):
        return []
    card = read_card(config.ppo.reward)
    # an adapter reads texts as its base does
    model = card["base"] if card["lora"] else fetch(config.ppo.reward)
    reader = reader_of(run, model)
    form = RewardPrompt(**card["prompt"])

    def check(prompt: Prompt) -> str | None:
        return reader.scored(prompt.question, prompt.captions, form)

    return [check]


def ppo_checks(config: Config, run: Run) -> list[Check]:
    """Return the checks of the prompts of PPO, which leave room for a whole answer: one that is cut has no end to learn."""
    reader = reader_of(run, config.ppo.policy)
    rooms = engine_rooms(config, config.ppo.sampling.max_tokens, "ppo.sampling.max_tokens")
    return [lambda prompt: reader.prompt(prompt, rooms), *reward_checks(config, run)]


def eval_checks(config: Config, run: Run) -> list[Check]:
    """Return the checks of the prompts of an evaluation."""
    first = answer_check(config, run, config.ppo.policy, config.eval.max_tokens, "eval.max_tokens")
    return [first, *reward_checks(config, run)]


def sft_check(config: Config, run: Run) -> Check:
    """Return the check of conversations of supervised fine-tuning."""
    reader, rooms = reader_of(run, config.sft.init), _sequence_rooms(config)

    def check(row: Conversation) -> str | None:
        return reader.conversation(row, rooms)

    return check


def pair_check(config: Config, run: Run, reward: Reward) -> Check:
    """Return the check of pairs that a reward model is trained or measured on."""
    reader, rooms, form = reader_of(run, reward.init), _sequence_rooms(config), RewardPrompt.of(reward)

    def check(row: PreferencePair) -> str | None:
        return reader.pair(row, form, rooms)

    return check


def _sequence_rooms(config: Config) -> list[Room]:
    return [Room(config.data.max_prompt_tokens, "data.max_prompt_tokens")]
