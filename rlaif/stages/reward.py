"""The reward model: `rlaif reward CONFIG`."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

from actors.reward import CARD, card_text
from rlaif.config.schema import Config, Reward
from rlaif.data import Pair
from rlaif.errors import DataError
from rlaif.evaluation.preference import agreement
from rlaif.models.check import require_model
from rlaif.models.reward_prompt import RewardPrompt, contexts
from rlaif.order import rows_of_step
from rlaif.seeds import derive
from rlaif.stages import data, supervised
from rlaif.stages.run import Run, Start

log = logging.getLogger(__name__)


def train(config: Config, run: Run, start: Start = "new") -> str:
    """Train on preference pairs, measure on held-out ones, export; returns the export's path."""
    require_model("reward.init", config.reward.init)
    rows, held_out = datasets(config, run)
    reward = config.reward.model_copy(update={"steps": steps_of(config.reward, len(rows))})
    identity = supervised.identity("reward", reward) | {"context": reward.context}
    checkpoints = run.checkpoints("reward", reward.save.keep)
    newest = run.starting_point("reward", checkpoints, start, identity)
    group = run.topology.learners(supervised.learner_spec(config, reward, "reward", "reward"))

    def chosen(number: int) -> list[Pair]:
        return [rows[i] for i in rows_of_step(len(rows), reward.batch_size, number, config.seed, "reward")]

    def step(number: int) -> list:
        return group.step_pairs(chosen(number), reward)

    def videos(number: int) -> set[str]:
        return {row.video for row in chosen(number)}

    def evaluate() -> dict[str, float]:
        return {f"eval/{name}": value for name, value in agreement(group.score_pairs(held_out, reward)).items()}

    task = supervised.Supervised(
        "reward", reward.steps, reward.save, identity, step, videos, evaluate, reward.eval_every
    )
    supervised.train(task, run, group, checkpoints, newest)
    card = {CARD: card_text(reward.init, reward.lora, RewardPrompt.of(reward))}
    export = group.export("reward", run.directory.export("reward"), card=card)
    run.topology.stop_learners()
    return export


def steps_of(reward: Reward, pairs: int) -> int:
    """Optimizer steps: `reward.steps`, or as many as `reward.epochs` passes over the pairs take, the last one filled up."""
    return math.ceil(reward.epochs * pairs / reward.batch_size) if reward.epochs else reward.steps


def datasets(config: Config, run: Run) -> tuple[list[Pair], list[Pair]]:
    """(training, held-out) pairs with the captions that `reward.context` asks for."""
    rows = data.pairs(run, config.data.pairs)
    if config.data.pairs_eval:
        held_out = data.pairs(run, config.data.pairs_eval)
    else:
        rows, held_out = hold_out(rows, config.reward.eval_fraction, config.seed)
    return with_context(rows, config), with_context(held_out, config)


def hold_out(rows: list[Pair], fraction: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, held-out) rows; a video is on one side only. DataError where there are too few videos to split."""
    videos = sorted({row.video for row in rows}, key=lambda video: derive(seed, "hold out", video))
    chosen = set(videos[: max(1, round(len(videos) * fraction))])
    if len(chosen) == len(videos):
        raise DataError("pairs on at least two videos", f"{len(videos)}", "more pairs, or data.pairs_eval")
    return [row for row in rows if row.video not in chosen], [row for row in rows if row.video in chosen]


def with_context(rows: list[Pair], config: Config) -> list[Pair]:
    """The rows with the captions that `reward.context` asks for; rows that have none are counted."""
    mode, empty = config.reward.context, sum(not row.captions for row in rows)
    if mode != "none" and empty:
        log.warning("%d of %d pairs have no captions: the reward model reads no context there", empty, len(rows))
    found = contexts(mode, [(row.video, row.captions) for row in rows], config.seed)
    return [replace(row, captions=captions) for row, captions in zip(rows, found, strict=True)]
