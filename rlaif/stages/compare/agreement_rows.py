"""The pairs that `rlaif eval agreement` compares with: read in any known format, with all that a judge must see."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rlaif.config.schema import Config
from rlaif.data.bad_rows import good
from rlaif.data.convert import AUTO, opened, source_file
from rlaif.data.files import unit
from rlaif.data.preference import Preference
from rlaif.data.rows import BadRow, Report, RowError, check_videos
from rlaif.errors import DataError
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run

log = logging.getLogger(__name__)


def read(config: Config, run: Run) -> tuple[list[Preference], Report]:
    """Pairs of `data.pairs_eval`, in any format that is known, with their captions; what cannot be compared is counted.

    Images inside the file, and links to listed frames, are put below `agreement.media`.
    """
    path = source_file(datasets.data_path(config, config.data.pairs_eval))
    report = Report(str(path), unit=unit(path))
    form, rows = opened(path, AUTO, report)
    if form.kind != "pairs":
        raise DataError(
            "preference pairs in data.pairs_eval",
            f"{form.kind} ({form.name})",
            "Set data.pairs_eval to a file of pairs.",
        )
    found = list(good(datasets.read_media(config, form, rows, report), report))
    named = {video for record in found for video in record.media}
    bad = check_videos(sorted(named), run.topology.client().spec)
    kept = []
    for record in found:
        if why := _unusable(config, record, bad):
            report.kept -= 1
            line = report.lines.get(record.pair_id)
            report.skip(why.reason, BadRow(line, record.pair_id, why.detail, report.unit))
        else:
            kept.append(record)
    report.check(config.data.strict)
    if report.skipped:
        log.warning("%s", report.summary())
    datasets.warn_of_turns(report.path, sum(len(record.messages) > 1 for record in kept), len(kept))
    return with_captions(run, kept), report


def _unusable(config: Config, record: Preference, bad: dict[str, str]) -> RowError | None:
    if record.modality != "text" and not record.media:
        return RowError("no video", f"a pair of modality {record.modality} that names none")
    video = next((video for video in record.media if video in bad), None)
    if video is None:
        return None
    still = record.modality == "image" and config.video.num_frames > 1
    hint = "; an image is one frame: video.num_frames=1" if still else ""
    return RowError("video unusable", bad[video] + hint)


def with_captions(run: Run, records: Sequence[Preference]) -> list[Preference]:
    """With the context of `data.captions`, but where two videos are compared: one context beside both would tell which of
    them it is about."""
    told = iter(datasets.captioned(run, [record for record in records if not record.chosen_video]))
    return [record if record.chosen_video else next(told) for record in records]
