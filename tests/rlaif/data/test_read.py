"""A run's files hold our own rows: whatever would be misread as one of them is a bad row that names the field or text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.data.read import read_records

PROMPT = {"prompt_id": "p", "video": "v.mp4", "question": "what moves ?"}
TURNS = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "what moves ?"},
    {"role": "assistant", "content": "a cat"},
]
TALK = {"id": "c", "video": "v.mp4", "messages": TURNS}
PAIR = {"pair_id": "r", "video": "v.mp4", "question": "what moves ?", "chosen": "a cat", "rejected": "a dog"}
GOOD = {"prompts": PROMPT, "conversations": TALK, "pairs": PAIR}
MARKS = [
    "<image>",
    "<video>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<IMG_CONTEXT>",
    "<img>",
    "</img>",
]


def bad_row(folder: Path, kind: str, fields: dict) -> str | None:
    """Return why a row is rejected that is read beside a good one, or None."""
    good = GOOD[kind]
    (folder / "v.mp4").touch()
    key = next(iter(good))
    rows = [good | {key: "good"}, good | fields]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept, report = read_records(folder / "rows.jsonl", folder, kind)
    if len(kept) == 2:
        return None
    ((reason, (row,)),) = report.skipped.items()
    assert row.line == 2 and row.id == good[key], "named by id and line"
    return f"{reason}: {row.detail}"


def said(place: int, text: str) -> dict:
    """Return a conversation that says `text` in one of its turns."""
    return {"messages": [turn | {"content": text} if at == place else turn for at, turn in enumerate(TURNS)]}


TEXTS = [
    ("prompts", "question", lambda text: {"question": text}),
    ("prompts", "captions", lambda text: {"captions": ["a cat", text]}),
    ("conversations", "a turn of the system", lambda text: said(0, text)),
    ("conversations", "a turn of the user", lambda text: said(1, text)),
    ("conversations", "a turn of the assistant", lambda text: said(2, text)),
    ("conversations", "captions", lambda text: {"captions": [text]}),
    ("pairs", "question", lambda text: {"question": text}),
    ("pairs", "chosen", lambda text: {"chosen": text}),
    ("pairs", "rejected", lambda text: {"rejected": text}),
    ("pairs", "captions", lambda text: {"captions": [text]}),
]


@pytest.mark.parametrize(("kind", "place", "fields"), TEXTS)
def test_a_media_mark_in_any_text_of_any_row_makes_it_bad(tmp_path, kind, place, fields):
    for mark in MARKS:
        assert f"media mark in text: {place} holds {mark}" in bad_row(tmp_path, kind, fields(f"see {mark} here"))
    assert bad_row(tmp_path, kind, fields("a < b > c , a video of an <object>")) is None


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("conversations", {"video": None, "videos": ["v.mp4"]}),
        ("conversations", {"rejected_response": "a dog"}),
        ("conversations", {"label": False}),
        ("conversations", {"images": ["v.mp4"]}),
        ("prompts", {"images": ["v.mp4"]}),
        ("prompts", {"history": [["hello", "hi"]]}),
        ("pairs", {"rejected_images": ["v.mp4"]}),
        ("pairs", {"image": "v.mp4"}),
    ],
)
def test_a_field_of_another_tool_that_changes_what_a_row_says_is_named(tmp_path, kind, fields):
    found = bad_row(tmp_path, kind, fields)
    assert found.startswith("field not used: ") and list(fields)[-1] in found


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("prompts", {"label": 1, "objects": ["cat"], "kind": "qa", "truth": {"video": 3}}),
        ("prompts", {"videos": [], "image": None}),
        ("conversations", {"source": "ours", "scene": {"seed": 3}}),
        ("pairs", {"messages": TURNS[1:2], "native": {"rlaif": {"videos": ["v.mp4"]}}, "judge": {"model": "m"}}),
    ],
)
def test_fields_that_change_nothing_are_kept(tmp_path, kind, fields):
    assert bad_row(tmp_path, kind, fields) is None


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("conversations", said(1, 3)),
        ("conversations", said(2, [{"type": "text", "text": "a cat"}])),
        ("prompts", {"question": ["what ?"]}),
        ("prompts", {"captions": "one text"}),
        ("pairs", {"chosen": {"text": "a cat"}}),
    ],
)
def test_contents_that_are_no_text_are_bad(tmp_path, kind, fields):
    assert bad_row(tmp_path, kind, fields).startswith("wrong type: ")
