"""Make single-field mutations of rows, as in other tools and damaged files, and list a row's media and texts unread."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rlaif.data.misread import media_marks

Path = tuple[str | int, ...]
ADDED: dict[str, Any] = {
    "video": "other.mp4",
    "videos": ["other.mp4"],
    "image": "other.jpg",
    "images": ["other.jpg", "more.jpg"],
    "audios": ["other.wav"],
    "video_path": "other.mp4",
    "rejected": "Another answer.",
    "rejected_response": "Another answer.",
    "rejected_messages": [{"role": "assistant", "content": "Another answer."}],
    "chosen": "Another answer.",
    "label": False,
    "kto_tag": False,
    "history": [["Another question?", "Another answer."]],
    "system": "Another turn.",
    "messages": [{"role": "user", "content": "Another question?"}, {"role": "assistant", "content": "Another answer."}],
    "video_id": 7,
    "source": "web",
    "score": 0.5,
}
"""Fields that other tools write; a field that a row has already is not added."""
SPELLED = {"image": "images", "images": "videos", "video": "videos", "question": "prompt", "conversations": "messages"}
CHANGES: dict[str, Callable[[Any], Any]] = {
    "null": lambda value: None,
    "empty": lambda value: type(value)() if isinstance(value, str | list | dict) else "",
    "number": lambda value: 7,
    "float": lambda value: float(value) if isinstance(value, int) and not isinstance(value, bool) else 7.5,
    "text": lambda value: str(value) if not isinstance(value, str) else f"{value} more",
    "listed": lambda value: [value],
    "twice": lambda value: [value, value],
    "placeholder": lambda value: f"<image>{value}" if isinstance(value, str) else value,
    "video placeholder": lambda value: f"{value}<video>" if isinstance(value, str) else value,
    "token": lambda value: f"{value}<|video_pad|>" if isinstance(value, str) else value,
    "nul": lambda value: f"{value}\0" if isinstance(value, str) else value,
    "long": lambda value: "x" * 5000 if isinstance(value, str) else value,
    "huge": lambda value: 10**40 if isinstance(value, int) else value,
    "true": lambda value: True,
}


def places(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the way to every value inside a row."""
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutated(row: dict, path: Path, change: Callable[[Any], Any]) -> dict:
    """Return a copy of the row with one value changed."""
    row = copy.deepcopy(row)
    parent = _parent(row, path)
    parent[path[-1]] = change(parent[path[-1]])
    return row


def without(row: dict, path: Path) -> dict:
    """Return a copy of the row without one field or element."""
    row = copy.deepcopy(row)
    del _parent(row, path)[path[-1]]
    return row


def _parent(row: dict, path: Path) -> Any:
    """Return the container of a value."""
    parent: Any = row
    for key in path[:-1]:
        parent = parent[key]
    return parent


def single_mutations(row: dict) -> Iterator[tuple[str, dict]]:
    """Yield every mutation of one field with a name for it, in a fixed order."""
    for path in places(row):
        name = ".".join(map(str, path))
        yield f"{name} dropped", without(row, path)
        for change, make in CHANGES.items():
            other = mutated(row, path, make)
            if repr(other) != repr(row):
                yield f"{name} {change}", other
    for old, new in SPELLED.items():
        if old in row and new not in row:
            yield f"{old} as {new}", _renamed(row, old, new)
    for key, value in ADDED.items():
        if key not in row:
            yield f"{key} added", row | {key: value}


def _renamed(row: dict, old: str, new: str) -> dict:
    """Return a copy of the row with one field under another name, in its place."""
    names = {key: key for key in row} | {old: new}
    return {names[key]: value for key, value in row.items()}


# -- a row's media and texts, read without the product except for its list of marks

MEDIA = ("video", "videos", "image", "images", "audios", "frames", "video_path", "chosen_video", "rejected_video")
TURNS = ("messages", "conversations", "rejected_conversations", "rejected_messages", "history")
TEXTS = (
    *("question", "chosen", "rejected", "answer", "prompt_text", "output_1", "output_2", "value", "content", "text"),
    *("rejected_response", "system", "prompt"),
)


def media_in(row: dict) -> set[str]:
    """Return every path of a medium that a row names, at its top or in SafeSora's two videos."""
    parts = [row]
    parts += [row[key] for key in ("video_0", "video_1") if isinstance(row.get(key), dict)]
    paths = set()
    for part in parts:
        for key in MEDIA:
            paths.update(strings(part.get(key)))
    return paths - {""}


def texts_in(row: dict) -> set[str]:
    """Return every question, answer and turn of a row without media marks and outer white space."""
    values = [_content(row.get(key)) for key in TEXTS]
    for key in TURNS:
        turns = row.get(key)
        if isinstance(turns, list):
            values += [_content(turn) for turn in turns]
    texts = set()
    for value in values:
        texts.update(bare(text) for text in strings(value))
    return texts - {""}


def _content(turn: Any) -> Any:
    """Return the texts of a turn; anything else as it is."""
    if not isinstance(turn, dict):
        return turn
    return [value for key, value in turn.items() if key in ("value", "content", "text")]


def strings(value: Any) -> Iterator[str]:
    """Yield every text inside a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from strings(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)


def bare(text: str) -> str:
    """Return a text without media marks and outer white space."""
    for mark in media_marks(text):
        text = text.replace(mark, "")
    return text.strip()
