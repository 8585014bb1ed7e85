"""Scores for answers that nobody trains on, for `rlaif score`, `rlaif eval agreement` and `winrate`: by a reward model, or by
a judge."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from actors.reward import Answer, RewardPool, load_function
from cluster.remote import ask
from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.errors import ContractError
from rlaif.records import Key, Outcome, Prompt
from rlaif.stages.judges import name_of
from rlaif.stages.label import Case, kind_of, label_store, labelled
from rlaif.stages.roles import context_of
from rlaif.stages.run import Run

AT_ONCE = 64
"""Answers that one call to a reward actor scores."""


def rewarded(
    config: Config,
    run: Run,
    answers: Sequence[tuple[Prompt, Sequence[str]]],
    weights: Mapping[str, float] | None = None,
) -> list[list[Outcome]]:
    """What `ppo.reward` says of each prompt's answers, on the reward actors, in the order given.

    weights: factors of its dimensions in the score; None: each part as it is.
    """
    if isinstance(config.ppo.reward, Function):
        load_function(config.ppo.reward.path)  # a typing error is found here, not in an actor
    captions = context_of(config, [prompt for prompt, _ in answers])
    asked = [
        Answer((prompt.prompt_id, index), prompt, captions[prompt.prompt_id], text)
        for prompt, texts in answers
        for index, text in enumerate(texts)
    ]
    pool = run.topology.rewards(config.ppo.reward, config.ppo.tokens_per_microbatch, weights)
    found = outcomes(pool, asked)
    run.topology.stop_rewards()
    return [[found[prompt.prompt_id, index] for index in range(len(texts))] for prompt, texts in answers]


def outcomes(pool: RewardPool, asked: Sequence[Answer]) -> dict[Key, Outcome]:
    """One outcome per answer, shared out to all reward actors. Raises ContractError where the actors give more or fewer."""
    calls = [pool.score(asked[start : start + AT_ONCE]) for start in range(0, len(asked), AT_ONCE)]
    found = dict(itertools.chain.from_iterable(part.items() for part in ask(calls)))
    if found.keys() != {answer.key for answer in asked}:
        raise ContractError(f"{len(asked)} scores for as many answers", f"{len(found)}", "the reward actors' log")
    return found


def judged(config: Config, run: Run, cases: Sequence[Case], name: str) -> tuple[str, list[dict]]:
    """The judge's name and a row of labels per case, kept below the run, so that nothing is asked twice.

    A file for each way of asking: other options of `label` do not meet these labels.
    """
    kind = kind_of(config.label, name_of(config.label.judge))
    store = label_store(run.directory.path / "feedback" / f"{name}-{kind}.jsonl")
    return labelled(config, run, cases, store)


def reasons(row: dict) -> list[str]:
    """Why a row of labels lacks a verdict."""
    of_pairs = [pair["masked"] for pair in row.get("pairs", ()) if "masked" in pair]
    return of_pairs or list(dict.fromkeys(score["masked"] for score in row["scores"] if "masked" in score))
