"""The reward model: `rlaif reward CONFIG`."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np

from rlaif.config.schema import Config, Reward
from rlaif.config.section import Function
from rlaif.data.preference import PreferencePair
from rlaif.data.sampler import rows_of_step
from rlaif.errors import DataError, named
from rlaif.evaluation.preference import dimension_metrics, scores_by_dimension
from rlaif.io.rundir import RunDir
from rlaif.io.storage import locate
from rlaif.models.check import require_model
from rlaif.models.reward import CARD, card_text
from rlaif.models.reward_prompt import RewardPrompt, contexts
from rlaif.seeds import derive
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.preflight.models import check_model_option
from rlaif.stages.run import datasets, row_checks
from rlaif.stages.run.run import Run, Start
from rlaif.stages.run.summary import NextStage, Summary, is_export
from rlaif.stages.train import supervised

log = logging.getLogger(__name__)

LEARNED = ("dimensions", "centering", "centering_coef", "margin", "margin_coef", "batch_size")
"""Options of `reward` that decide what is learned, besides what the model reads."""


def train(config: Config, run: Run, start: Start = "new") -> str:
    """Train on preference pairs, measure on held-out ones and export the best step (`reward.export`). Returns the path."""
    require_model("reward.init", config.reward.init)
    rows, held_out = training_pairs(config, run)
    reward = config.reward.model_copy(update={"steps": steps_of(config.reward, len(rows))})
    belongs = identity(reward, config.seed, rows, held_out)
    checkpoints = run.checkpoints("reward", reward.save.keep)
    newest = run.starting_point("reward", checkpoints, start, belongs)
    if run.nothing_left("reward", newest, reward.steps, "reward.steps"):
        return str(run.directory.export("reward"))
    signs = {row.pair_id: row.signs for row in held_out}

    def chosen(number: int) -> list[PreferencePair]:
        return [rows[i] for i in rows_of_step(len(rows), reward.batch_size, number, config.seed, "reward")]

    def step(number: int) -> list:
        return group.step_pairs(chosen(number), reward)

    def videos(number: int) -> set[str]:
        names: set[str] = set()
        for row in chosen(number):
            names.update(row.videos)
        return names

    def evaluate() -> dict[str, float]:
        scores, skipped = group.score_pairs(held_out, reward)
        return eval_metrics(signs, scores, skipped, reward.dimensions)

    first = supervised.in_order(chosen, newest, len(rows))
    datasets.decode_first(run, itertools.chain(first, held_out))
    group = run.topology.learners(supervised.learner_spec(config, reward, "reward", "reward"))
    best_by = "eval/accuracy" if reward.export == "best" else None
    task = supervised.Supervised(
        "reward", reward.steps, reward.save, belongs, step, videos, evaluate, reward.eval_every, best_by
    )
    best = supervised.train(task, run, group, checkpoints, newest)
    if best_by and best.iteration not in (None, reward.steps):
        log.info("exporting step %d, of accuracy %.3f on the held-out pairs", best.iteration, best.score)
        group.load(checkpoints, checkpoints.at(best.iteration))
    if best_by and best.iteration is None:
        log.warning("exporting the last step: no held-out pair says which step is best (data.pairs_eval)")
    card = {CARD: card_text(reward.init, reward.lora, RewardPrompt.of(reward), reward.dimensions)}
    export = group.export("reward", run.directory.export("reward"), card=card)
    run.exported("reward", max(reward.steps, newest.iteration if newest else 0))
    run.topology.stop_learners()
    return export


def eval_metrics(
    signs: Mapping[str, Mapping[str, int]],
    scores: Mapping[str, np.ndarray],
    skipped: Sequence[str],
    dimensions: Sequence[str],
) -> dict[str, float]:
    """Return the `eval/` metrics of the held-out pairs that could be read; `eval/skipped` counts the others.

    If none could be read there is no `eval/accuracy`, but no error either, which would lose what was trained.
    """
    if skipped:
        log.warning("%d of %d held-out pairs are left out: %s", len(skipped), len(signs), named(skipped))
    metrics = dimension_metrics(scores_by_dimension(signs, scores, dimensions)) | {"skipped": float(len(skipped))}
    return {f"eval/{name}": value for name, value in metrics.items()}


def steps_of(reward: Reward, pairs: int) -> int:
    """Return the number of optimizer steps.

    That is `reward.steps`, or what `reward.epochs` passes over the pairs take, rounded up to whole batches.
    """
    if not reward.epochs:
        return reward.steps
    return math.ceil(reward.epochs * pairs / reward.batch_size)


def identity(reward: Reward, seed: int, rows: Sequence[PreferencePair], held_out: Sequence[PreferencePair]) -> dict:
    """Return what a checkpoint belongs to.

    That is base and adapter, what the model reads, what it learns, the pairs it learns from and is measured on, and what
    decides which of them make a step.
    """
    objective = reward.model_dump(mode="json", include=set(LEARNED))
    reads_captions = reward.context != "none"
    pairs = {"pairs": digest_of(rows, reads_captions), "pairs_eval": digest_of(held_out, reads_captions)}
    prompt = asdict(RewardPrompt.of(reward))
    return supervised.identity("reward", reward) | prompt | objective | pairs | {"seed": seed}


def digest_of(rows: Sequence[PreferencePair], captions: bool) -> str:
    """Return 16 hex digits over pairs in order, since a step takes them by position. `captions`: whether they are read."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(_content(row, captions), sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _content(row: PreferencePair, captions: bool) -> dict:
    """Return what is learned from a pair. The keys must stay: checkpoints of earlier versions have the digest of these."""
    return {
        "pair_id": row.pair_id,
        "video": row.answer_videos[0],
        "question": row.question,
        "captions": row.captions if captions else (),
        "chosen": row.chosen,
        "rejected": row.rejected,
        "dimension": row.dimension,
        "dimensions": row.dimensions,
        "margin": row.margin,
        "rejected_video": row.rejected_video,
        "prompt_id": row.prompt_id,
        "earlier_turns": row.earlier_turns,
    }


def training_pairs(config: Config, run: Run) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Return (training, held-out) pairs with the captions that `reward.context` asks for."""
    rows = _read(config, run, config.data.pairs)
    if config.data.pairs_eval:
        held_out = _read(config, run, config.data.pairs_eval)
    else:
        rows, held_out = hold_out(rows, config.reward.eval_fraction, config.seed)
    return with_context(rows, config), with_context(held_out, config)


def _read(config: Config, run: Run, file: str) -> list[PreferencePair]:
    checks = [row_checks.pair_check(config, run, config.reward)]
    rows = compared(datasets.load(run, file, "pairs", checks), config.reward, file)
    if config.reward.context != "none":
        datasets.check_captions(config, rows, file)
    return rows


def compared(rows: list[PreferencePair], reward: Reward, file: str) -> list[PreferencePair]:
    """Return the rows that were compared in any of `reward.dimensions`; those that lack one are counted by dimension.

    Raises DataError for a dimension that no row has, and with `reward.margin=record` for a margin below 0.
    """
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row.signs.keys())
    unknown = [name for name in reward.dimensions if name not in counts]
    if unknown:
        known = [f"{name} ({count})" for name, count in counts.most_common()]
        raise DataError(
            f"pairs in {file} that were compared in {', '.join(unknown)}",
            f"none of {len(rows)}; there are {', '.join(known)}",
            "Set reward.dimensions, or use another file.",
        )
    for name in reward.dimensions:
        without = len(rows) - counts[name]
        if without:
            log.warning("%s: %d of %d pairs were not compared in %s", file, without, len(rows), name)
    below = [row.pair_id for row in rows if (row.margin or 0) < 0]
    if reward.margin == "record" and below:
        raise DataError(
            "margins that say how much better `chosen` is",
            f"below 0 in {named(below)} of {file}",
            "Correct the rows, or set `reward.margin=none`.",
        )
    return [row for row in rows if not row.signs.keys().isdisjoint(reward.dimensions)]


def _about(row: PreferencePair) -> str:
    """Return what a pair is about: its prompt if two videos are compared, else its video."""
    return (row.rejected_video and row.prompt_id) or row.answer_videos[0]


def hold_out(
    rows: list[PreferencePair], fraction: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Return (training, held-out) rows; a video (or a prompt, if two videos are compared) is on one side only.

    Raises DataError if there are too few of them to split.
    """
    groups = sorted({_about(row) for row in rows}, key=lambda group: derive(seed, "hold out", group))
    chosen = set(groups[: max(1, round(len(groups) * fraction))])
    if len(chosen) == len(groups):
        raise DataError("pairs on at least two videos", f"{len(groups)}", "Give more pairs, or set data.pairs_eval.")
    training: list[PreferencePair] = []
    held_out: list[PreferencePair] = []
    for row in rows:
        side = held_out if _about(row) in chosen else training
        side.append(row)
    return training, held_out


def with_context(rows: list[PreferencePair], config: Config) -> list[PreferencePair]:
    """Return the rows with the captions that `reward.context` asks for; rows that have none are counted."""
    mode = config.reward.context
    empty = sum(not row.captions for row in rows)
    if mode != "none" and empty:
        log.warning("%d of %d pairs have no captions: the reward model reads no context there", empty, len(rows))
    captions_by_row = contexts(mode, [(row.answer_videos[0], row.captions) for row in rows], config.seed)
    return [replace(row, captions=captions) for row, captions in zip(rows, captions_by_row, strict=True)]


def check_reward(inquiry: Inquiry) -> None:
    """Check the model to start from and the pairs: dimensions, captions, and whether some can be held out."""
    config = inquiry.config
    check_model_option(inquiry, "reward.init", config.reward.init)
    names = ["pairs", "pairs_eval"] if config.data.pairs_eval else ["pairs"]
    for name in names:
        rows = inquiry.rows(name)
        if not rows:
            continue
        option, file = f"data.{name}", getattr(config.data, name)
        rows = inquiry.attempt("reward.dimensions", compared, rows, config.reward, file)
        # With a file of captions, the rows that have some depend on the videos' contents: the stage looks them up.
        if rows and config.reward.context != "none" and not inquiry.has_file("captions"):
            inquiry.attempt(option, datasets.check_captions, config, rows, file)
        if rows and name == "pairs" and not config.data.pairs_eval:
            inquiry.attempt(option, hold_out, rows, config.reward.eval_fraction, config.seed)


def summarise_reward(config: Config, directory: RunDir, export: str) -> Summary:
    """Return the best accuracy on held-out pairs; PPO follows if it uses this model and its policy exists."""
    evaluations = [row for row in directory.read_metrics("reward") if row.get("eval/accuracy") is not None]
    figures = {}
    if evaluations:
        best = max(evaluations, key=lambda row: row["eval/accuracy"])
        figures["held-out accuracy"] = f"{best['eval/accuracy']:.1%} at step {best['iteration']}"
    reward = config.ppo.reward
    uses_export = not isinstance(reward, Function) and is_export(reward, directory.export("reward"))
    following: list[NextStage] = []
    if uses_export and (locate(config.ppo.policy) / "config.json").exists():
        following.append(("align the policy with this reward model", "ppo", ()))
    return Summary(figures, {"export": export}, following=following)
