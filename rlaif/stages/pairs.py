"""Preference pairs from a policy's own answers, labelled by a function that compares two of them."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from actors.pool import RolloutPool
from rlaif.config.schema import Config, Sampling
from rlaif.records import Prompt, Sample
from rlaif.seeds import derive

log = logging.getLogger(__name__)

Preference = Callable[[Prompt, str, str], int]
"""f(prompt, a, b) -> 1 where a is better, -1 where b is, 0 for a tie."""


def sample_answers(config: Config, rollouts: RolloutPool, prompts: Sequence[Prompt], n: int) -> list[Sample]:
    """n answers per prompt at temperature 1, sorted by key."""
    sampling = Sampling(temperature=1.0, max_tokens=config.ppo.sampling.max_tokens)
    rollouts.submit("pairs", prompts, n, derive(config.seed, "pairs"), sampling)
    samples = []
    for answers in rollouts.results("pairs", config.cluster.collective_timeout_s):
        samples += answers.samples
        for failure in answers.failures:
            log.warning("no answers to %s: %s", failure.prompt_id, failure.reason)
    return sorted(samples, key=lambda sample: sample.key)


def make_pairs(samples: Sequence[Sample], preference: Preference, most_per_prompt: int, seed: int) -> list[dict]:
    """Rows of a preference file: every two different answers of a prompt that are not tied, at most
    `most_per_prompt` of them, chosen by seed."""
    rows = []
    for _, group in itertools.groupby(samples, key=lambda sample: sample.prompt.prompt_id):
        group = list(group)
        found = [_row(a, b, preference) for a, b in itertools.combinations(group, 2) if a.response != b.response]
        found = sorted(filter(None, found), key=lambda row: derive(seed, row["pair_id"]))
        rows += found[:most_per_prompt]
    return rows


def write_rows(path: Path, rows: Sequence[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _row(a: Sample, b: Sample, preference: Preference) -> dict | None:
    verdict = preference(a.prompt, a.response, b.response)
    if verdict == 0:
        return None
    chosen, rejected = (a, b) if verdict > 0 else (b, a)
    return {
        "pair_id": f"{a.prompt.prompt_id}#{a.sample_index}-{b.sample_index}",
        "video": a.prompt.video,
        "question": a.prompt.question,
        "captions": list(a.prompt.captions),
        "chosen": chosen.response,
        "rejected": rejected.response,
    }
