"""How often a reward model or a judge prefers what a file of preferences prefers: `rlaif eval agreement CONFIG`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rlaif.config.schema import Config
from rlaif.data import BadRow, Report, check_videos
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation import agreement as rates
from rlaif.evaluation.agreement import Compared
from rlaif.preferences.convert import AUTO, opened, source_file
from rlaif.preferences.files import unit
from rlaif.preferences.formats.base import Options
from rlaif.preferences.media import Media
from rlaif.preferences.record import Preference
from rlaif.preferences.rows import good
from rlaif.records import Masked, Outcome, Prompt
from rlaif.stages import data
from rlaif.stages.evaluate import command
from rlaif.stages.label import cases_of
from rlaif.stages.run import Run
from rlaif.stages.scoring import judged, reasons, rewarded

log = logging.getLogger(__name__)

Margin = Callable[[str], float | None]
"""By dimension: above 0 where the chosen answer is judged better, 0 for a tie, None without a verdict."""


def agreement(config: Config, run: Run) -> dict:
    """Overall, by dimension and by prompt type, with 95 % intervals; `eval/agreement.json` too.

    Raises ConfigError without `data.pairs_eval`, DataError where no pair of the file can be used or it lacks a dimension
    of `agreement.dimensions`.
    """
    if config.data.pairs_eval is None:
        raise ConfigError("data.pairs_eval, the preferences to compare with", "none", "data.pairs_eval")
    records, report = read(config, run)
    check_dimensions(config, records)
    measure = {"reward": by_reward, "judge": by_judge}[config.agreement.by]
    name, margins, masked = measure(config, run, records)
    found = {
        "command": command(),
        "by": name,
        "file": report.path,
        "rows": report.counts,
        "masked": masked,
        **rates_of(records, margins, config.agreement.dimensions),
    }
    if masked:
        log.warning("%d of %d pairs have no verdict: %s", found["overall"]["no_verdict"], len(records), masked)
    run.directory.write_eval("agreement", found)
    return found


def read(config: Config, run: Run) -> tuple[list[Preference], Report]:
    """Pairs of `data.pairs_eval`, in any format that is known, with their captions; what cannot be compared is counted."""
    path = source_file(data.data_path(config, config.data.pairs_eval))
    report = Report(str(path))
    form, rows = opened(path, AUTO, report)
    if form.kind != "pairs":
        raise DataError("preference pairs in data.pairs_eval", f"{form.kind} ({form.name})", "data.pairs_eval")
    items = form.read(rows, Options(Media(Path(config.data.root), None)), report.lines)
    records = data.captioned(config, list(good(items, report)))
    client = run.topology.client()
    bad = check_videos(sorted({record.video for record in records if record.video}), client.spec)
    kept = []
    for record in records:
        if why := _unusable(record, bad):
            report.kept -= 1
            report.skip(why[0], BadRow(report.lines.get(record.pair_id), record.pair_id, why[1], unit(path)))
        else:
            kept.append(record)
    report.check(config.data.strict)
    if report.skipped:
        log.warning("%s", report.summary())
    return kept, report


def _unusable(record: Preference, bad: dict[str, str]) -> tuple[str, str] | None:
    if record.chosen_video:
        return "candidates are videos", record.chosen_video
    return ("video unusable", bad[record.video]) if record.video in bad else None


def check_dimensions(config: Config, records: Sequence[Preference]) -> None:
    there = sorted({name for record in records for name in record.signs})
    if missing := [name for name in config.agreement.dimensions if name not in there]:
        raise DataError(
            f"pairs that are compared in {', '.join(missing)} in {config.data.pairs_eval}",
            f"the dimensions {', '.join(there)}",
            "agreement.dimensions",
        )


def rates_of(records: Sequence[Preference], margins: Sequence[Margin], dimensions: Sequence[str] = ()) -> dict:
    """`overall` and `prompt_type` count every pair once, in its own dimension; `dimension` in all that it is compared in."""
    own, further = [], []
    for record, margin in zip(records, margins, strict=True):
        for one in compared(record, margin):
            (own if one.dimension == record.dimension else further).append(one)
    found = rates.agreement(own)
    by_dimension = rates.agreement(own + further)["dimension"]
    kept = {name: rate for name, rate in by_dimension.items() if not dimensions or name in dimensions}
    return found | {"dimension": kept}


def compared(record: Preference, margin: Margin) -> Iterator[Compared]:
    """The record in its own dimension and in every further one, as both sides see it."""
    for dimension, sign in record.signs.items():
        yield Compared(margin(dimension), sign, dimension, prompt_type(record))


def prompt_type(record: Preference) -> str:
    """What the record says its prompt is: SafeSora's type, `provenance.prompt_type`, or a field `prompt_type` or `kind`."""
    further = record.native.get("rlaif", {})
    said = record.safety.get("prompt_type") or record.provenance.get("prompt_type")
    said = said or further.get("prompt_type") or further.get("kind")
    return said if isinstance(said, str) else ""


# -- who is compared


def by_reward(config: Config, run: Run, records: Sequence[Preference]) -> tuple[str, list[Margin], dict[str, int]]:
    """Score differences of `ppo.reward`; in a dimension that is one of the score's parts, the difference of that part."""
    reward = config.ppo.reward
    name = reward if isinstance(reward, str) else reward.path
    found = rewarded(config, run, [(_prompt(record), (record.chosen, record.rejected)) for record in records])
    masked = Counter(one.reason for pair in found for one in pair if isinstance(one, Masked))
    return name, [_score_margin(*pair) for pair in found], dict(masked)


def _score_margin(chosen: Outcome, rejected: Outcome) -> Margin:
    def margin(dimension: str) -> float | None:
        if isinstance(chosen, Masked) or isinstance(rejected, Masked):
            return None
        a, b = (one.parts.get(dimension, one.value) for one in (chosen, rejected))
        return a - b

    return margin


def by_judge(config: Config, run: Run, records: Sequence[Preference]) -> tuple[str, list[Margin], dict[str, int]]:
    """Labels of `label.judge` on the two answers of each pair; a judge has one opinion, whatever the dimension."""
    cases = cases_of(config, [(_prompt(record), (record.chosen, record.rejected)) for record in records])
    name, rows = judged(config, run, cases, "agreement")
    masked = Counter(reason for row in rows for reason in reasons(row))
    return name, [_label_margin(row) for row in rows], dict(masked)


def _label_margin(row: dict) -> Margin:
    chosen, rejected = (score.get("score") for score in row["scores"])
    value = None if chosen is None or rejected is None else chosen - rejected
    return lambda dimension: value


def _prompt(record: Preference) -> Prompt:
    extra = record.native.get("rlaif", {})
    return Prompt(record.pair_id, record.video or "", record.question, captions=record.captions, extra=extra)


# -- what is printed


def table(found: dict) -> str:
    """A line per group as a Markdown table."""
    groups = [("overall", found["overall"])]
    groups += [(f"{kind}: {name}", rate) for kind in ("dimension", "prompt_type") for name, rate in found[kind].items()]
    lines = [f"agreement of {found['by']} with {found['file']}", ""]
    lines += ["| | agreement | 95 % interval | pairs | ties | no verdict |", "|---|---|---|---|---|---|"]
    for name, rate in groups:
        share = "" if rate["agreement"] is None else f"{rate['agreement']:.3f}"
        interval = "" if rate["low"] is None else f"{rate['low']:.3f} to {rate['high']:.3f}"
        lines.append(f"| {name} | {share} | {interval} | {rate['pairs']} | {rate['ties']} | {rate['no_verdict']} |")
    return "\n".join(lines)
