"""Datasets of a stage, checked before anything expensive starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from rlaif.config.schema import Config
from rlaif.data.bad_rows import Bad, good
from rlaif.data.convert import AUTO, opened, source_file
from rlaif.data.files import read_rows, unit
from rlaif.data.formats.base import Format, Options
from rlaif.data.frame_lists import exact
from rlaif.data.media import Media
from rlaif.data.preference import Preference
from rlaif.data.read import read_conversations, read_pairs, read_prompts
from rlaif.data.rows import (
    ID_FIELD,
    Conversation,
    Pair,
    Report,
    check_videos,
    decode_videos,
    skip_bad_videos,
    skip_unusable,
    videos_of,
)
from rlaif.errors import ConfigError, DataError, named
from rlaif.feedback.store import Store
from rlaif.io.storage import locate
from rlaif.records import Prompt
from rlaif.stages.run.run import Run

log = logging.getLogger(__name__)

Row = TypeVar("Row", Prompt, Conversation, Pair)


Check = Callable[[Any], str | None]
"""Raises RowError for a row that can never be used (rlaif/stages/run/row_checks.py has them); returns a remark, or None."""


def prompts(run: Run, file: str, checks: Sequence[Check] = ()) -> list[Prompt]:
    """Return the usable prompts of a file, with the captions of `data.captions` if that is set and there."""
    return _load(run, file, read_prompts, checks)


def prompts_of(run: Run, files: Sequence[str], checks: Sequence[Check] = ()) -> list[Prompt]:
    """Return the prompts of several files, each once. Raises DataError for an id that stands for two different prompts."""
    found: dict[str, Prompt] = {}
    for file in files:
        for prompt in prompts(run, file, checks):
            known = found.setdefault(prompt.prompt_id, prompt)
            if (known.video, known.question) != (prompt.video, prompt.question):
                change = f"Change its id in {file}, or read other files"
                two = f"{known.video!r}, {known.question!r} and {prompt.video!r}, {prompt.question!r}"
                raise DataError(f"one video and question for prompt {prompt.prompt_id!r}", two, change)
    return list(found.values())


def conversations(run: Run, file: str, checks: Sequence[Check] = ()) -> list[Conversation]:
    return _load(run, file, read_conversations, checks)


def pairs(run: Run, file: str, checks: Sequence[Check] = ()) -> list[Pair]:
    return _load(run, file, read_pairs, checks)


def of_pairs(run: Run, file: str) -> list[Prompt]:
    """What the pairs of a file, of any known format, are about: a prompt each, named like the pair, to be captioned.

    Not those whose candidates are the videos, nor those about none: no captions are read there. What cannot be used is
    counted and named (fatal with `data.strict`). Raises DataError for a file that holds something else.
    """
    path, config = source_file(data_path(run.config, file)), run.config
    report = Report(str(path), unit=unit(path))
    if next(read_rows(path), None) is None:
        return []  # `rlaif pairs` may have held all of them out
    form, rows = opened(path, AUTO, report)
    if form.kind != "pairs":
        raise DataError(
            f"preference pairs in {path}",
            f"{form.kind} ({form.name})",
            "Set data.pairs and data.pairs_eval to files of pairs",
        )
    found, earlier = [], 0
    for r in good(read_media(config, form, rows, report), report):
        earlier += len(r.messages) > 1
        if r.video and not r.chosen_video:
            found.append(Prompt(r.pair_id, r.video, r.question))
    bad = check_videos(sorted({prompt.video for prompt in found}), run.topology.client().spec)
    kept = skip_bad_videos(found, bad, report)
    if report.skipped:
        report.check(config.data.strict)
        log.warning("%s", report.summary())
    warn_of_turns(report.path, earlier, report.kept)
    return kept


def read_media(config: Config, form: Format, rows: Iterable, report: Report) -> Iterator[Preference | Bad]:
    """The records of pairs; images inside the file, and links to listed frames, are put below `agreement.media`."""
    try:
        folder = data_path(config, config.agreement.media)
    except ConfigError:  # in a bucket, as the run is: enough for rows that need no folder
        folder = None
    media = Media(Path(config.data.root), folder)
    return exact(form.read(rows, Options(media), report.lines), media, report.lines, form.key, report.unit)


def data_path(config: Config, file: str) -> Path:
    """A dataset file: relative to `data.root`, or absolute. Raises ConfigError, naming the option, for one in a bucket."""
    text = file if "://" in file or os.path.isabs(file) else f"{config.data.root}/{file}"
    place = locate(text)
    if place.local:
        return place.local
    option = next((f"data.{name}" for name, value in config.data if value == file), "the option that names it")
    option = option if "://" in file else "data.root"
    change = f"Set {option} to a folder or file on a file system that every node sees; copy what is in the bucket there"
    raise ConfigError("a local path", f"the URI {text}", change)


def _load(
    run: Run, file: str, read: Callable[..., tuple[list[Row], Report]], checks: Sequence[Check] = ()
) -> list[Row]:
    """Return the good rows of a file; the others are counted and named (fatal with `data.strict`).

    The frame store probes the videos, so that no other role and no later stage has to do it again. `checks` see rows
    whose videos can be opened, with their captions.
    """
    root, strict = run.config.data.root, run.config.data.strict
    rows, report = read(data_path(run.config, file), root, strict)
    videos = sorted({video for row in rows for video in videos_of(row)})
    bad = check_videos(videos, run.topology.client().spec)
    rows = skip_bad_videos(rows, bad, report, strict)
    contents = contents_of(run)
    rows = [replace(row, video_sha256=contents(row.video)) if isinstance(row, Prompt) else row for row in rows]
    rows, remarks = skip_unusable(captioned(run, rows), checks, report, strict)
    run.places |= {name: f"{file} {report.unit} {line}" for name, line in report.lines.items()}
    if report.skipped:
        log.warning("%s", report.summary())
    for remark, ids in remarks.items():
        log.warning("%s: %d rows are used although %s: %s", report.path, len(ids), remark, named(run.placed(ids)))
    warn_of_turns(report.path, sum(isinstance(row, Pair) and row.earlier_turns for row in rows), len(rows))
    return rows


def decode_first(run: Run, rows: Iterable[Row]) -> dict[str, str]:
    """Decode the videos of rows, given in the order of their use, for at most `data.check_s` seconds.

    Returns the reasons of those that do not decode, by video, after naming them and their rows; they are left out when
    they are met. No more is decoded than the frame store holds, so that what is used first is there when it is needed.
    Raises DataError if none of them decodes, or if any does not with `data.strict`.
    """
    config, client = run.config, run.topology.client()
    users: dict[str, list[str]] = {}
    held, whole = 0, True
    for row in rows:
        for video in videos_of(row):
            if video not in users:
                spec = client.spec(video)
                held += 3 * len(spec.indices) * spec.height * spec.width
            users.setdefault(video, []).append(getattr(row, ID_FIELD[type(row)]))
        if held > config.video.store_bytes:
            whole = False
            break
    bad, tried = decode_videos(users, client.get, config.data.check_s, config.video.decode_threads)
    if not bad:
        return bad
    ids = list(dict.fromkeys(name for video in bad for name in users[video]))
    found = f"{len(bad)} of the {tried} videos decoded so far do not: {named(list(bad.values()), 3)}; rows: "
    found += named(run.placed(ids))
    if config.data.strict or (whole and len(bad) == len(users)):
        wanted = "videos that all decode, as data.strict asks for" if config.data.strict else "videos that decode"
        raise DataError(wanted, found, "replace the files, or remove their rows")
    log.warning("%s", found)
    return bad


def contents_of(run: Run) -> Callable[[str], str]:
    """sha256 of what a video's name stands for; empty for no video, and for one that cannot be used."""
    client = run.topology.client()

    @cache
    def contents(video: str) -> str:
        try:
            return client.spec(video).sha256 if video else ""
        except DataError:
            return ""

    return contents


def captioned(run: Run, rows: list[Row]) -> list[Row]:
    """With the context of `data.captions`, where that has any of a row's video, else with their own; rows without are counted."""
    config, contents = run.config, contents_of(run)
    if config.data.captions is None or not data_path(config, config.data.captions).is_file():
        return rows
    known = captions_by_video(data_path(config, config.data.captions))
    found = [
        replace(row, captions=stored(known, row, contents(row.video or "")) or row.captions)
        if _reads_captions(row)
        else row
        for row in rows
    ]
    if without := sum(_reads_captions(row) and not row.captions for row in found):
        log.warning("%d of %d rows have no captions in %s", without, len(rows), config.data.captions)
    return found


def warn_of_turns(path: str, count: int, pairs: int) -> None:
    """Of an imported conversation, reward models and judges read the last question only."""
    if count:
        log.warning("%s: %d of %d pairs have turns before the question, which are not read", path, count, pairs)


def _reads_captions(row: Row) -> bool:
    """Not where two videos are compared: one context beside both would tell which of them it is about."""
    return not isinstance(row, Conversation) and not (isinstance(row, Pair) and row.rejected_video)


Captions = dict[tuple[str, str], dict[str, tuple[str, ...]]]
"""By (video, question; empty where captions do not depend on it), then by the sha256 of the video's file; empty where a row
does not name it."""


def stored(known: Captions, row: Prompt | Pair, sha256: str) -> tuple[str, ...]:
    """The captions of a row, for the video's file as it is: what is known of another one says nothing of it."""
    for key in ((row.video, ""), (row.video, row.question)):
        by_file = known.get(key, {})
        if found := by_file.get(sha256) or by_file.get(""):
            return found
    return ()


def check_captions(config: Config, rows: Sequence[Pair], file: str) -> None:
    """For a reward model that reads captions. Raises DataError, naming the command that makes them, where no pair has any, or
    one is about a video that `data.captions` has not: neither captions nor why there are none."""
    read = [row for row in rows if _reads_captions(row)]
    without = [row for row in read if not row.captions]
    tried = set()
    if config.data.captions and (path := data_path(config, config.data.captions)).is_file():
        tried = {(row["video"], row.get("question", "")) for row in open_captions(path).rows()}
    missing = [row.video for row in without if not {(row.video, ""), (row.video, row.question)} & tried]
    if without and (len(without) == len(read) or (config.data.captions and missing)):
        videos = list(dict.fromkeys(missing or [row.video for row in without]))
        raise DataError(
            f"captions of the videos in {file}, which reward.context={config.reward.context} reads",
            f"none of {len(videos)} videos: {named(videos)}",
            "Run `rlaif caption CONFIG`, which captions them into data.captions, or set reward.context=none",
        )


def no_captions(config: Config, rows: str, reader: str) -> DataError:
    """Return the error for rows without any captions, where something reads them."""
    file = config.data.captions
    there = file and data_path(config, file).is_file()
    found = f"none in any of {rows}"
    found += f", nor about their videos in {file}" if there else f"; data.captions ({file}) is no file" if file else ""
    change = "set data.captions to the file that `rlaif caption` wrote, or run `rlaif caption CONFIG`"
    return DataError(f"captions: {reader}", found, change)


def open_captions(path: Path) -> Store[tuple[str, str]]:
    """What `rlaif caption` writes; a video whose captions failed counts as missing."""
    return Store(path, lambda row: (row["key"], row["video"]), lambda row: "masked" in row)


def captions_by_video(path: Path) -> Captions:
    """The contexts that `rlaif caption` wrote; of several rows about one file the last one that did not fail.

    Raises DataError where there are captions of more than one kind, so that which are read would be chance.
    """
    rows = open_captions(path).newest_last()
    kinds = sorted({(row["model"], row.get("captioner", ""), row["version"]) for row in rows})
    if len(kinds) > 1:
        found = "; ".join(f"{model} (weights {print_}) with prompt version {asked}" for model, print_, asked in kinds)
        raise DataError(
            f"captions by one model and prompt in {path}", found, "Set data.captions to another file for each"
        )
    found: Captions = {}
    for row in rows:
        if "masked" not in row:
            by_file = found.setdefault((row["video"], row.get("question", "")), {})
            by_file[row.get("sha256", "")] = tuple(row["context"])
    return found
