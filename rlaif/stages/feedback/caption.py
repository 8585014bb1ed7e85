"""`rlaif caption CONFIG`: dense captions of every video, by a model on vLLM. Videos that have captions are skipped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from actors.pool import RolloutPool
from rlaif.config.feedback import Caption
from rlaif.config.schema import Config, Sampling
from rlaif.data.rows import RowError
from rlaif.errors import ConfigError, ContractError, named
from rlaif.feedback.narrative import clips, prompt_version, request_text, summary_text
from rlaif.feedback.store import Store, caption_key
from rlaif.io.rundir import RunDir
from rlaif.models.check import require_model
from rlaif.models.encode import Encoder
from rlaif.models.model_dir import ModelDir
from rlaif.models.templates import within_budget
from rlaif.records import Prompt
from rlaif.seeds import derive
from rlaif.stages.feedback.fill import counts_text, fill_store
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.preflight.models import check_model_option
from rlaif.stages.run import datasets, row_checks
from rlaif.stages.run.run import Run
from rlaif.stages.run.summary import Summary, count_text

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionTask:
    """One video to caption; with `caption.conditioned`, for one question."""

    key: str
    video: str
    sha256: str
    units: tuple[tuple[int, ...], ...]
    """Frame numbers of each unit."""
    question: str = ""

    @property
    def id(self) -> str:
        """Return an id that tells two files of equal bytes apart: they have one key."""
        return f"{self.key}@{self.video}"


@dataclass
class CaptionResult:
    """What the captioner wrote about one video, or why it wrote nothing."""

    captions: list[str] = field(default_factory=list)
    """By unit."""
    summary: str | None = None
    left_out: int = 0
    """Captions that did not fit into the prompt of the summary."""
    cut: list[str] = field(default_factory=list)
    """Names of the texts that ended at `caption.max_tokens` and are used all the same."""
    failed: str | None = None


def caption(config: Config, run: Run) -> dict[str, int]:
    """Caption every video of `caption.of`, `data.pairs` and `data.pairs_eval`.

    Returns:
        Counts of videos: `captioned`, `retried` (they had failed before), `there` (skipped), `failed`, and `cut` (with a
        text that was cut); and of captions that did not fit into summaries (`left_out`).
    """
    if config.data.captions is None:
        raise ConfigError(
            "data.captions, the file to write captions to", "none", "Set data.captions, e.g. to captions.jsonl."
        )
    require_model("caption.model", config.caption.model, or_adapter=True)
    store = datasets.open_captions(datasets.data_path(config, config.data.captions))
    check_captioner(config, store)
    tasks = list(_tasks(config, run))
    keys = [(task.key, task.video) for task in tasks]
    missing = set(store.missing(keys))
    todo = [task for task, key in zip(tasks, keys, strict=True) if key in missing]
    # Counted before anything is appended: a key that failed before is missing and in the store.
    retried = sum(key in store for key in missing)
    counts = {"captioned": 0, "retried": retried, "there": len(tasks) - len(todo)}
    todo, refused = _answerable(config, run, todo)
    store.append(refused)
    counts["failed"] = len(refused)
    if todo:
        captioner = _Captioner(config, run.topology.engines(config.caption.model))
        captioned, failed = fill_store(store, todo, captioner.rows, "captions")
        counts["captioned"] += captioned
        counts["failed"] += failed
    counts |= {"left_out": 0, "cut": 0}
    for key in keys:
        row = store[key]
        counts["left_out"] += row.get("left_out", 0)
        counts["cut"] += "cut" in row
    log.info("%s: %s", store.path, counts_text(counts))
    return counts


def _answerable(config: Config, run: Run, todo: Sequence[CaptionTask]) -> tuple[list[CaptionTask], list[dict]]:
    """Return the tasks that the captioner can read, and the masked rows of the others, which no engine is started for."""
    options = config.caption
    readable: list[CaptionTask] = []
    refused: list[dict] = []
    if not todo:
        # Without this the reader would load the captioner's processor for nothing.
        return readable, refused
    reader = row_checks.reader_of(run, options.model)
    rooms = row_checks.engine_rooms(config)
    for task in todo:
        try:
            for unit in task.units:
                text = request_text(options, None, task.question)
                reader.prompt(Prompt(task.id, task.video, text, frames=unit), rooms)
            readable.append(task)
        except RowError as error:
            result = CaptionResult(failed=f"{error.reason}: {error.detail}")
            refused.append(_row(config, task, result))
    if refused:
        videos = [row["video"] for row in refused]
        text = "%d of %d videos cannot be captioned: %s; %s"
        log.warning(text, len(videos), len(todo), named(videos), refused[0]["masked"])
    return readable, refused


def token_counter(config: Config) -> Callable[[str], int]:
    """Return a function that counts the captioner's tokens; with `caption.aggregate: concat` nothing calls it."""
    if config.caption.aggregate == "concat":
        return len
    encoder = Encoder(ModelDir(config.caption.model).base.location)
    return lambda text: len(encoder.tokens(text))


def check_captioner(config: Config, store: Store) -> None:
    """Raise ContractError if a file holds captions by another captioner or other prompts: no stage could read both."""
    own = (ModelDir(config.caption.model).fingerprint, prompt_version(config.caption))
    for row in store.rows():
        # Rows without `captioner` are older than that field; only their prompts can be compared.
        captioner = row.get("captioner", own[0])
        if (captioner, row["version"]) != own:
            raise ContractError(
                f"captions in {store.path} by {config.caption.model} as it is, with the prompts of `caption` as they are",
                f"some by {row['model']} with other weights or prompts",
                "Set data.captions to another file, or remove this one.",
            )


def _tasks(config: Config, run: Run) -> Iterator[CaptionTask]:
    """Yield every video of the prompt files and of the pairs once (once per question, if captions depend on it)."""
    options, client = config.caption, run.topology.client()
    known: set[tuple[str, str]] = set()
    captioner, prompts = ModelDir(options.model).fingerprint, prompt_version(options)
    for prompt in caption_prompts(config, run):
        question = prompt.question if options.conditioned else ""
        if (prompt.video, question) in known:
            continue
        known.add((prompt.video, question))
        spec = client.spec(prompt.video)
        units = tuple(map(tuple, clips(spec.total_frames, options)))
        first = spec.part(units[0])
        key = caption_key(spec.sha256, first.hash, captioner, prompts, question)
        yield CaptionTask(key, prompt.video, spec.sha256, units, question)


def caption_prompts(config: Config, run: Run) -> list[Prompt]:
    """Return the questions about videos in the files that exist; ids of prompts and of pairs may be equal."""
    files = [file for file in config.caption.of if datasets.data_path(config, file).is_file()]
    named = [file for file in (config.data.pairs, config.data.pairs_eval) if file]
    # A published set of pairs may be a folder, which `is_file` would not find.
    pairs = [file for file in named if datasets.data_path(config, file).exists()]
    if not files and not pairs:
        raise ConfigError(
            "a prompt file among caption.of, or preferences in data.pairs or data.pairs_eval",
            f"none of {', '.join([*config.caption.of, *named])}",
            "Correct caption.of, data.pairs or data.root.",
        )
    prompts = datasets.load_prompts(run, files)
    for file in pairs:
        prompts += datasets.load(run, file, "pair_prompts")
    return prompts


Results = Mapping[str, CaptionResult]
"""What there is of each video so far, by the task's id."""


class _Captioner:
    """Asks the model on a rollout pool for the captions of some videos."""

    def __init__(self, config: Config, pool: RolloutPool):
        self._config, self._pool = config, pool
        self._count = token_counter(config)

    def rows(self, tasks: Sequence[CaptionTask]) -> list[dict]:
        """Return the rows of the store; the requests about one video follow each other: each may use the caption before."""
        options = self._config.caption
        results = {task.id: CaptionResult() for task in tasks}
        count = max(len(task.units) for task in tasks)
        # Unit by unit over all videos: the requests of one unit are independent and fill the engine together.
        for unit in range(count):
            prompts = _unit_prompts(options, tasks, results, unit)
            for key, text in self._answers(f"unit {unit}", prompts, results).items():
                results[key].captions.append(text)
        if options.aggregate == "summarise":
            prompts = self._summary_prompts(tasks, results)
            for key, text in self._answers("summary", prompts, results).items():
                results[key].summary = text.strip()
        return [_row(self._config, task, results[task.id]) for task in tasks]

    def _summary_prompts(self, tasks: Sequence[CaptionTask], results: Results) -> list[Prompt]:
        """Return the requests for summaries: of whole captions, as many as the budget holds."""
        options = self._config.caption
        prompts: list[Prompt] = []
        for task in tasks:
            result = results[task.id]
            if result.failed is not None:
                continue
            limit = options.max_caption_tokens
            within, beyond = within_budget(result.captions, self._count, limit)
            result.left_out = len(beyond)
            if not within:
                result.failed = f"no caption fits into caption.max_caption_tokens ({limit})"
                continue
            text = summary_text(within, options, task.question)
            prompts.append(Prompt(task.id, task.video, text))
        return prompts

    def _answers(self, name: str, prompts: Sequence[Prompt], results: Results) -> dict[str, str]:
        """Return the model's answers by prompt id; answers that failed or were cut are recorded in `results`.

        `name`: which text of each video this is.
        """
        if not prompts:
            return {}
        options = self._config.caption
        texts: dict[str, str] = {}
        seed = derive(self._config.seed, "captions", name)
        sampling = Sampling(temperature=options.temperature, max_tokens=options.max_tokens)
        self._pool.submit("captions", prompts, 1, seed, sampling)
        for answers in self._pool.results("captions", self._config.cluster.collective_timeout_s):
            for sample in answers.samples:
                key = sample.prompt.prompt_id
                cut = sample.finish_reason == "length"
                if cut and options.cut == "mask":
                    results[key].failed = f"{name} was cut at caption.max_tokens ({options.max_tokens})"
                    continue
                if cut:
                    results[key].cut.append(name)
                texts[key] = sample.response
            for failure in answers.failures:
                results[failure.prompt_id].failed = failure.reason
        return texts


def _unit_prompts(options: Caption, tasks: Sequence[CaptionTask], results: Results, unit: int) -> list[Prompt]:
    """Return the requests for one unit of every video that has it and has not failed before."""
    prompts = []
    for task in tasks:
        result = results[task.id]
        if unit < len(task.units) and result.failed is None:
            last = result.captions[-1] if result.captions else None
            text = request_text(options, last, task.question)
            frames = task.units[unit]
            prompts.append(Prompt(task.id, task.video, text, frames=frames))
    return prompts


def _row(config: Config, task: CaptionTask, result: CaptionResult) -> dict:
    row = {
        "key": task.key,
        "video": task.video,
        "sha256": task.sha256,
        "model": config.caption.model,
        "captioner": ModelDir(config.caption.model).fingerprint,
        "version": prompt_version(config.caption),
    }
    if task.question:
        row["question"] = task.question
    if result.failed is not None:
        row["masked"] = result.failed
        return row
    row["frames"] = [list(unit) for unit in task.units]
    row["captions"] = result.captions
    row["context"] = [result.summary] if config.caption.aggregate == "summarise" else result.captions
    if result.left_out:
        row["left_out"] = result.left_out
    if result.cut:
        row["cut"] = result.cut
    return row


def check_caption(inquiry: Inquiry) -> None:
    """Check the captioner, and that a file to write to is set."""
    config = inquiry.config
    check_model_option(inquiry, "caption.model", config.caption.model, adapter=True)
    if config.data.captions is None:
        inquiry.report("data.captions", "the file to write captions to", "none", "Set data.captions=captions.jsonl")


def summarise_caption(config: Config, directory: RunDir, counts: Mapping[str, int]) -> Summary:
    """Return how many videos were captioned."""
    following = [("sample answers that a judge can compare", "sample", ())]
    return Summary({"videos": count_text(counts)}, {"captions": config.data.captions}, following=following)
