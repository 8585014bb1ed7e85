"""AI feedback: a judge's verdicts on the candidates, `rlaif label CONFIG`. What is there already is not asked again.

A judgement that failed is a masked record with its reason. Where the reason may pass (a server that is down, a budget that
is used up), the row says `again` and the next run asks for that prompt once more; what the judge itself declined is done.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.feedback.store import Store
from rlaif.functions import load_function
from rlaif.io.progress import Progress
from rlaif.records import Masked
from rlaif.stages.feedback.by_claims import by_claims
from rlaif.stages.feedback.by_pairs import by_function, by_pairs
from rlaif.stages.feedback.judge_inputs import Case, again, left_out, read_cases, reasons, row_of
from rlaif.stages.feedback.judges import Judge, make_judge, name_of
from rlaif.stages.feedback.label_hash import check_kind, kind_of
from rlaif.stages.feedback.label_report import report, warnings
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.train.evaluate import command

log = logging.getLogger(__name__)

AT_ONCE = 128
"""Prompts whose answers are judged, and then written down, together."""


def label(config: Config, run: Run) -> dict:
    """Judge every prompt's answers; returns the report, which is `eval/label.json` too."""
    if config.label.reference:
        load_function(config.label.reference)  # a typing error is found before anything is asked
    cases, unanswered = read_cases(config, run)
    done = labelled(config, run, cases, open_labels(config))
    told = report(config, cases, done.rows, done.spent)
    found = {"command": command(), "judge": done.judge, "unanswered": unanswered, **told}
    for warning in warnings(found):
        log.warning("%s", warning)
    run.directory.write_eval("label", found)
    return found


class Labelled(NamedTuple):
    judge: str
    """Its name."""
    rows: list[dict]
    """One per case."""
    spent: dict
    """What asking took in this call, where the judge is a server."""


def labelled(config: Config, run: Run, cases: Sequence[Case], store: Store) -> Labelled:
    """The rows of the store, where the judge adds what is missing."""
    options = config.label
    judge = None if isinstance(options.judge, Function) else make_judge(config, run, options.judge)
    check_kind(store, config)
    missing = set(store.missing([case.key for case in cases]))
    todo = [case for case in cases if case.key in missing]
    log.info("%s: %d of %d prompts are labelled already", store.path, len(cases) - len(todo), len(cases))
    made = {"kind": kind_of(config), "judge": name_of(options.judge)}
    shown, silent = Progress(len(todo), "labels"), ""
    for start in range(0, len(todo), AT_ONCE):
        part = todo[start : start + AT_ONCE]
        rows = [_not_asked(case, silent) for case in part] if silent else judged(config, judge, part)
        silent = silent or _silent(rows)
        store.append([{**row, **left_out(config, judge, case), **made} for case, row in zip(part, rows, strict=True)])
        shown.to(start + len(part))
    shown.close()
    return Labelled(made["judge"], [store[case.key] for case in cases], judge.spent() if judge else {})


def open_labels(config: Config) -> Store[tuple[str, str]]:
    return label_store(datasets.data_path(config, config.data.labels))


def label_store(path: str | Path) -> Store[tuple[str, str]]:
    """Labels in a file; a prompt that the judge could not be asked about counts as missing."""
    return Store(path, lambda row: (row["prompt_id"], row["answers_hash"]), lambda row: row.get("again", False))


def judged(config: Config, judge: Judge | None, cases: Sequence[Case]) -> list[dict]:
    """One row per case; a judgement that failed is masked with its reason, and nothing else is lost."""
    if judge is None:
        return [by_function(config, case) for case in cases]
    method = by_claims if config.label.method == "claims" else by_pairs
    return _with_replies(method(config, judge, cases), judge.replies())


def _with_replies(rows: list[dict], replies: Iterable[tuple[str, dict]]) -> list[dict]:
    """The rows with the records of a server's replies behind them, each once, by what was asked."""
    told: dict[int, list[dict]] = {}
    for key, record in replies:
        number, _, asked = key.partition(":")
        told.setdefault(int(number), []).append({"asked": asked, **record})
    return [row | ({"replies": told[number]} if number in told else {}) for number, row in enumerate(rows)]


def _silent(rows: Sequence[dict]) -> str:
    """Why nothing was answered about any of these prompts, where another time it may be; "" otherwise."""
    lost = all(row.get("again") and all("masked" in score for score in row["scores"]) for row in rows)
    return reasons(rows[-1])[0] if lost else ""


def _not_asked(case: Case, why: str) -> dict:
    masked = Masked(f"not asked, as nothing was answered about the prompts before: {why}", again=True)
    return row_of(case, [masked] * len(case.answers)) | again([masked])
