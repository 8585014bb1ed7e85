"""`rlaif pairs CONFIG`: preference pairs from labelled answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlaif.config.schema import Config
from rlaif.data.files import kind, read_rows, write_rows
from rlaif.data.formats.own import PAIRS
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import Row
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation.agreement import prompt_type_of
from rlaif.feedback.pair_report import pair_report
from rlaif.feedback.pairing import Candidate, PairOptions, ScoredPair, build_pairs
from rlaif.io.rundir import RunDir, typed_command
from rlaif.records import Masked
from rlaif.seeds import derive
from rlaif.stages.feedback import sample
from rlaif.stages.feedback.judge_inputs import Case, read_cases
from rlaif.stages.feedback.label import LabelStore, open_labels
from rlaif.stages.feedback.label_hash import check_label_hash
from rlaif.stages.preflight.files import check_file
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.run.summary import Summary, count_text

log = logging.getLogger(__name__)


def pairs(config: Config, run: Run) -> dict:
    """Write `data.pairs`, and `data.pairs_eval` if it is set. Returns the report, which is `eval/pairs.json` too.

    Raises:
        ConfigError: if a file to write to holds preferences of another origin.
        DataError: if a prompt has no label, or if no pair can be made.
    """
    check_pair_targets(config)
    cases, unanswered = read_cases(config, run)
    store = open_labels(config)
    require_labels(config, store, cases)
    pair_set = build_pairs(_candidates(cases, store), pair_options(config), config.seed)
    if not pair_set.pairs:
        raise DataError(
            "preference pairs", f"none of {pair_set.considered}: {pair_set.dropped}", "Relax the options of `pairs`."
        )
    records = _records(config, cases, store, pair_set.pairs)
    training, held_out = _split(config, records)
    write_pairs(datasets.data_path(config, config.data.pairs), training)
    if config.data.pairs_eval:
        write_pairs(datasets.data_path(config, config.data.pairs_eval), held_out)
    result = {"command": typed_command(), "unanswered": unanswered, **pair_report(pair_set)}
    result["held_out"] = len(held_out)
    run.directory.write_eval("pairs", result)
    return result


def _split(config: Config, records: Sequence[PreferencePair]) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Return the pairs to train on and the held-out ones; nothing is held out without `data.pairs_eval`."""
    if not config.data.pairs_eval:
        return list(records), []
    # By video, not by pair: a reward model would recognise a video that it was trained on.
    videos = held_out_videos(config, [record.video for record in records])
    training, held_out = [], []
    for record in records:
        part = held_out if record.video in videos else training
        part.append(record)
    return training, held_out


MARGIN = {"claims": 1.0, "pairwise": 0.2}
"""Default of `pairs.margin`, the least difference of scores: in rejected claims, or in mean win probability."""


def pair_options(config: Config) -> PairOptions:
    """Return the options of `pairs`, with the margin of the label method if none is set."""
    margin = config.pairs.margin
    if margin is None:
        margin = MARGIN[config.label.method]
    options = config.pairs.model_dump(exclude={"eval_fraction", "margin"})
    return PairOptions(**options, margin=margin)


def require_labels(config: Config, store: LabelStore, cases: Sequence[Case]) -> None:
    """Raise DataError unless every case has a label, ContractError if labels were made with other options.

    Cases that still wait for the judge only cause a warning.
    """
    check_label_hash(store, config)
    keys = [case.key for case in cases]
    missing = [key for key in keys if key not in store]
    if missing:
        prompt_id, _ = missing[0]
        raise DataError(
            f"a label in {store.path} for every prompt that has answers",
            f"none for {len(missing)} of {len(cases)}, such as {prompt_id!r}",
            "Run `rlaif label`, which goes on from the labels it has.",
        )
    # These have rows with scores that are masked for a reason that may pass; their pairs are left out.
    waiting = store.missing(keys)
    if waiting:
        text = "%d of %d prompts still wait for the judge: `rlaif label` asks again"
        log.warning(text, len(waiting), len(cases))


def check_pair_targets(config: Config) -> None:
    """Check that `data.pairs` and `data.pairs_eval` may be written to; see `check_pair_target`."""
    for file in (config.data.pairs, config.data.pairs_eval):
        if file:
            check_pair_target(datasets.data_path(config, file))


def check_pair_target(path: Path) -> None:
    """Raise ConfigError if a file holds preferences that no judge of `rlaif label` made: they are never replaced."""
    # The first row shows who wrote the file: `rlaif pairs` always writes it as a whole.
    first = next(iter(read_rows(path)), None) if path.is_file() else None
    if first is None:
        return
    fields = first.fields if isinstance(first, Row) else {}
    if not is_own_label(fields.get("judge")) or fields.get("scores"):
        raise ConfigError(
            f"no file at {path}, or one that `rlaif pairs` wrote",
            f"rows of another origin, or with scores, such as {fields.get('pair_id')!r}",
            "Set data.pairs or data.pairs_eval to another file to write to.",
        )


def is_own_label(judge: object) -> bool:
    """Return whether a row's `judge` is as `pair_record` writes it; parquet files hold it as JSON text."""
    try:
        record = json.loads(judge) if isinstance(judge, str) else judge
    except ValueError:
        return False
    return isinstance(record, dict) and {"model", "kind"} <= record.keys()


def held_out_videos(config: Config, videos: Sequence[str]) -> set[str]:
    """Return the videos whose pairs are held out: a share of all, at least one, drawn by name and seed."""
    # A video's draw depends on nothing but its name: it stays held out, or not, as other videos come and go.
    draws = {}
    for video in videos:
        draws[video] = derive(config.seed, "hold out", video) % 2**32
    limit = config.pairs.eval_fraction * 2**32
    below = {video for video, draw in draws.items() if draw < limit}
    return below or {min(draws, key=draws.__getitem__)}


def write_pairs(path: Path, records: Sequence[PreferencePair]) -> None:
    """Write the records as rows of our own format, as JSON lines or parquet by the name of the file."""
    rows: Iterable[dict] = (record.to_row() for record in records)
    if kind(path) == ".parquet":
        rows = map(PAIRS.columns, rows)
    write_rows(path, rows, PAIRS.schema)


def _candidates(cases: Sequence[Case], store: LabelStore) -> Iterator[Candidate]:
    for case in cases:
        prompt = case.prompt
        scores = store[case.key]["scores"]
        for index, answer in enumerate(case.answers):
            score = scores[index]
            value = Masked(score["masked"]) if "masked" in score else score["score"]
            yield Candidate(prompt.prompt_id, index, prompt.video, prompt.question, answer, value)


def _records(
    config: Config, cases: Sequence[Case], store: LabelStore, scored_pairs: Sequence[ScoredPair]
) -> list[PreferencePair]:
    by_prompt = {case.prompt.prompt_id: case for case in cases}
    judges = {}
    for row in store.rows():
        judges[row["prompt_id"]] = {"model": row["judge"], "kind": row["kind"]}
    origins = sample.answer_origins(config, [case.prompt for case in cases])
    records = []
    for pair in scored_pairs:
        prompt_id = pair.chosen.prompt_id
        case, judge = by_prompt[prompt_id], judges[prompt_id]
        records.append(pair_record(pair, case, judge, origins[prompt_id]))
    return records


def pair_record(pair: ScoredPair, case: Case, judge: Mapping[str, str], origins: Sequence[dict]) -> PreferencePair:
    """Return a pair as a record with its judge and provenance.

    `origins`: of the answers to the prompt, by sample index.
    """
    chosen, rejected = pair.chosen, pair.rejected
    provenance: dict = {}
    type_ = prompt_type_of(case.prompt.extra)
    if type_:
        provenance["prompt_type"] = type_
    for side, candidate in (("chosen", chosen), ("rejected", rejected)):
        origin = origins[candidate.sample_index]
        if origin:
            provenance[side] = origin
    return PreferencePair(
        pair_id=f"{chosen.prompt_id}#{chosen.sample_index}-{rejected.sample_index}",
        prompt_id=chosen.prompt_id,
        video=case.prompt.video,
        question=case.prompt.question,
        captions=case.prompt.captions,
        chosen=chosen.answer,
        rejected=rejected.answer,
        margin=pair.margin,
        judge={**judge, "chosen": chosen.score, "rejected": rejected.score},
        provenance=provenance,
    )


def check_pairs(inquiry: Inquiry) -> None:
    """Check that answers and labels exist."""
    data = inquiry.config.data
    check_file(inquiry, "data.candidates", data.candidates, "rlaif sample")
    check_file(inquiry, "data.labels", data.labels, "rlaif label")


def summarise_pairs(config: Config, directory: RunDir, report: Mapping[str, Any]) -> Summary:
    """Return how many pairs were made, and why others were left out."""
    figures = {
        "pairs": f"{report['pairs']} of {report['prompts_with_pairs']} prompts, {report['held_out']} held out",
        "left out": count_text(report["dropped"]) or "none",
    }
    places = {"file": config.data.pairs, "report": directory.path / "eval" / "pairs.json"}
    return Summary(figures, places, following=[("train a reward model on the pairs", "reward", ())])
