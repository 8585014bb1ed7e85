"""Preference pairs out of labelled answers: `rlaif pairs CONFIG`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rlaif.config.schema import Config
from rlaif.data.files import kind, read_rows, write_rows
from rlaif.data.formats.own import PAIRS
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import Row
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation.agreement import prompt_type_of
from rlaif.feedback.pair_report import pair_report
from rlaif.feedback.pairing import Candidate, PairOptions, ScoredPair, build_pairs
from rlaif.records import Masked
from rlaif.seeds import derive
from rlaif.stages.feedback import sample
from rlaif.stages.feedback.judge_inputs import Case, read_cases
from rlaif.stages.feedback.label import open_labels
from rlaif.stages.feedback.label_hash import check_kind
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.train.evaluate import command

log = logging.getLogger(__name__)


def pairs(config: Config, run: Run) -> dict:
    """Write `data.pairs` (and `data.pairs_eval`, where it is set); returns the report, which is `eval/pairs.json` too."""
    targets = [datasets.data_path(config, file) for file in (config.data.pairs, config.data.pairs_eval) if file]
    for path in targets:
        check_target(path)
    (cases, unanswered), store = read_cases(config, run), open_labels(config)
    check_kind(store, config)
    if missing := [case.key for case in cases if case.key not in store]:
        raise DataError(
            f"a label in {store.path} for every prompt that has answers",
            f"none for {len(missing)} of {len(cases)}, such as {missing[0][0]!r}",
            "Run `rlaif label`, which goes on where it stopped",
        )
    if again := store.missing([case.key for case in cases]):
        log.warning("%d of %d prompts still wait for the judge: `rlaif label` asks again", len(again), len(cases))
    built = build_pairs(_candidates(cases, store), options_of(config), config.seed)
    if not built.pairs:
        raise DataError(
            "preference pairs", f"none of {built.considered}: {built.dropped}", "Relax the options of `pairs`"
        )
    by_prompt = {case.prompt.prompt_id: case for case in cases}
    judges = {row["prompt_id"]: {"model": row["judge"], "kind": row["kind"]} for row in store.rows()}
    origins = sample.origins(config, [case.prompt for case in cases])
    records = [
        record(pair, by_prompt[name], judges[name], origins[name])
        for pair in built.pairs
        for name in (pair.chosen.prompt_id,)
    ]
    held = held_out(config, [record.video for record in records]) if config.data.pairs_eval else set()
    write(datasets.data_path(config, config.data.pairs), [record for record in records if record.video not in held])
    if config.data.pairs_eval:
        write(
            datasets.data_path(config, config.data.pairs_eval), [record for record in records if record.video in held]
        )
    found = {"command": command(), "unanswered": unanswered, **pair_report(built)}
    found["held_out"] = sum(record.video in held for record in records)
    run.directory.write_eval("pairs", found)
    return found


MARGIN = {"claims": 1.0, "pairwise": 0.2}
"""Least difference of scores where `pairs.margin` does not say: rejected claims, or mean win probability."""


def options_of(config: Config) -> PairOptions:
    margin = MARGIN[config.label.method] if config.pairs.margin is None else config.pairs.margin
    return PairOptions(**config.pairs.model_dump(exclude={"eval_fraction", "margin"}), margin=margin)


def check_target(path: Path) -> None:
    """Raises ConfigError where a file to be written holds preferences that no judge of ours made: they are not replaced."""
    first = next(iter(read_rows(path)), None) if path.is_file() else None
    fields = first.fields if isinstance(first, Row) else {}
    if first is not None and not (labelled_here(fields.get("judge")) and not fields.get("scores")):
        raise ConfigError(
            f"no file at {path}, or one that `rlaif pairs` wrote",
            f"rows of another origin, or with scores, such as {fields.get('pair_id')!r}",
            "Set data.pairs or data.pairs_eval to another file to write to",
        )


def labelled_here(judge: object) -> bool:
    """Whether a row's `judge` is as `record` writes it; parquet files hold it as JSON text."""
    try:
        found = json.loads(judge) if isinstance(judge, str) else judge
    except ValueError:
        return False
    return isinstance(found, dict) and {"model", "kind"} <= found.keys()


def held_out(config: Config, videos: Sequence[str]) -> set[str]:
    """The videos whose pairs are held out: a share of them, at least one, chosen by their names and the seed."""
    place = {video: derive(config.seed, "hold out", video) % 2**32 for video in videos}
    limit = config.pairs.eval_fraction * 2**32
    return {video for video in videos if place[video] < limit} or {min(place, key=place.__getitem__)}


def write(path: Path, records: Sequence[PreferencePair]) -> None:
    rows = (record.to_row() for record in records)
    write_rows(path, map(PAIRS.columns, rows) if kind(path) == ".parquet" else rows, PAIRS.schema)


def _candidates(cases: Sequence[Case], store) -> Iterator[Candidate]:
    for case in cases:
        scores = store[case.key]["scores"]
        for index, (answer, score) in enumerate(zip(case.answers, scores, strict=True)):
            value = Masked(score["masked"]) if "masked" in score else score["score"]
            yield Candidate(case.prompt.prompt_id, index, case.prompt.video, case.prompt.question, answer, value)


def record(pair: ScoredPair, case: Case, judge: Mapping[str, str], origins: Sequence[dict]) -> PreferencePair:
    """origins: of the prompt's answers, by sample index."""
    chosen, rejected = pair.chosen, pair.rejected
    provenance = {"prompt_type": said} if (said := prompt_type_of(case.prompt.extra)) else {}
    for side, one in (("chosen", chosen), ("rejected", rejected)):
        provenance |= {side: origins[one.sample_index]} if origins[one.sample_index] else {}
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
