"""Dense captions of every video, by a model on vLLM: `rlaif caption CONFIG`. What is there already is not made again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from actors.pool import RolloutPool
from rlaif.config.feedback import Caption
from rlaif.config.schema import Config, Sampling
from rlaif.data.rows import RowError
from rlaif.errors import ConfigError, ContractError, named
from rlaif.feedback.narrative import clips, prompt_version, request_text, summary_text
from rlaif.feedback.store import Store, caption_key
from rlaif.models.check import require_model
from rlaif.models.encode import Encoder
from rlaif.models.model_dir import ModelDir
from rlaif.models.templates import within_budget
from rlaif.records import Prompt
from rlaif.seeds import derive
from rlaif.stages.feedback.fill import fill
from rlaif.stages.run import datasets, row_checks
from rlaif.stages.run.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wanted:
    """One video to be captioned; with `caption.conditioned`, for one question."""

    key: str
    video: str
    sha256: str
    units: tuple[tuple[int, ...], ...]
    question: str = ""

    @property
    def id(self) -> str:
        """Two files of equal bytes have one key."""
        return f"{self.key}@{self.video}"


@dataclass
class Told:
    """What the captioner said of one video, or why it said nothing."""

    captions: list[str] = field(default_factory=list)
    """By unit."""
    summary: str | None = None
    left_out: int = 0
    """Captions that did not fit into the prompt of the summary."""
    cut: list[str] = field(default_factory=list)
    """What ended at `caption.max_tokens` and was kept all the same."""
    failed: str | None = None


def caption(config: Config, run: Run) -> dict[str, int]:
    """Caption every video of `caption.of`, `data.pairs` and `data.pairs_eval`; returns how many were made, of them retried
    (they had failed before), were there, or failed; how many captions were left out of summaries, and videos with cut ones.
    """
    if config.data.captions is None:
        raise ConfigError(
            "data.captions, the file to write captions to", "none", "Set data.captions, e.g. to captions.jsonl"
        )
    require_model("caption.model", config.caption.model, or_adapter=True)
    store = datasets.open_captions(datasets.data_path(config, config.data.captions))
    check_kind(config, store)
    wanted = list(_wanted(config, run))
    keys = [(one.key, one.video) for one in wanted]
    missing = set(store.missing(keys))
    todo = [one for one in wanted if (one.key, one.video) in missing]
    there, retried, made, failed = len(wanted) - len(todo), sum(key in store for key in missing), 0, 0
    todo, refused = _answerable(config, run, todo)
    store.append(refused)
    if todo:
        pool = run.topology.engines(config.caption.model)
        count = counter(config)
        made, failed = fill(store, todo, lambda part: _captions(config, pool, part, count), "captions")
    counts = {"captioned": made, "retried": retried, "there": there, "failed": failed + len(refused)}
    rows = [store[key] for key in keys]
    counts |= {"left_out": sum(row.get("left_out", 0) for row in rows), "cut": sum("cut" in row for row in rows)}
    log.info("%s: %s", store.path, ", ".join(f"{count} {name}" for name, count in counts.items()))
    return counts


def _answerable(config: Config, run: Run, todo: Sequence[Wanted]) -> tuple[list[Wanted], list[dict]]:
    """Return what the captioner can be asked, and the masked rows of the rest, which no engine is started for."""
    options, asked, refused = config.caption, [], []
    if not todo:
        return [], []
    reader = row_checks.reader_of(run, options.model)
    rooms = row_checks.engine_rooms(config)
    for one in todo:
        try:
            for unit in one.units:
                text = request_text(options, None, one.question)
                reader.prompt(Prompt(one.id, one.video, text, frames=unit), rooms)
            asked.append(one)
        except RowError as error:
            refused.append(_row(config, one, Told(failed=f"{error.reason}: {error.detail}")))
    if refused:
        reason, videos = refused[0]["masked"], [row["video"] for row in refused]
        log.warning("%d of %d videos cannot be captioned: %s; %s", len(videos), len(todo), named(videos), reason)
    return asked, refused


def counter(config: Config) -> Callable[[str], int]:
    """Counts the captioner's tokens, where that is needed."""
    if config.caption.aggregate == "concat":
        return len
    encoder = Encoder(ModelDir(config.caption.model).base.location)
    return lambda text: len(encoder.tokens(text))


def check_kind(config: Config, store: Store) -> None:
    """Raises ContractError where a file holds captions by another captioner or by other prompts: nobody could read both."""
    own = (ModelDir(config.caption.model).fingerprint, prompt_version(config.caption))
    for row in store.rows():
        if (row.get("captioner", own[0]), row["version"]) != own:
            raise ContractError(
                f"captions in {store.path} by {config.caption.model} as it is, with the prompts of `caption` as they are",
                f"some by {row['model']} with other weights or prompts",
                "Set data.captions to another file, or remove this one",
            )


def _wanted(config: Config, run: Run) -> Iterator[Wanted]:
    """Every video of the prompt files and of the pairs, once (per question, where captions depend on it)."""
    options, client, seen = config.caption, run.topology.client(), set()
    captioner, asked = ModelDir(options.model).fingerprint, prompt_version(options)
    for prompt in asked_about(config, run):
        question = prompt.question if options.conditioned else ""
        if (prompt.video, question) in seen:
            continue
        seen.add((prompt.video, question))
        spec = client.spec(prompt.video)
        units = tuple(map(tuple, clips(spec.total_frames, options)))
        key = caption_key(spec.sha256, spec.part(units[0]).hash, captioner, asked, question)
        yield Wanted(key, prompt.video, spec.sha256, units, question)


def asked_about(config: Config, run: Run) -> list[Prompt]:
    """Questions about videos, of the files that are there; ids of prompts and of pairs may be equal."""
    files = [file for file in config.caption.of if datasets.data_path(config, file).is_file()]
    named = [file for file in (config.data.pairs, config.data.pairs_eval) if file]
    pairs = [file for file in named if datasets.data_path(config, file).exists()]
    if not files and not pairs:
        raise ConfigError(
            "a prompt file among caption.of, or preferences in data.pairs or data.pairs_eval",
            f"none of {', '.join([*config.caption.of, *named])}",
            "Correct caption.of, data.pairs or data.root",
        )
    prompts = datasets.load_prompts(run, files)
    for file in pairs:
        prompts += datasets.load(run, file, "pair_prompts")
    return prompts


def _captions(config: Config, pool: RolloutPool, wanted: Sequence[Wanted], count: Callable[[str], int]) -> list[dict]:
    """Rows of the store: the units of all videos one after another, since each may depend on the one before it."""
    options, told = config.caption, {one.id: Told() for one in wanted}
    for unit in range(max(len(one.units) for one in wanted)):
        asked = [
            Prompt(one.id, one.video, request_text(options, _last(told[one.id]), one.question), frames=one.units[unit])
            for one in wanted
            if unit < len(one.units) and told[one.id].failed is None
        ]
        for key, text in _answers(config, pool, f"unit {unit}", asked, told).items():
            told[key].captions.append(text)
    if options.aggregate == "summarise":
        asked = [prompt for one in wanted if (prompt := _summary(options, one, told[one.id], count))]
        for key, text in _answers(config, pool, "summary", asked, told).items():
            told[key].summary = text.strip()
    return [_row(config, one, told[one.id]) for one in wanted]


def _last(told: Told) -> str | None:
    return told.captions[-1] if told.captions else None


def _summary(options: Caption, one: Wanted, told: Told, count: Callable[[str], int]) -> Prompt | None:
    """What is asked for a video's summary: whole captions, as many as the budget holds."""
    if told.failed is not None:
        return None
    kept, beyond = within_budget(told.captions, count, options.max_caption_tokens)
    told.left_out = len(beyond)
    if not kept:
        told.failed = f"no caption fits into caption.max_caption_tokens ({options.max_caption_tokens})"
        return None
    return Prompt(one.id, one.video, summary_text(kept, options, one.question))


def _answers(
    config: Config, pool: RolloutPool, name: str, prompts: Sequence[Prompt], told: dict[str, Told]
) -> dict[str, str]:
    """The model's answer by prompt id; what failed, or was cut, is written down in `told`."""
    if not prompts:
        return {}
    options, answers_of = config.caption, {}
    sampling = Sampling(temperature=options.temperature, max_tokens=options.max_tokens)
    pool.submit("captions", prompts, 1, derive(config.seed, "captions", name), sampling)
    for answers in pool.results("captions", config.cluster.collective_timeout_s):
        for sample in answers.samples:
            key = sample.prompt.prompt_id
            if sample.finish_reason == "length" and options.cut == "mask":
                told[key].failed = f"{name} was cut at caption.max_tokens ({options.max_tokens})"
                continue
            told[key].cut += [name] if sample.finish_reason == "length" else []
            answers_of[key] = sample.response
        for failure in answers.failures:
            told[failure.prompt_id].failed = failure.reason
    return answers_of


def _row(config: Config, one: Wanted, told: Told) -> dict:
    row = {
        "key": one.key,
        "video": one.video,
        "sha256": one.sha256,
        "model": config.caption.model,
        "captioner": ModelDir(config.caption.model).fingerprint,
        "version": prompt_version(config.caption),
        **({"question": one.question} if one.question else {}),
    }
    if told.failed is not None:
        return row | {"masked": told.failed}
    context = [told.summary] if config.caption.aggregate == "summarise" else told.captions
    row |= {"frames": [list(unit) for unit in one.units], "captions": told.captions, "context": context}
    row |= {"left_out": told.left_out} if told.left_out else {}
    return row | ({"cut": told.cut} if told.cut else {})
