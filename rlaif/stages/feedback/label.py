"""`rlaif label CONFIG`: a judge labels the candidate answers. Prompts that have labels are not asked about again.

A judgement that failed is a masked record with its reason. If the reason may pass (a server that is down, a budget that
is used up), the row says `again` and the next run asks about that prompt once more; what the judge itself declined is final.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.feedback.store import Store
from rlaif.functions import load_function
from rlaif.io.progress import Progress
from rlaif.io.rundir import RunDir, typed_command
from rlaif.records import Masked
from rlaif.stages.feedback.by_claims import by_claims
from rlaif.stages.feedback.by_pairs import by_function, by_pairs
from rlaif.stages.feedback.judge_inputs import (
    Case,
    label_row,
    left_out_field,
    masked_reasons,
    read_cases,
    retry_field,
)
from rlaif.stages.feedback.judges import Judge, judge_name, make_judge
from rlaif.stages.feedback.label_hash import check_label_hash, label_hash
from rlaif.stages.feedback.label_report import label_report, label_warnings
from rlaif.stages.preflight.files import check_file, check_prompt_files
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.preflight.judges import check_judge_and_functions
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.run.summary import Summary, count_text

log = logging.getLogger(__name__)

PROMPTS_PER_PART = 128
"""Prompts whose answers are judged, and then written, together: a kill costs at most their labels."""


def label(config: Config, run: Run) -> dict:
    """Judge every prompt's answers. Returns the report, which is `eval/label.json` too."""
    if config.label.reference:
        # A typing error in its name must be reported before anything is asked and paid for.
        load_function(config.label.reference)
    cases, unanswered = read_cases(config, run)
    result = label_cases(config, run, cases, open_labels(config))
    report = {"command": typed_command(), "judge": result.judge, "unanswered": unanswered}
    report |= label_report(config, cases, result.rows, result.spent)
    for warning in label_warnings(report):
        log.warning("%s", warning)
    run.directory.write_eval("label", report)
    return report


class LabelResult(NamedTuple):
    """The labels of some cases."""

    judge: str
    """The judge's name."""
    rows: list[dict]
    """One per case."""
    spent: dict
    """What this call spent, if the judge is a server."""


LabelStore = Store[tuple[str, str]]
"""Rows of labels by the key of their case."""


def label_cases(config: Config, run: Run, cases: Sequence[Case], store: LabelStore) -> LabelResult:
    """Return the store's row of every case; the judge adds the rows that are missing."""
    options = config.label
    judge = None if isinstance(options.judge, Function) else make_judge(config, run, options.judge)
    check_label_hash(store, config)
    missing = set(store.missing([case.key for case in cases]))
    todo = [case for case in cases if case.key in missing]
    labelled = len(cases) - len(todo)
    log.info("%s: %d of %d prompts are labelled already", store.path, labelled, len(cases))
    origin = {"kind": label_hash(config), "judge": judge_name(options.judge)}
    progress, silence = Progress(len(todo), "labels"), ""
    for start in range(0, len(todo), PROMPTS_PER_PART):
        part = todo[start : start + PROMPTS_PER_PART]
        if silence:
            # A server that answered nothing about a whole part is down, or the budget is used up.
            rows = [_not_asked(case, silence) for case in part]
        else:
            rows = judge_rows(config, judge, part)
            silence = _why_silent(rows)
        complete = []
        for case, row in zip(part, rows, strict=True):
            complete.append({**row, **left_out_field(config, judge, case), **origin})
        store.append(complete)
        progress.to(start + len(part))
    progress.close()
    spent = judge.spent() if judge else {}
    return LabelResult(origin["judge"], [store[case.key] for case in cases], spent)


def open_labels(config: Config) -> LabelStore:
    """Open the labels of `data.labels`."""
    return label_store(datasets.data_path(config, config.data.labels))


def label_store(path: str | Path) -> LabelStore:
    """Open the labels in a file; a prompt that the judge could not be asked about counts as missing."""

    def key(row: dict) -> tuple[str, str]:
        return row["prompt_id"], row["answers_hash"]

    return Store(path, key, lambda row: row.get("again", False))


def judge_rows(config: Config, judge: Judge | None, cases: Sequence[Case]) -> list[dict]:
    """Return one row per case; a judgement that failed is masked with its reason, and the others are not affected.

    `judge` is None if `label.judge` is a function.
    """
    if judge is None:
        return [by_function(config, case) for case in cases]
    method = by_claims if config.label.method == "claims" else by_pairs
    return _with_replies(method(config, judge, cases), judge.replies())


def _with_replies(rows: list[dict], replies: Iterable[tuple[str, dict]]) -> list[dict]:
    """Return the rows with the records of the server's replies about them; `asked` is the question's key within the row."""
    records: dict[int, list[dict]] = {}
    for key, record in replies:
        # Keys of questions begin with the number of their case (by_claims.py, by_pairs.py).
        number, _, question = key.partition(":")
        own = records.setdefault(int(number), [])
        own.append({"asked": question, **record})
    complete = []
    for number, row in enumerate(rows):
        own = records.get(number)
        complete.append(row | {"replies": own} if own else row)
    return complete


def _why_silent(rows: Sequence[dict]) -> str:
    """Return why none of these prompts was answered, if another run may get answers; else an empty string."""
    for row in rows:
        answered = any("masked" not in score for score in row["scores"])
        if answered or not row.get("again"):
            return ""
    return masked_reasons(rows[-1])[0]


def _not_asked(case: Case, reason: str) -> dict:
    masked = Masked(f"not asked, as nothing was answered about the prompts before: {reason}", again=True)
    row = label_row(case, [masked] * len(case.answers))
    return row | retry_field([masked])


def check_label(inquiry: Inquiry) -> None:
    """Check the judge, and the prompts and answers that it reads."""
    config = inquiry.config
    check_judge_and_functions(inquiry)
    check_prompt_files(inquiry, "candidates.prompts", config.candidates.prompts)
    check_file(inquiry, "data.candidates", config.data.candidates, "rlaif sample")


def summarise_label(config: Config, directory: RunDir, report: Mapping[str, Any]) -> Summary:
    """Return how many answers were labelled, and how often the labels agree with the reference."""
    masked = sum(report["masked"].values())
    figures = {"prompts": str(report["prompts"]), "answers": f"{report['answers']} ({masked} without a score)"}
    if "claims" in report:
        figures["claims"] = f"{report['claims']}, of which the judge rejects {report['rejected']}"
    if report.get("flips", {}).get("before") is not None:
        figures["changed by order"] = f"{report['flips']['before']:.1%} of the verdicts"
    overall = report.get("agreement", {}).get("overall", {})
    if overall.get("pairs"):
        figures["as the reference"] = f"{overall['agreement']:.1%} of {overall['pairs']} pairs of answers"
    if "server" in report:
        figures["server"] = count_text(report["server"]["labels"])
    places = {"labels": config.data.labels, "report": directory.path / "eval" / "label.json"}
    return Summary(figures, places, following=[("make preference pairs of the labels", "pairs", ())])
