"""Scores of reward models for every answer of a preference file: `rlaif score CONFIG`."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

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
from rlaif.models.reward import dimensions_of, read_card, require_reward_model, reward_fingerprint
from rlaif.models.reward_prompt import contexts
from rlaif.records import Key, Masked, Outcome, Prompt, RewardInput
from rlaif.stages.feedback.ask_reward import outcomes
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.train.evaluate import command

log = logging.getLogger(__name__)

AT_ONCE = 128
"""Records whose answers are scored, and then written down, together."""


@dataclass
class Job:
    """One reward model on one file."""

    model: ScoringModel
    captions: Callable[[PreferencePair], Sequence[str]]
    """What fills the model's caption slot."""
    frames: Callable[[str], str]
    """See `frames_of`."""
    reads_captions: bool = False
    without_context: int = 0
    """Records whose video has no captions, where the model reads some."""
    new: set[str] = field(default_factory=set)
    """Keys of what was scored in this call."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Of what was masked in this call, by key."""

    def items(self, record: PreferencePair) -> list[Item]:
        return items_of(record, self.captions(record), self.frames)


def score(config: Config, run: Run) -> dict:
    """Write `score.out`: the rows of the file with one more score per model, candidate and dimension.

    Returns the report, which is `eval/score.json` too. What the store of the run holds already is not scored again.
    """
    file, out = paths(config)
    cards = {path: read_card(path, "score.models") for path in config.score.models}
    known = captions_of(config)
    surveyed = survey(config, file)
    for path in cards:
        require_reward_model("score.models", path)
    frames, jobs = frames_of(run), []
    for path, card in cards.items():
        model = ScoringModel(path, reward_fingerprint(path), dimensions_of(card))
        mode = card["prompt"]["context"]
        jobs.append(Job(model, context(run, mode, file, known), frames, reads_captions=mode != "none"))
    store = Store(run.directory.path / "feedback" / "scores.jsonl", key=lambda row: row["key"])
    for job in jobs:
        require_captions(config, file, job)
    for job in jobs:
        fill(config, run, job, records(config, file), store, surveyed.kept)
    tallies = [Tally() for _ in jobs]
    written = write(out, finished(records(config, file), jobs, store, tallies))
    found = {"command": command(), "file": str(file), "out": str(out), "rows": written, "read": surveyed.counts}
    found["models"] = [
        {**tally.report(job.model), "without_context": job.without_context}
        for job, tally in zip(jobs, tallies, strict=True)
    ]
    run.directory.write_eval("score", found)
    return found


def paths(config: Config) -> tuple[Path, Path]:
    """(file that is read, file that is written)."""
    options = config.score
    return datasets.data_path(config, options.file or config.data.pairs), datasets.data_path(config, options.out)


def records(config: Config, file: Path, report: Report | None = None) -> Iterator[PreferencePair]:
    """Return the good rows of a file, as a stream; the others are counted in `report`.

    Those that list other frames than their video shows are among the others.
    """
    return datasets.stream_pairs(config, file, report or Report(str(file), unit=unit(file)))


def survey(config: Config, file: Path) -> Report:
    """What is in the file, before anything is scored. Raises DataError where nothing is, and for bad rows where they are
    fatal (`data.strict`) or would be lost because the file is to be replaced."""
    report = Report(str(file), unit=unit(file))
    earlier = sum(record.earlier_turns for record in records(config, file, report))
    report.check(config.data.strict)
    datasets.warn_of_turns(report.path, earlier, report.kept)
    if report.skipped:
        log.warning("%s", report.summary())
        if file.resolve() == paths(config)[1].resolve():
            raise DataError(
                f"only good rows in {file}, which is to be replaced by its good ones",
                report.summary(),
                "Set score.out to another file",
            )
    return report


def frames_of(run: Run) -> Callable[[str], str]:
    """What names the frames that reward actors see of a video: its FrameSpec's hash. Empty where it cannot be used: they
    say why."""
    client = run.topology.client()

    @cache
    def frames(video: str) -> str:
        try:
            return client.spec(video).hash
        except DataError:
            return ""

    return frames


def captions_of(config: Config) -> datasets.Captions:
    """What `rlaif caption` wrote, where `data.captions` is set and there."""
    file = config.data.captions and datasets.data_path(config, config.data.captions)
    return datasets.captions_by_video(file) if file and file.is_file() else {}


def require_captions(config: Config, file: Path, job: Job) -> None:
    """Raise DataError when a reward model that reads captions would read none of any text in the file."""
    if not job.reads_captions:
        return
    texts = (record for record in records(config, file) if not record.chosen_video)
    first = next(texts, None)
    if first is not None and not any(job.captions(record) for record in itertools.chain([first], texts)):
        reader = f"the reward model {job.model.name} was trained with them"
        raise datasets.no_captions(config, f"the records of {file}", reader)


def context(run: Run, mode: str, file: Path, known: datasets.Captions) -> Callable[[PreferencePair], Sequence[str]]:
    """A record's captions as a reward model was trained to read them: the same rule as `rlaif.stages.train.reward`."""
    contents = datasets.contents_of(run)

    def own(record: PreferencePair) -> Sequence[str]:
        asked = Prompt(record.pair_id, record.video or "", record.question)
        found = () if record.chosen_video else datasets.stored(known, asked, contents(asked.video))
        return found or record.captions

    if mode != "shuffled":
        return own if mode == "captions" else lambda record: ()
    pool = {record.video or "": tuple(own(record)) for record in records(run.config, file)}
    moved = dict(zip(pool, contexts(mode, list(pool.items()), run.config.seed), strict=True))
    return lambda record: moved[record.video or ""]


def fill(config: Config, run: Run, job: Job, found: Iterable[PreferencePair], store: Store[str], total: int) -> None:
    """Score what neither the records nor the store know, and keep it: the store is on disk after every `AT_ONCE` records."""
    pool, shown, done = None, Progress(total, f"scores of {job.model.name}"), 0
    for part in _batches(found, AT_ONCE):
        wanted = missing(job, part, store)
        if wanted:
            pool = pool or started(config, run, job.model.name)
            keep(job, outcomes(pool, list(wanted.values())), store)
        if job.reads_captions:
            job.without_context += sum(not (record.chosen_video or job.captions(record)) for record in part)
        done += len(part)
        shown.to(done)
    shown.close()
    if job.without_context:
        log.warning(
            "%d of %d records have no captions: %s reads no context there", job.without_context, total, job.model.name
        )
    run.topology.stop_rewards()


def missing(job: Job, part: Sequence[PreferencePair], store: Store[str]) -> dict[str, RewardInput]:
    """Answers to be scored, by key; an answer that comes twice is asked for once."""
    wanted: dict[str, RewardInput] = {}
    for record in part:
        for item in job.items(record):
            key = item.key(job.model.fingerprint)
            if key in store or key in job.reasons or why_unreadable(record, item) or job.model.known(record, item):
                continue
            prompt = Prompt(record.pair_id, item.video, item.question, captions=item.captions)
            wanted.setdefault(key, RewardInput((key, 0), prompt, item.response))
    return wanted


def started(config: Config, run: Run, path: str) -> RewardPool:
    pool = run.topology.rewards(path, config.score.tokens_per_microbatch, timeout_s=config.ppo.reward_timeout_s)
    pool.wait_ready()
    return pool


def keep(job: Job, found: Mapping[Key, Outcome], store: Store[str]) -> None:
    """Scores into the store; what is masked is tried again by the next call."""
    rows = []
    for (key, _), outcome in found.items():
        if isinstance(outcome, Masked):
            job.reasons[key] = outcome.reason
        else:
            rows.append({"key": key, "from": job.model.name, "values": list(outcome.parts.values())})
    store.append(rows)
    job.new.update(row["key"] for row in rows)


def finished(
    found: Iterable[PreferencePair], jobs: Sequence[Job], store: Store[str], tallies: Sequence[Tally]
) -> Iterator[PreferencePair]:
    """The records with their new scores."""
    for record in found:
        scores = []
        for job, tally in zip(jobs, tallies, strict=True):
            asked = job.items(record)
            keys = {item.key(job.model.fingerprint) for item in asked}
            values = {key: store[key]["values"] for key in keys if key in store}
            scores += new_scores(record, asked, job.model, values, job.reasons, job.new, tally)
        yield record.with_scores(scores)


def write(out: Path, found: Iterable[PreferencePair]) -> int:
    """The records as rows of ours; how many. The file appears whole at the end, or stays as it was."""
    rows = valid(PAIRS.write(found), Report(str(out)))
    return write_rows(out, map(PAIRS.columns, rows) if kind(out) == ".parquet" else rows, PAIRS.schema)


def _batches(found: Iterable[PreferencePair], size: int) -> Iterator[list[PreferencePair]]:
    found = iter(found)
    while part := list(itertools.islice(found, size)):
        yield part
