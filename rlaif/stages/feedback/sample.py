"""Answers to be judged, of one model or of several: `rlaif sample CONFIG`. What is there already is not made again."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Sequence
from functools import partial

from actors.pool import RolloutPool
from rlaif.config.schema import Config, Sampling
from rlaif.errors import ContractError, DataError
from rlaif.feedback.store import Store
from rlaif.models.check import require_model
from rlaif.models.model_dir import ModelDir
from rlaif.records import Prompt
from rlaif.seeds import derive
from rlaif.stages.feedback.fill import fill
from rlaif.stages.run import datasets, row_checks
from rlaif.stages.run.run import Run

log = logging.getLogger(__name__)

OF_FRAMES = ("num_frames", "height", "width")
"""Options of `video` that make a FrameSpec."""
Key = tuple[str, str, str]
"""(prompt_id, fingerprint of the model, what was asked): all its answers to a prompt are made, and written, together."""


def sample(config: Config, run: Run) -> dict[str, int]:
    """`candidates.per_model` answers of each model to each prompt; returns how many prompts were answered, of them retried
    (they had failed before), were there, or failed."""
    options = config.candidates
    for model in options.models:
        require_model("candidates.models", model, or_adapter=True)
    room = (options.max_tokens, "candidates.max_tokens")
    prompts = datasets.load_prompts(
        run, options.prompts, [row_checks.answer_check(config, run, m, *room) for m in options.models]
    )
    store = open_candidates(config)
    check_options(config, store)
    counts = {"made": 0, "retried": 0, "there": 0, "failed": 0}
    for model in options.models:
        print_ = ModelDir(model).fingerprint
        wanted = store.missing([(p.prompt_id, print_, asked_of(p)) for p in prompts])
        counts["there"] += len(prompts) - len(wanted)
        counts["retried"] += sum(key in store for key in wanted)
        missing = {key[0] for key in wanted}
        todo = [prompt for prompt in prompts if prompt.prompt_id in missing]
        if not todo:
            continue
        answer = partial(_answered, config, run.topology.engines(model), model, print_)
        made, failed = fill(store, todo, answer, f"answers of {model}")
        counts["made"] += made
        counts["failed"] += failed
    log.info("%s: %s", store.path, ", ".join(f"{count} {name}" for name, count in counts.items()))
    return counts


def open_candidates(config: Config) -> Store[Key]:
    """Answers; a prompt whose answers failed counts as missing. Rows of your own need prompt_id and answers only."""

    def key(row: dict) -> Key:
        return row["prompt_id"], row.get("fingerprint", ""), row.get("asked", "")

    return Store(datasets.data_path(config, config.data.candidates), key, lambda row: "masked" in row)


def asked_of(prompt: Prompt) -> str:
    """16 hex digits over what a prompt shows: with another question, video, or file behind its name it is another one."""
    told = [prompt.question, prompt.video, prompt.video_sha256]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def sampling_of(config: Config) -> dict:
    """Everything but prompts and models that answers depend on, as rows have it: defaults too, since they may change."""
    return sampled_with(config).model_dump(mode="json") | {
        "per_model": config.candidates.per_model,
        "run_seed": config.seed,
        "video": config.video.model_dump(mode="json", include=set(OF_FRAMES)),
    }


def sampled_with(config: Config) -> Sampling:
    options = config.candidates
    return Sampling(temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens)


def check_options(config: Config, store: Store[Key]) -> None:
    """Raises ContractError where a file holds answers sampled in another way: `per_model` would not be what it says."""
    wanted = sampling_of(config)
    for row in store.rows():
        if wanted | row.get("sampling", {}) != wanted:  # a row may be older than an option
            raise ContractError(
                f"answers in {store.path} that were sampled with {wanted}",
                f"some with {row['sampling']}",
                "Set data.candidates to another file for other options of `candidates`, or remove this one",
            )


def by_prompt(config: Config, prompts: Sequence[Prompt]) -> dict[str, list[str]]:
    """The answers to each prompt as it is asked now, by `candidates.models` as they are now, in their order.

    Others are left where they are, and counted. Raises DataError where there are none.
    """
    found, stale = _rows_of(config, prompts)
    if stale:
        path = datasets.data_path(config, config.data.candidates)
        log.warning("%s: %d rows of other models, weights, questions or video files are not used", path, stale)
    return {prompt_id: [answer for row in rows for answer in row["answers"]] for prompt_id, rows in found.items()}


def origins(config: Config, prompts: Sequence[Prompt]) -> dict[str, list[dict]]:
    """Where each of these answers comes from, in the same order: model, fingerprint, seed, its place among the answers with
    that seed (the engine's own seed is derived from seed, prompt_id and place), and the sampling options."""
    return {
        prompt_id: [_origin(row, place) for row in rows for place in range(len(row["answers"]))]
        for prompt_id, rows in _rows_of(config, prompts)[0].items()
    }


def _origin(row: dict, place: int) -> dict:
    known = {name: row[name] for name in ("model", "fingerprint", "seed", "sampling") if name in row}
    return known | ({"index": place} if "seed" in row else {})


def _rows_of(config: Config, prompts: Sequence[Prompt]) -> tuple[dict[str, list[dict]], int]:
    """By prompt the rows whose answers are used, and how many rows are not."""
    store, asked = open_candidates(config), {prompt.prompt_id: asked_of(prompt) for prompt in prompts}
    rows = [row for row in store.rows() if row["prompt_id"] in asked and "masked" not in row]
    models = config.candidates.models if any("fingerprint" in row for row in rows) else ()
    rank = {ModelDir(model).fingerprint: place for place, model in enumerate(models)} | {None: -1}
    own = [
        row for row in rows if row.get("fingerprint") in rank and row.get("asked") in (None, asked[row["prompt_id"]])
    ]
    found: dict[str, list[dict]] = {}
    for row in sorted(own, key=lambda row: rank[row.get("fingerprint")]):
        found.setdefault(row["prompt_id"], []).append(row)
    if not found:
        others = f"none; {len(rows)} of other models, weights, questions or video files" if rows else "none"
        raise DataError(
            f"answers in {store.path}", others, "Run `rlaif sample`, or set candidates.models or data.candidates"
        )
    return found, len(rows) - len(own)


def _answered(config: Config, pool: RolloutPool, model: str, print_: str, prompts: Sequence[Prompt]) -> list[dict]:
    """A row per prompt: its answers in the order of their seeds, and where they come from."""
    seed = derive(config.seed, "candidates", print_)
    pool.submit("candidates", prompts, config.candidates.per_model, seed, sampled_with(config))
    samples, masked = [], {}
    for answers in pool.results("candidates", config.cluster.collective_timeout_s):
        samples += answers.samples
        masked |= {failure.prompt_id: failure.reason for failure in answers.failures}
    samples.sort(key=lambda one: one.key)
    groups = {key: list(group) for key, group in itertools.groupby(samples, key=lambda one: one.prompt.prompt_id)}
    origin = {"fingerprint": print_, "model": model, "seed": seed, "sampling": sampling_of(config)}
    rows = []
    for prompt in prompts:
        row = {"prompt_id": prompt.prompt_id, "video": prompt.video, "asked": asked_of(prompt), **origin}
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
