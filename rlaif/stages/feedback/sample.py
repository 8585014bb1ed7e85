"""`rlaif sample CONFIG`: answers to be judged, of one or several models. Prompts that have answers are skipped."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence

from actors.pool import RolloutPool
from rlaif.config.schema import Config, Sampling
from rlaif.errors import ContractError, DataError
from rlaif.feedback.store import Store
from rlaif.io.rundir import RunDir
from rlaif.models.check import require_model
from rlaif.models.model_dir import ModelDir
from rlaif.records import Prompt, Sample
from rlaif.seeds import derive
from rlaif.stages.feedback.fill import counts_text, fill_store
from rlaif.stages.preflight.files import check_prompt_files
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.preflight.models import check_model_option
from rlaif.stages.run import datasets, row_checks
from rlaif.stages.run.run import Run
from rlaif.stages.run.summary import Summary, count_text

log = logging.getLogger(__name__)

FRAME_OPTIONS = ("num_frames", "height", "width")
"""Options of `video` that make a FrameSpec."""
AnswerKey = tuple[str, str, str]
"""(prompt_id, fingerprint of the model, digest of the prompt): a model's answers to a prompt are made and written together."""


def sample(config: Config, run: Run) -> dict[str, int]:
    """Sample `candidates.per_model` answers of each model to each prompt.

    Returns:
        Counts of prompts, summed over the models: `made`, `retried` (they had failed before), `there` (skipped), `failed`.
    """
    options = config.candidates
    for model in options.models:
        require_model("candidates.models", model, or_adapter=True)
    room = (options.max_tokens, "candidates.max_tokens")
    prompts = datasets.load_prompts(
        run, options.prompts, [row_checks.answer_check(config, run, m, *room) for m in options.models]
    )
    store = open_candidates(config)
    check_sampling(config, store)
    counts = {"made": 0, "retried": 0, "there": 0, "failed": 0}
    for model in options.models:
        fingerprint = ModelDir(model).fingerprint
        keys = [(prompt.prompt_id, fingerprint, prompt_digest(prompt)) for prompt in prompts]
        missing = store.missing(keys)
        counts["there"] += len(prompts) - len(missing)
        # A prompt that failed before is missing, and in the store all the same.
        counts["retried"] += sum(key in store for key in missing)
        missing_ids = {prompt_id for prompt_id, _, _ in missing}
        todo = [prompt for prompt in prompts if prompt.prompt_id in missing_ids]
        if not todo:
            # No engine starts for a model that has nothing to answer.
            continue
        sampler = _Sampler(config, run.topology.engines(model), model, fingerprint)
        answered, failed = fill_store(store, todo, sampler.rows, f"answers of {model}")
        counts["made"] += answered
        counts["failed"] += failed
    log.info("%s: %s", store.path, counts_text(counts))
    return counts


def open_candidates(config: Config) -> Store[AnswerKey]:
    """Open the file of answers; a prompt whose answers failed counts as missing.

    Rows that a user wrote need `prompt_id` and `answers` only.
    """

    def key(row: dict) -> AnswerKey:
        return row["prompt_id"], row.get("fingerprint", ""), row.get("asked", "")

    path = datasets.data_path(config, config.data.candidates)
    return Store(path, key, lambda row: "masked" in row)


def prompt_digest(prompt: Prompt) -> str:
    """Return 16 hex digits over what a prompt shows; rows of answers hold them as `asked`.

    Another question, another video, or another file behind the video's name gives another digest.
    """
    content = json.dumps([prompt.question, prompt.video, prompt.video_sha256])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def sampling_record(config: Config) -> dict:
    """Return everything but prompts and models that answers depend on, for their rows; with defaults, which may change."""
    return sampling_options(config).model_dump(mode="json") | {
        "per_model": config.candidates.per_model,
        "run_seed": config.seed,
        "video": config.video.model_dump(mode="json", include=set(FRAME_OPTIONS)),
    }


def sampling_options(config: Config) -> Sampling:
    """Return how the engine samples answers."""
    options = config.candidates
    return Sampling(temperature=options.temperature, top_p=options.top_p, max_tokens=options.max_tokens)


def check_sampling(config: Config, store: Store[AnswerKey]) -> None:
    """Raise ContractError if a file holds answers that were sampled in another way: `per_model` would not hold for them."""
    expected = sampling_record(config)
    for row in store.rows():
        # A row may be older than an option: options that it lacks are not compared.
        if expected | row.get("sampling", {}) != expected:
            raise ContractError(
                f"answers in {store.path} that were sampled with {expected}",
                f"some with {row['sampling']}",
                "Set data.candidates to another file for other options of `candidates`, or remove this one.",
            )


def answers_by_prompt(config: Config, prompts: Sequence[Prompt]) -> dict[str, list[str]]:
    """Return the answers to each prompt as it is now, by `candidates.models` as they are now, in the order of the models.

    Other answers stay in the file and are counted.

    Raises:
        DataError: if there are no answers.
    """
    by_prompt, unused = _used_rows(config, prompts)
    if unused:
        path = datasets.data_path(config, config.data.candidates)
        log.warning("%s: %d rows of other models, weights, questions or video files are not used", path, unused)
    answers: dict[str, list[str]] = {}
    for prompt_id, rows in by_prompt.items():
        answers[prompt_id] = []
        for row in rows:
            answers[prompt_id] += row["answers"]
    return answers


def answer_origins(config: Config, prompts: Sequence[Prompt]) -> dict[str, list[dict]]:
    """Return the origin of each of these answers, in the same order.

    An origin has the model, its fingerprint, the seed, the answer's index among the answers with that seed (the engine's own
    seed is derived from seed, prompt_id and index), and the sampling options.
    """
    by_prompt, _ = _used_rows(config, prompts)
    origins: dict[str, list[dict]] = {}
    for prompt_id, rows in by_prompt.items():
        of_prompt = origins.setdefault(prompt_id, [])
        for row in rows:
            for index in range(len(row["answers"])):
                of_prompt.append(_origin(row, index))
    return origins


def _origin(row: dict, index: int) -> dict:
    origin = {}
    for name in ("model", "fingerprint", "seed", "sampling"):
        if name in row:
            origin[name] = row[name]
    # Without a seed, the index would not tell how to sample the answer again.
    if "seed" in row:
        origin["index"] = index
    return origin


RowsByPrompt = dict[str, list[dict]]


def _used_rows(config: Config, prompts: Sequence[Prompt]) -> tuple[RowsByPrompt, int]:
    """Return the rows whose answers are used, by prompt, and how many rows are not used."""
    store = open_candidates(config)
    digests = {prompt.prompt_id: prompt_digest(prompt) for prompt in prompts}
    rows = []
    for row in store.rows():
        if row["prompt_id"] in digests and "masked" not in row:
            rows.append(row)
    rank = _model_ranks(config, rows)
    used = []
    for row in rows:
        # Rows that a user wrote name neither prompt nor model: they fit whatever there is.
        same_prompt = row.get("asked") in (None, digests[row["prompt_id"]])
        if same_prompt and row.get("fingerprint") in rank:
            used.append(row)
    # Python's sort is stable: rows of one model stay in the order of the file.
    used.sort(key=lambda row: rank[row.get("fingerprint")])
    by_prompt: RowsByPrompt = {}
    for row in used:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    if not by_prompt:
        others = f"none; {len(rows)} of other models, weights, questions or video files" if rows else "none"
        raise DataError(
            f"answers in {store.path}", others, "Run `rlaif sample`, or set candidates.models or data.candidates."
        )
    return by_prompt, len(rows) - len(used)


def _model_ranks(config: Config, rows: Sequence[dict]) -> dict[str | None, int]:
    """Return the place of each of `candidates.models` by its fingerprint; None, for rows without one, comes first."""
    rank: dict[str | None, int] = {None: -1}
    # Models are looked at only if a row names one: a file that a user wrote works if they do not exist.
    if any("fingerprint" in row for row in rows):
        for place, model in enumerate(config.candidates.models):
            rank[ModelDir(model).fingerprint] = place
    return rank


class _Sampler:
    """Samples the answers of one model on a rollout pool."""

    def __init__(self, config: Config, pool: RolloutPool, model: str, fingerprint: str):
        self._config, self._pool = config, pool
        self._seed = derive(config.seed, "candidates", fingerprint)
        self._origin = {
            "fingerprint": fingerprint,
            "model": model,
            "seed": self._seed,
            "sampling": sampling_record(config),
        }

    def rows(self, prompts: Sequence[Prompt]) -> list[dict]:
        """Return a row per prompt: its answers in the order of their seeds, and their origin."""
        count, sampling = self._config.candidates.per_model, sampling_options(self._config)
        self._pool.submit("candidates", prompts, count, self._seed, sampling)
        samples: dict[str, list[Sample]] = {}
        masked: dict[str, str] = {}
        for answers in self._pool.results("candidates", self._config.cluster.collective_timeout_s):
            for one in answers.samples:
                samples.setdefault(one.prompt.prompt_id, []).append(one)
            for failure in answers.failures:
                masked[failure.prompt_id] = failure.reason
        rows = []
        for prompt in prompts:
            prompt_id = prompt.prompt_id
            row = {"prompt_id": prompt_id, "video": prompt.video, "asked": prompt_digest(prompt)}
            row |= self._origin
            if prompt_id in masked:
                row["masked"] = masked[prompt_id]
            else:
                # Actors answer in any order; a sample's key ends with its index.
                own = sorted(samples[prompt_id], key=lambda one: one.key)
                row |= _answer_fields(own)
            rows.append(row)
        return rows


def _answer_fields(samples: Sequence[Sample]) -> dict[str, list]:
    fields: dict[str, list] = {"answers": [], "tokens": [], "ended": []}
    for one in samples:
        fields["answers"].append(one.response)
        fields["tokens"].append(len(one.response_ids))
        fields["ended"].append(one.finish_reason)
    return fields


def check_sample(inquiry: Inquiry) -> None:
    """Check the models and the prompt files."""
    candidates = inquiry.config.candidates
    for model in candidates.models:
        check_model_option(inquiry, "candidates.models", model, adapter=True)
    check_prompt_files(inquiry, "candidates.prompts", candidates.prompts)


def summarise_sample(config: Config, directory: RunDir, counts: Mapping[str, int]) -> Summary:
    """Return how many prompts were answered."""
    figures = {"prompts": count_text(counts), "answers each": str(config.candidates.per_model)}
    following = [("have the judge label the answers", "label", ())]
    return Summary(figures, {"answers": config.data.candidates}, following=following)
