"""A run's files hold our own rows: whatever would be misread as one of them is a bad row that names the field or text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.data.read import read_conversations, read_pairs, read_prompts

PROMPT = {"prompt_id": "p", "video": "v.mp4", "question": "what moves ?"}
TURNS = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "what moves ?"},
    {"role": "assistant", "content": "a cat"},
]
TALK = {"id": "c", "video": "v.mp4", "messages": TURNS}
PAIR = {"pair_id": "r", "video": "v.mp4", "question": "what moves ?", "chosen": "a cat", "rejected": "a dog"}
READERS = {"prompt": (read_prompts, PROMPT), "talk": (read_conversations, TALK), "pair": (read_pairs, PAIR)}
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
    """What becomes of a row beside a good one: why it is refused, or None."""
    read, good = READERS[kind]
    (folder / "v.mp4").touch()
    key = next(iter(good))
    rows = [good | {key: "good"}, good | fields]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept, report = read(folder / "rows.jsonl", folder)
    if len(kept) == 2:
        return None
    ((reason, (row,)),) = report.skipped.items()
    assert row.line == 2 and row.id == good[key], "named by id and line"
    return f"{reason}: {row.detail}"


def said(place: int, text: str) -> dict:
    """A conversation that says `text` in one of its turns."""
    return {"messages": [turn | {"content": text} if at == place else turn for at, turn in enumerate(TURNS)]}


TEXTS = [
    ("prompt", "question", lambda text: {"question": text}),
    ("prompt", "captions", lambda text: {"captions": ["a cat", text]}),
    ("talk", "a turn of the system", lambda text: said(0, text)),
    ("talk", "a turn of the user", lambda text: said(1, text)),
    ("talk", "a turn of the assistant", lambda text: said(2, text)),
    ("talk", "captions", lambda text: {"captions": [text]}),
    ("pair", "question", lambda text: {"question": text}),
    ("pair", "chosen", lambda text: {"chosen": text}),
    ("pair", "rejected", lambda text: {"rejected": text}),
    ("pair", "captions", lambda text: {"captions": [text]}),
]


@pytest.mark.parametrize(("kind", "place", "fields"), TEXTS)
def test_a_media_mark_in_any_text_of_any_row_makes_it_bad(tmp_path, kind, place, fields):
    for mark in MARKS:
        assert f"media mark in text: {place} holds {mark}" in bad_row(tmp_path, kind, fields(f"see {mark} here"))
    assert bad_row(tmp_path, kind, fields("a < b > c , a video of an <object>")) is None


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("talk", {"video": None, "videos": ["v.mp4"]}),
        ("talk", {"rejected_response": "a dog"}),
        ("talk", {"label": False}),
        ("talk", {"images": ["v.mp4"]}),
        ("prompt", {"images": ["v.mp4"]}),
        ("prompt", {"history": [["hello", "hi"]]}),
        ("pair", {"rejected_images": ["v.mp4"]}),
        ("pair", {"image": "v.mp4"}),
    ],
)
def test_a_field_of_another_tool_that_changes_what_a_row_says_is_named(tmp_path, kind, fields):
    found = bad_row(tmp_path, kind, fields)
    assert found.startswith("field not used: ") and list(fields)[-1] in found


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("prompt", {"label": 1, "objects": ["cat"], "kind": "qa", "truth": {"video": 3}}),
        ("prompt", {"videos": [], "image": None}),
        ("talk", {"source": "ours", "scene": {"seed": 3}}),
        ("pair", {"messages": TURNS[1:2], "native": {"rlaif": {"videos": ["v.mp4"]}}, "judge": {"model": "m"}}),
    ],
)
def test_fields_that_change_nothing_are_kept(tmp_path, kind, fields):
    assert bad_row(tmp_path, kind, fields) is None


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("talk", said(1, 3)),
        ("talk", said(2, [{"type": "text", "text": "a cat"}])),
        ("prompt", {"question": ["what ?"]}),
        ("prompt", {"captions": "one text"}),
        ("pair", {"chosen": {"text": "a cat"}}),
    ],
)
def test_contents_that_are_no_text_are_bad(tmp_path, kind, fields):
    assert bad_row(tmp_path, kind, fields).startswith("wrong type: ")
