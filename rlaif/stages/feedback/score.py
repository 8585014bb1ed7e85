"""`rlaif score CONFIG`: scores by reward models of every answer in a preference file."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from actors.reward_pool import RewardPool
from rlaif.config.schema import Config
from rlaif.data.files import kind, unit, write_rows
from rlaif.data.formats.own import PAIRS
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import Report, valid
from rlaif.errors import DataError
from rlaif.feedback.scoring import Item, ScoringModel, Tally, items_of, new_scores, why_unreadable
from rlaif.feedback.store import Store
from rlaif.io.progress import Progress
from rlaif.io.rundir import RunDir, typed_command
from rlaif.models.reward import dimensions_of, read_card, require_reward_model, reward_fingerprint
from rlaif.models.reward_prompt import contexts
from rlaif.records import Key, Masked, Outcome, Prompt, RewardInput
from rlaif.stages.feedback.ask_reward import collect_outcomes
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.run.summary import Summary

log = logging.getLogger(__name__)

RECORDS_PER_PART = 128
"""Records whose answers are scored, and then written, together: a kill costs at most their scores."""


CaptionReader = Callable[[PreferencePair], Sequence[str]]


@dataclass
class ScoringJob:
    """One reward model on one file."""

    model: ScoringModel
    captions: CaptionReader
    """Returns what fills the model's caption slot for a record."""
    frames: Callable[[str], str]
    """See `frame_hashes`."""
    reads_captions: bool = False
    without_context: int = 0
    """Records whose video has no captions, if the model reads captions."""
    new: set[str] = field(default_factory=set)
    """Keys of the answers that this call scored."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Reasons of the answers that this call masked, by key."""

    def items(self, record: PreferencePair) -> list[Item]:
        """Return what is to be scored of a record."""
        return items_of(record, self.captions(record), self.frames)


def score(config: Config, run: Run) -> dict:
    """Write `score.out`: the rows of the file with one more score per model, candidate and dimension.

    Scores that the run's store has already are not computed again. Returns the report, which is `eval/score.json` too.
    """
    file, out = score_paths(config)
    cards = {path: read_card(path, "score.models") for path in config.score.models}
    captions = known_captions(config)
    survey = survey_file(config, file)
    for path in cards:
        require_reward_model("score.models", path)
    frames, jobs = frame_hashes(run), []
    for path, card in cards.items():
        model = ScoringModel(path, reward_fingerprint(path), dimensions_of(card))
        mode = card["prompt"]["context"]
        reader = caption_reader(run, mode, file, captions)
        jobs.append(ScoringJob(model, reader, frames, reads_captions=mode != "none"))
    store = Store(run.directory.path / "feedback" / "scores.jsonl", key=lambda row: row["key"])
    # The checks of all models come before the first actor starts.
    for job in jobs:
        require_captions(config, file, job)
    for job in jobs:
        fill_scores(config, run, job, valid_records(config, file), store, survey.kept)
    tallies = [Tally() for _ in jobs]
    rows = write_scores(out, scored_records(valid_records(config, file), jobs, store, tallies))
    report: dict = {"command": typed_command(), "file": str(file), "out": str(out)}
    report |= {"rows": rows, "read": survey.counts, "models": []}
    for job, tally in zip(jobs, tallies, strict=True):
        figures = tally.report(job.model) | {"without_context": job.without_context}
        report["models"].append(figures)
    run.directory.write_eval("score", report)
    return report


def score_paths(config: Config) -> tuple[Path, Path]:
    """Return (file to read, file to write)."""
    file = config.score.file or config.data.pairs
    return datasets.data_path(config, file), datasets.data_path(config, config.score.out)


def valid_records(config: Config, file: Path, report: Report | None = None) -> Iterator[PreferencePair]:
    """Yield the valid rows of a file; the others are counted in `report`.

    Rows that list other frames than their video shows are not valid.
    """
    return datasets.stream_pairs(config, file, report or Report(str(file), unit=unit(file)))


def survey_file(config: Config, file: Path) -> Report:
    """Count the valid and the bad rows of a file, before anything is scored.

    Raises:
        DataError: if no row is valid, if rows are bad and `data.strict` is set, or if bad rows would be lost because the
            file is to be replaced.
    """
    report = Report(str(file), unit=unit(file))
    earlier = sum(record.earlier_turns for record in valid_records(config, file, report))
    report.check(config.data.strict)
    datasets.warn_of_turns(report.path, earlier, report.kept)
    if not report.skipped:
        return report
    log.warning("%s", report.summary())
    if file.resolve() == score_paths(config)[1].resolve():
        raise DataError(
            f"only good rows in {file}, which is to be replaced by its good ones",
            report.summary(),
            "Set score.out to another file.",
        )
    return report


def frame_hashes(run: Run) -> Callable[[str], str]:
    """Return a function that names the frames that reward actors see of a video: the hash of its FrameSpec.

    The name is empty if the video cannot be used; the actors report why.
    """
    client = run.topology.client()

    @cache
    def frames(video: str) -> str:
        try:
            return client.spec(video).hash
        except DataError:
            return ""

    return frames


def known_captions(config: Config) -> datasets.Captions:
    """Return what `rlaif caption` wrote to `data.captions`; empty if that is not set or does not exist."""
    if not config.data.captions:
        return {}
    file = datasets.data_path(config, config.data.captions)
    return datasets.captions_by_video(file) if file.is_file() else {}


def require_captions(config: Config, file: Path, job: ScoringJob) -> None:
    """Raise DataError if a reward model reads captions and no record of a text has any."""
    if not job.reads_captions:
        return
    texts = 0
    for record in valid_records(config, file):
        # Records of two candidate videos need none: a context would be about one of them.
        if record.chosen_video:
            continue
        if job.captions(record):
            return
        texts += 1
    if texts:
        reader = f"the reward model {job.model.name} was trained with them"
        raise datasets.no_captions(config, f"the records of {file}", reader)


def caption_reader(run: Run, mode: str, file: Path, known: datasets.Captions) -> CaptionReader:
    """Return a function that gives a record's captions as a reward model was trained to read them.

    The rule is that of `rlaif.stages.train.reward`. `mode`: the context of the model's card.
    """
    contents = datasets.contents_of(run)

    def own(record: PreferencePair) -> Sequence[str]:
        if record.chosen_video:
            return record.captions
        prompt = Prompt(record.pair_id, record.video or "", record.question)
        # What `rlaif caption` wrote takes precedence over the captions in the file.
        return datasets.stored(known, prompt, contents(prompt.video)) or record.captions

    if mode == "none":
        return lambda record: ()
    if mode != "shuffled":
        return own
    by_video: dict[str, tuple[str, ...]] = {}
    for record in valid_records(run.config, file):
        by_video[record.video or ""] = tuple(own(record))
    shuffled = contexts(mode, list(by_video.items()), run.config.seed)
    moved = dict(zip(by_video, shuffled, strict=True))
    return lambda record: moved[record.video or ""]


def fill_scores(
    config: Config, run: Run, job: ScoringJob, records: Iterable[PreferencePair], store: Store[str], total: int
) -> None:
    """Score what neither the records nor the store have, and store it part by part.

    `total`: how many records there are, for progress.
    """
    pool: RewardPool | None = None
    progress, count = Progress(total, f"scores of {job.model.name}"), 0
    for part in _batches(records, RECORDS_PER_PART):
        inputs = missing_answers(job, part, store)
        if inputs:
            # The actors start with the first answer that lacks a score: without any, no model is loaded.
            pool = pool or start_reward_actors(config, run, job.model.name)
            store_scores(job, collect_outcomes(pool, list(inputs.values())), store)
        if job.reads_captions:
            for record in part:
                job.without_context += not (record.chosen_video or job.captions(record))
        count += len(part)
        progress.to(count)
    progress.close()
    if job.without_context:
        text = "%d of %d records have no captions: %s reads no context there"
        log.warning(text, job.without_context, total, job.model.name)
    run.topology.stop_rewards()


def missing_answers(job: ScoringJob, part: Sequence[PreferencePair], store: Store[str]) -> dict[str, RewardInput]:
    """Return the answers to score, by key; an answer that occurs twice is there once."""
    inputs: dict[str, RewardInput] = {}
    for record in part:
        for item in job.items(record):
            key = item.key(job.model.fingerprint)
            # A masked answer is tried once per call: the next command tries it again.
            if key in store or key in job.reasons:
                continue
            if why_unreadable(record, item) or job.model.known(record, item):
                continue
            prompt = Prompt(record.pair_id, item.video, item.question, captions=item.captions)
            inputs.setdefault(key, RewardInput((key, 0), prompt, item.response))
    return inputs


def start_reward_actors(config: Config, run: Run, path: str) -> RewardPool:
    """Start reward actors with the model at `path`, and wait until it is loaded."""
    timeout_s = config.ppo.reward_timeout_s
    pool = run.topology.rewards(path, config.score.tokens_per_microbatch, timeout_s=timeout_s)
    pool.wait_ready()
    return pool


def store_scores(job: ScoringJob, outcomes: Mapping[Key, Outcome], store: Store[str]) -> None:
    """Append the scores to the store; the next call tries masked answers again."""
    rows = []
    for (key, _), outcome in outcomes.items():
        if isinstance(outcome, Masked):
            job.reasons[key] = outcome.reason
        else:
            values = list(outcome.parts.values())
            rows.append({"key": key, "from": job.model.name, "values": values})
            job.new.add(key)
    store.append(rows)


def scored_records(
    records: Iterable[PreferencePair], jobs: Sequence[ScoringJob], store: Store[str], tallies: Sequence[Tally]
) -> Iterator[PreferencePair]:
    """Yield the records with their new scores, which are counted in the tally of their job."""
    for record in records:
        scores = []
        for job, tally in zip(jobs, tallies, strict=True):
            items = job.items(record)
            values = {}
            for item in items:
                key = item.key(job.model.fingerprint)
                if key in store:
                    values[key] = store[key]["values"]
            scores += new_scores(record, items, job.model, values, job.reasons, job.new, tally)
        yield record.with_scores(scores)


def write_scores(out: Path, records: Iterable[PreferencePair]) -> int:
    """Write the records as rows of our own format. Returns how many.

    The file appears as a whole at the end; until then an earlier file stays as it was.
    """
    rows = valid(PAIRS.write(records), Report(str(out)))
    if kind(out) == ".parquet":
        rows = map(PAIRS.columns, rows)
    return write_rows(out, rows, PAIRS.schema)


def _batches(records: Iterable[PreferencePair], size: int) -> Iterator[list[PreferencePair]]:
    iterator = iter(records)
    part = list(itertools.islice(iterator, size))
    while part:
        yield part
        part = list(itertools.islice(iterator, size))


def check_score(inquiry: Inquiry) -> None:
    """Check the reward models and the paths of both files."""
    config = inquiry.config
    for model in config.score.models:
        inquiry.attempt("score.models", require_reward_model, "score.models", model)
    inquiry.attempt("score.file", score_paths, config)


def summarise_score(config: Config, directory: RunDir, report: Mapping[str, Any]) -> Summary:
    """Return how many candidates each reward model scored."""
    figures = {"rows": str(report["rows"])}
    for model in report["models"]:
        figures[model["model"]] = f"{model['candidates']} candidates, {model['masked']} without a score"
    return Summary(figures, {"scores": report["out"], "report": directory.path / "eval" / "score.json"})
