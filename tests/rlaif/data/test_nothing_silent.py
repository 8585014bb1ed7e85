"""Every row is imported with all its media and turns, or bad with a reason, however it was changed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kept_share import RECORDED, ROWS, mutations, read_one, share
from mutations import ADDED, CHANGES, bare, media_in, mutated, places, strings, texts_in, without
from preference_rows import EXAMPLES, STRATEGIES

from rlaif.data.formats.table import FORMATS, detect
from rlaif.data.rows import RowFailure
from rlaif.errors import DataError

ALL = [name for name in FORMATS if name in ROWS]
SILENT = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def said(name: str, row: dict) -> tuple[set[str], set[str]]:
    """Return the media and texts of a row, without those that the format's own tools do not read either."""
    media, texts = media_in(row), texts_in(row)
    turns = row.get("conversations")
    if name == "vlm_rlaif_rl" and isinstance(turns, list):
        texts = texts_in(row | {"conversations": turns[:2]})  # its trainer takes the first two turns
    if name == "vlm_rlaif_rm" and isinstance(turns, list):
        texts = texts_in(row | {"conversations": turns[:-1]})  # its last answer is replaced by the outputs
    if name in ("rlhf_v", "rlaif_v"):
        media -= {*strings(row.get("image"))}  # beside the bytes
        inner = json.loads(row["text"]) if name == "rlhf_v" and isinstance(row.get("text"), str) else {}
        texts = texts_in({key: value for key, value in row.items() if key != "text"} | inner)
    return media, texts


def held(record) -> tuple[set[str], set[str]]:
    """Return the media and texts of a record."""
    extra = getattr(record, "extra", {})
    names = [
        getattr(record, name, None) for name in ("video", "chosen_video", "rejected_video", "video_path", "frames")
    ]
    texts = [getattr(record, name, None) for name in ("question", "chosen", "rejected", "answer", "prompt_text")]
    texts += [content for _, content in getattr(record, "messages", ())]
    return set(strings([*names, extra.get("frames")])), {bare(text) for text in strings(texts)}


def check(name: str, row: dict, folder: Path, told: str) -> None:
    record = read_one(name, row, folder)
    if isinstance(record, RowFailure):
        assert record.reason and record.row.detail and len(str(record.row)) < 900, told
        return
    (media, texts), (own_media, own_texts) = said(name, row), held(record)
    assert media <= own_media, f"{told}: {media - own_media} is lost"
    assert texts <= own_texts, f"{told}: {texts - own_texts} is lost"


def check_detected(row: dict, folder: Path, told: str) -> None:
    """Return the record of a file with this row alone, in the format that is detected then."""
    try:
        name = detect([row]).name
    except DataError:
        return
    check(name, row, folder, f"{told} as {name}")


@pytest.mark.parametrize("name", EXAMPLES)
def test_unchanged_rows_are_all_kept(name, tmp_path):
    for row in [*EXAMPLES[name], *ROWS[name]]:
        assert not isinstance(read_one(name, row, tmp_path), RowFailure)
        check(name, row, tmp_path, name)


@pytest.mark.parametrize("name", ALL)
def test_a_row_with_one_change_loses_nothing_silently(name, tmp_path):
    for change, row in mutations(name):
        check(name, row, tmp_path, f"{name} {change}")
        check_detected(row, tmp_path, f"{name} {change}")


@pytest.mark.parametrize("name", STRATEGIES)
@SILENT
@given(data=st.data())
def test_a_row_with_several_changes_loses_nothing_silently(name, data):
    row, told = data.draw(STRATEGIES[name]), name
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(row)) or [()]))
        kind = data.draw(st.sampled_from(["drop", "add", *CHANGES]))
        if kind == "add":
            key = data.draw(st.sampled_from([key for key in ADDED if key not in row] or ["score"]))
            row = row | {key: ADDED.get(key)}
        elif path:
            row = without(row, path) if kind == "drop" else mutated(row, path, CHANGES[kind])
        told += f", {kind} {path}"
    with tempfile.TemporaryDirectory() as folder:
        check(name, row, Path(folder), told)
        check_detected(row, Path(folder), told)


@pytest.mark.parametrize("name", ALL)
def test_the_share_of_kept_mutations_does_not_fall(name, tmp_path):
    recorded, found = json.loads(RECORDED.read_text())[name], share(name, tmp_path)
    assert found["mutations"] == recorded["mutations"], "record the shares anew: python tests/support/kept_share.py"
    assert found["kept"] >= recorded["kept"]
