"""Datasets of a stage, checked before anything expensive starts: `load(run, file, kind)` is how every stage reads rows."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from rlaif.config.schema import Config
from rlaif.data.files import read_rows, unit
from rlaif.data.own_rows import id_of
from rlaif.data.preference import PreferencePair
from rlaif.data.read import OwnKind, OwnRecord, read_records
from rlaif.data.rows import Conversation, Report, RowError
from rlaif.data.videos import UNUSABLE, check_videos, decode_videos, skip_bad_videos, skip_unusable, videos_of
from rlaif.errors import ConfigError, DataError, named
from rlaif.feedback.store import Store
from rlaif.io.storage import locate
from rlaif.records import Prompt
from rlaif.stages.run.run import Run

log = logging.getLogger(__name__)

CaptionedRow = TypeVar("CaptionedRow", Prompt, Conversation, PreferencePair)

Check = Callable[[Any], str | None]
"""Raises RowError for a row that can never be used (rlaif/stages/run/row_checks.py has them); returns a remark, or None."""

Kind = Literal[OwnKind, "preferences", "pair_prompts"]
"""What a file holds, and what a stage reads of it:

- `prompts`, `conversations`, `pairs`: our own rows; of pairs the fields that a reward model is trained on.
- `preferences`: pairs of any known format, our own or published, with everything that they say.
- `pair_prompts`: the same files; a prompt for each video that a pair's texts are about, named like the pair.
"""


def load(run: Run, file: str, kind: Kind, checks: Sequence[Check] = ()) -> list[Any]:
    """Return the usable rows of a file: see `load_with_report`."""
    rows, _ = load_with_report(run, file, kind, checks)
    return rows


def load_with_report(run: Run, file: str, kind: Kind, checks: Sequence[Check] = ()) -> tuple[list[Any], Report]:
    """Return the usable rows of a file with their captions, and the report of what was skipped.

    Bad rows and rows with unusable videos are counted and named in a warning. `checks` see our own rows whose videos can
    be opened, with their captions. Raise DataError if no row can be used and, with `data.strict`, if any cannot.
    """
    if kind == "preferences":
        return _load_preferences(run, file)
    if kind == "pair_prompts":
        return _load_pair_prompts(run, file)
    return _load_own(run, file, kind, checks)


def load_prompts(run: Run, files: Sequence[str], checks: Sequence[Check] = ()) -> list[Prompt]:
    """Return the prompts of several files, each once. Raise DataError for an id that stands for two different prompts."""
    prompts: dict[str, Prompt] = {}
    for file in files:
        for prompt in load(run, file, "prompts", checks):
            first = prompts.setdefault(prompt.prompt_id, prompt)
            if (first.video, first.question) != (prompt.video, prompt.question):
                both = f"{first.video!r}, {first.question!r} and {prompt.video!r}, {prompt.question!r}"
                expected = f"one video and question for prompt {prompt.prompt_id!r}"
                raise DataError(expected, both, f"Change its id in {file}, or read other files.")
    return list(prompts.values())


def _load_own(run: Run, file: str, kind: OwnKind, checks: Sequence[Check]) -> tuple[list[Any], Report]:
    root, strict = run.config.data.root, run.config.data.strict
    rows, report = read_records(data_path(run.config, file), root, kind, strict)
    videos = {video for row in rows for video in videos_of(row)}
    # the frame store probes the videos, so that no other role and no later stage has to do it again
    bad = check_videos(sorted(videos), run.topology.client().spec)
    rows = skip_bad_videos(rows, bad, report, strict)
    if kind == "prompts":
        sha256_of = contents_of(run)
        rows = [replace(row, video_sha256=sha256_of(row.video)) for row in rows]
    rows, remarks = skip_unusable(captioned(run, rows), checks, report, strict)
    for name, line in report.lines.items():
        run.places[name] = f"{file} {report.unit} {line}"
    _warn_of_skipped(report)
    for remark, ids in remarks.items():
        log.warning("%s: %d rows are used although %s: %s", report.path, len(ids), remark, named(run.placed(ids)))
    if kind == "pairs":
        warn_of_turns(report.path, sum(row.earlier_turns for row in rows), len(rows))
    return rows, report


def _load_preferences(run: Run, file: str) -> tuple[list[PreferencePair], Report]:
    config = run.config
    report, records = _open_pairs(
        config, file, "preference pairs in data.pairs_eval", "Set data.pairs_eval to a file of pairs."
    )
    pairs = list(records)
    media = {video for pair in pairs for video in pair.media}
    bad = check_videos(sorted(media), run.topology.client().spec)
    usable = []
    for pair in pairs:
        error = _media_error(config, pair, bad)
        if error is None:
            usable.append(pair)
        else:
            report.drop(pair.pair_id, error)
    report.check(config.data.strict)
    _warn_of_skipped(report)
    warn_of_turns(report.path, sum(pair.earlier_turns for pair in usable), len(usable))
    return captioned(run, usable), report


def _media_error(config: Config, pair: PreferencePair, bad: dict[str, str]) -> RowError | None:
    """Return why the media of a pair cannot be used, or None; `bad` has the reasons by video."""
    if pair.modality != "text" and not pair.media:
        return RowError("no video", f"a pair of modality {pair.modality} that names none")
    reasons = [bad[video] for video in pair.media if video in bad]
    if not reasons:
        return None
    is_one_frame = pair.modality == "image" and config.video.num_frames > 1
    hint = "; an image is one frame: video.num_frames=1" if is_one_frame else ""
    return RowError(UNUSABLE, reasons[0] + hint)


def _load_pair_prompts(run: Run, file: str) -> tuple[list[Prompt], Report]:
    config = run.config
    path = _rows_file(config, file)
    if next(read_rows(path), None) is None:
        return [], Report(str(path), unit=unit(path))  # `rlaif pairs` may have held all of them out
    report, records = _open_pairs(
        config, file, f"preference pairs in {path}", "Set data.pairs and data.pairs_eval to files of pairs."
    )
    prompts, earlier_turns = [], 0
    for pair in records:
        earlier_turns += pair.earlier_turns
        # no captions are read of candidates that are videos
        if pair.video and not pair.chosen_video:
            prompts.append(Prompt(pair.pair_id, pair.video, pair.question))
    bad = check_videos(sorted({prompt.video for prompt in prompts}), run.topology.client().spec)
    prompts = skip_bad_videos(prompts, bad, report)
    if report.skipped:
        report.check(config.data.strict)
        _warn_of_skipped(report)
    warn_of_turns(report.path, earlier_turns, report.kept)
    return prompts, report


def _open_pairs(config: Config, file: str, expected: str, fix: str) -> tuple[Report, Iterator[PreferencePair]]:
    """Open a file of pairs in any known format. Images inside it, and links to frames, are put below `agreement.media`."""
    # imported here because PPO and fine-tuning, which load this module too, need no format but our own
    from rlaif.data.media import Media
    from rlaif.data.published import open_pairs

    path = _rows_file(config, file)
    report = Report(str(path), unit=unit(path))
    try:
        folder = data_path(config, config.agreement.media)
    except ConfigError:  # in a bucket, as the run is: enough for rows that need no folder
        folder = None
    media = Media(Path(config.data.root), folder)
    return report, open_pairs(path, media, report, expected, fix)


def _rows_file(config: Config, file: str) -> Path:
    from rlaif.data.published import source_file

    return source_file(data_path(config, file))


def stream_pairs(config: Config, path: Path, report: Report) -> Iterator[PreferencePair]:
    """Return the valid records of a file of our pairs, whole, one at a time; the others are counted in `report`.

    Those that list other frames than their video shows are among the others. Videos are not probed, captions not added.
    """
    from rlaif.data.media import Media
    from rlaif.data.published import open_own_pairs

    return open_own_pairs(path, Media(Path(config.data.root), None), report)


def _warn_of_skipped(report: Report) -> None:
    if report.skipped:
        log.warning("%s", report.summary())


def data_path(config: Config, file: str) -> Path:
    """Return the path of a dataset file, relative to `data.root` or absolute.

    Raise ConfigError, naming the option, for a file in a bucket.
    """
    is_whole = "://" in file or os.path.isabs(file)
    location = file if is_whole else f"{config.data.root}/{file}"
    place = locate(location)
    if place.local:
        return place.local
    option = "data.root"
    if "://" in file:
        options = [f"data.{name}" for name, value in config.data if value == file]
        option = options[0] if options else "the option that names it"
    fix = f"Set {option} to a folder or file on a file system that every node sees; copy the bucket's files there."
    raise ConfigError("a local path", f"the URI {location}", fix)


def decode_first(run: Run, rows: Iterable[OwnRecord]) -> dict[str, str]:
    """Decode the videos of rows, given in the order of their use, for at most `data.check_s` seconds.

    Return the reasons of those that do not decode, by video, after naming them and their rows; stages skip them later.
    No more is decoded than the frame store holds, so that what is used first is there when it is needed. Raise DataError
    if none of them decodes, or if any does not with `data.strict`.
    """
    config, client = run.config, run.topology.client()
    users, is_whole = _first_users(run, rows)
    bad, tried = decode_videos(users, client.get, config.data.check_s, config.video.decode_threads)
    if not bad:
        return bad
    ids = [name for video in bad for name in users[video]]
    reasons = named(list(bad.values()), 3)
    places = named(run.placed(list(dict.fromkeys(ids))))
    failures = f"{len(bad)} of the {tried} videos decoded so far do not: {reasons}; rows: {places}"
    if config.data.strict or (is_whole and len(bad) == len(users)):
        expected = "videos that all decode, as data.strict asks for" if config.data.strict else "videos that decode"
        raise DataError(expected, failures, "Replace the files, or remove their rows.")
    log.warning("%s", failures)
    return bad


def _first_users(run: Run, rows: Iterable[OwnRecord]) -> tuple[dict[str, list[str]], bool]:
    """Return the ids of the rows that use each video, for as many as the frame store holds, and whether that is all."""
    client = run.topology.client()
    users: dict[str, list[str]] = {}
    stored_bytes = 0
    for row in rows:
        for video in videos_of(row):
            if video not in users:
                spec = client.spec(video)
                stored_bytes += 3 * len(spec.indices) * spec.height * spec.width  # uint8 RGB
            users.setdefault(video, []).append(id_of(row))
        if stored_bytes > run.config.video.store_bytes:
            return users, False
    return users, True


def contents_of(run: Run) -> Callable[[str], str]:
    """Return a function from a video's name to the sha256 of what it stands for.

    It is empty for no video, and for one that cannot be used.
    """
    client = run.topology.client()

    @cache
    def sha256_of(video: str) -> str:
        try:
            return client.spec(video).sha256 if video else ""
        except DataError:
            return ""

    return sha256_of


# -- captions


def captioned(run: Run, rows: Sequence[CaptionedRow]) -> list[CaptionedRow]:
    """Return the rows with the captions that `data.captions` has of their videos; the others keep their own.

    Rows that read captions and have none are counted in a warning.
    """
    config = run.config
    if config.data.captions is None or not data_path(config, config.data.captions).is_file():
        return list(rows)
    known = captions_by_video(data_path(config, config.data.captions))
    sha256_of = contents_of(run)
    result: list[CaptionedRow] = []
    without = 0
    for row in rows:
        if _reads_captions(row):
            captions = stored(known, row, sha256_of(row.video or "")) or row.captions
            without += not captions
            row = replace(row, captions=captions)
        result.append(row)
    if without:
        log.warning("%d of %d rows have no captions in %s", without, len(rows), config.data.captions)
    return result


def warn_of_turns(path: str, count: int, pairs: int) -> None:
    """Warn of pairs with turns before the question: reward models and judges read the last question only."""
    if count:
        log.warning("%s: %d of %d pairs have turns before the question, which are not read", path, count, pairs)


def _reads_captions(row: OwnRecord) -> bool:
    """Return whether captions belong to a row: beside two videos they would tell which of them they are about."""
    if isinstance(row, PreferencePair):
        return not row.rejected_video
    return not isinstance(row, Conversation)


Captions = dict[tuple[str, str], dict[str, tuple[str, ...]]]
"""Captions by (video, question; empty if they do not depend on it), then by the sha256 of the video's file; empty if a row
does not name it."""


def stored(known: Captions, row: Prompt | PreferencePair, sha256: str) -> tuple[str, ...]:
    """Return the captions of a row for the file that its video's name stands for now; those of another file do not count."""
    video = row.video or ""
    for key in ((video, ""), (video, row.question)):
        by_file = known.get(key, {})
        captions = by_file.get(sha256) or by_file.get("")
        if captions:
            return captions
    return ()


def check_captions(config: Config, rows: Sequence[PreferencePair], file: str) -> None:
    """Raise DataError, naming the command that makes captions, if a reward model that reads them lacks them.

    That is so if no pair has any, or if one is about a video that `data.captions` does not mention: neither captions nor
    why there are none.
    """
    readers = [row for row in rows if _reads_captions(row)]
    without = [row for row in readers if not row.captions]
    mentioned = set()
    path = data_path(config, config.data.captions) if config.data.captions else None
    if path is not None and path.is_file():
        mentioned = {(row["video"], row.get("question", "")) for row in open_captions(path).rows()}
    missing = [row.video for row in without if mentioned.isdisjoint({(row.video, ""), (row.video, row.question)})]
    if without and (len(without) == len(readers) or (config.data.captions and missing)):
        videos = list(dict.fromkeys(missing or [row.video for row in without]))
        raise DataError(
            f"captions of the videos in {file}, which reward.context={config.reward.context} reads",
            f"none of {len(videos)} videos: {named(videos)}",
            "Run `rlaif caption CONFIG`, which captions them into data.captions, or set `reward.context=none`.",
        )


def no_captions(config: Config, rows: str, reader: str) -> DataError:
    """Return the error for `rows` without any captions, which `reader` reads."""
    file = config.data.captions
    about = f"none in any of {rows}"
    if file and data_path(config, file).is_file():
        about += f", nor about their videos in {file}"
    elif file:
        about += f"; data.captions ({file}) is not a file"
    fix = "Set data.captions to the file that `rlaif caption` wrote, or run `rlaif caption CONFIG`."
    return DataError(f"captions: {reader}", about, fix)


def open_captions(path: Path) -> Store[tuple[str, str]]:
    """Open the file that `rlaif caption` writes; a video whose captions failed counts as missing."""
    return Store(path, lambda row: (row["key"], row["video"]), lambda row: "masked" in row)


def captions_by_video(path: Path) -> Captions:
    """Return the contexts that `rlaif caption` wrote; of several rows about one file the last one that did not fail counts.

    Raise DataError if there are captions of more than one kind: which of them are read would be chance.
    """
    rows = open_captions(path).newest_last()
    kinds = sorted({(row["model"], row.get("captioner", ""), row["version"]) for row in rows})
    if len(kinds) > 1:
        texts = [f"{model} (weights {weights}) with prompt version {version}" for model, weights, version in kinds]
        fix = "Set data.captions to another file for each."
        raise DataError(f"captions by one model and prompt in {path}", "; ".join(texts), fix)
    captions: Captions = {}
    for row in rows:
        if "masked" not in row:
            by_file = captions.setdefault((row["video"], row.get("question", "")), {})
            by_file[row.get("sha256", "")] = tuple(row["context"])
    return captions
