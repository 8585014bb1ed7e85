"""How many words do sampled answers have? `rlaif lengths CONFIG`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rlaif.config.schema import Config
from rlaif.io.rundir import RunDir
from rlaif.stages.feedback.sample import open_candidates
from rlaif.stages.preflight.files import check_file
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.run.run import Run
from rlaif.stages.run.summary import Summary


def lengths(config: Config, run: Run) -> dict[str, int]:
    """Count the answers of `data.candidates` by length, in `eval/lengths.json`."""
    answers: list[str] = []
    for row in open_candidates(config).rows():
        answers += row.get("answers", ())
    report = count_lengths(answers, config.lengths.short, config.lengths.long)
    run.directory.write_eval("lengths", report)
    return report


def count_lengths(answers: Iterable[str], short: int, long: int) -> dict[str, int]:
    """Return the number of answers with at most `short` words, with at least `long` words, and in between."""
    report = {"short": 0, "medium": 0, "long": 0}
    for answer in answers:
        words = len(answer.split())
        if words <= short:
            report["short"] += 1
        elif words >= long:
            report["long"] += 1
        else:
            report["medium"] += 1
    return report


def check_lengths(inquiry: Inquiry) -> None:
    """Check that there are answers."""
    check_file(inquiry, "data.candidates", inquiry.config.data.candidates, "rlaif sample")


def summarise_lengths(config: Config, directory: RunDir, report: Mapping[str, int]) -> Summary:
    """Return the counts."""
    figures = {name: str(count) for name, count in report.items()}
    return Summary(figures, {"report": directory.path / "eval" / "lengths.json"})
