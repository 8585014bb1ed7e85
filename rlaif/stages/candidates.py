"""Answers to be judged, of one model or of several: `rlaif sample CONFIG`. What is there already is not made again."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

from actors.pool import RolloutPool
from rlaif.config.schema import Config, Sampling
from rlaif.errors import DataError
from rlaif.feedback.store import Store
from rlaif.models.check import fingerprint, require_model
from rlaif.progress import Progress
from rlaif.records import Prompt
from rlaif.seeds import derive
from rlaif.stages import data
from rlaif.stages.run import Run

log = logging.getLogger(__name__)

AT_ONCE = 256
"""Prompts that are answered, and then written down, together."""

Key = tuple[str, str]
"""(prompt_id, fingerprint of the model): all its answers to a prompt are made, and written, together."""


def sample(config: Config, run: Run) -> dict[str, int]:
    """`candidates.per_model` answers of each model to each prompt; returns how many were made, were there, or failed."""
    options = config.candidates
    for model in options.models:
        require_model("candidates.models", model)
    prompts = [prompt for file in options.prompts for prompt in data.prompts(run, file)]
    store = open_candidates(config)
    counts = {"made": 0, "there": 0, "failed": 0}
    for model in options.models:
        print_ = fingerprint(model)
        missing = {key[0] for key in store.missing([(prompt.prompt_id, print_) for prompt in prompts])}
        counts["there"] += len(prompts) - len(missing)
        todo = [prompt for prompt in prompts if prompt.prompt_id in missing]
        if not todo:
            continue
        pool, shown = run.topology.engines(model), Progress(len(todo), f"answers of {model}")
        for start in range(0, len(todo), AT_ONCE):
            rows = _answered(config, pool, model, print_, todo[start : start + AT_ONCE])
            store.append(rows)
            failed = sum("masked" in row for row in rows)
            counts["failed"] += failed
            counts["made"] += len(rows) - failed
            shown.to(start + len(rows))
        shown.close()
    log.info("%s: %s", store.path, ", ".join(f"{count} {name}" for name, count in counts.items()))
    return counts


def open_candidates(config: Config) -> Store[Key]:
    return Store(data.data_path(config, config.data.candidates), key=lambda row: (row["prompt_id"], row["fingerprint"]))


def by_prompt(config: Config) -> dict[str, list[str]]:
    """Every prompt's answers, its models in the order of their fingerprints. Raises DataError where there are none."""
    store, found = open_candidates(config), {}
    for row in store.rows():
        found.setdefault(row["prompt_id"], []).extend(row.get("answers", []))
    if not found:
        raise DataError(f"answers in {store.path}", "none", "rlaif sample, or data.candidates")
    return found


def _answered(config: Config, pool: RolloutPool, model: str, print_: str, prompts: Sequence[Prompt]) -> list[dict]:
    """A row per prompt: its answers in the order of their seeds, and where they come from."""
    options, seed = config.candidates, derive(config.seed, "candidates", print_)
    sampling = Sampling(temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens)
    pool.submit("candidates", prompts, options.per_model, seed, sampling)
    samples, masked = [], {}
    for answers in pool.results("candidates", config.cluster.collective_timeout_s):
        samples += answers.samples
        masked |= {failure.prompt_id: failure.reason for failure in answers.failures}
    samples.sort(key=lambda one: one.key)
    groups = {key: list(group) for key, group in itertools.groupby(samples, key=lambda one: one.prompt.prompt_id)}
    origin = {
        "fingerprint": print_,
        "model": model,
        "seed": seed,
        **sampling.model_dump(mode="json", exclude_defaults=True),
    }
    rows = []
    for prompt in prompts:
        row = {"prompt_id": prompt.prompt_id, "video": prompt.video, **origin}
        if prompt.prompt_id in masked:
            rows.append(row | {"masked": masked[prompt.prompt_id]})
            continue
        group = groups[prompt.prompt_id]
        tokens = [len(one.response_ids) for one in group]
        rows.append(
            row
            | {
                "answers": [one.response for one in group],
                "tokens": tokens,
                "ended": [one.finish_reason for one in group],
            }
        )
    return rows
