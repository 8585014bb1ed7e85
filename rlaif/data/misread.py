"""Recognise rows that a reader would silently misread although they fit: media marks, and fields of other tools.

Both rules hold for every kind of row, ours and the published ones. A reader that passes over `videos` or
`rejected_response` keeps the row and loses what it is about; a placeholder left in a text breaks the prompt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any

UNUSED = "field not used"
"""Reason under which a row with a field that its reader does not use is counted."""
MARKED = "media mark in text"
"""Reason under which a row with a media mark in a text is counted."""
SHOWN = 60
"""Characters of a field's name that a message repeats."""
MOST_NAMES = 8
"""Fields that a message names."""

_SUFFIX = (
    r"(?:[_-]?(?:pad|start|end|bos|eos|soft_token|token|patch|placeholder|context|content|feature|here|newline|break|frame|url)"
    r"|[ _:-]?\d++)*"
)
_MARK = re.compile(
    r"<\|?/?(?:(?:start|end|begin)_of_|fake_token_around_|global[_-])?"
    # <img> is a token of InternVL, <IMG> is an old way to write HTML
    rf"(?:(?:images?|videos?|vid|audio|speech|sound|vision|media|frames?|(?-i:img)){_SUFFIX}|img_context"
    r"|vid?_(?:frame_)?(?:start|end|patch)|im_patch)(?:\s+src=[^<>]*)?\s*/?\|?>"
    r"|<__media__>"  # llama.cpp's
    r"|</?im_(?:start|end)>"  # LLaVA's; <|im_start|> is a mark of turns
    r"|\[IMG(?:_BREAK|_END)?\]",
    re.IGNORECASE,
)

_MEDIA = frozenset(
    [
        "video",
        "videos",
        "image",
        "images",
        "audio",
        "audios",
        "frame",
        "frames",
        "picture",
        "pictures",
        "photo",
        "photos",
        "clip",
        "clips",
        "media",
        "img",
        "imgs",
    ]
)
_WHERE = frozenset(
    [
        "path",
        "paths",
        "url",
        "urls",
        "uri",
        "uris",
        "file",
        "files",
        "filename",
        "filenames",
        "list",
        "data",
        "bytes",
        "base64",
        "b64",
        "input",
        "inputs",
        "chosen",
        "rejected",
        "w",
        "l",
        "a",
        "b",
    ]
)
_SIDES = frozenset(["rejected", "reject", "chosen", "dispreferred", "preferred", "loser", "winner", "worse", "better"])
_ANSWERS = frozenset(
    [
        "response",
        "responses",
        "message",
        "messages",
        "answer",
        "answers",
        "text",
        "output",
        "outputs",
        "conversation",
        "conversations",
        "completion",
        "completions",
        "reply",
        "content",
        "turns",
        "list",
    ]
)
_OTHERS = frozenset(
    [
        "label",
        "kto_tag",
        "kto_label",
        "preference",
        "preferences",
        "ranking",
        "responses",
        "completions",
        "outputs",
        "history",
        "system",
        "system_prompt",
        "system_message",
        "tools",
        "messages",
        "conversations",
        "conversation",
        "dialog",
        "objects",
        "multi_modal_data",
        "multimodal_data",
        "mm_data",
        "mm_inputs",
        "candidates",
        "video_start",
        "video_end",
    ]
)
"""Labels of answers, several answers, turns, grounding and the part of a video that is meant, under names of their own."""
_NUMBERED = re.compile(r"(?:output|response|answer|completion)(?:_?\d+|_[a-z])")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_FILE = re.compile(r"\.(?:mp4|mov|mkv|webm|avi|m4v|mpe?g|gif|jpe?g|png|webp|bmp|tiff?|wav|mp3|flac)$", re.IGNORECASE)
_TURNS = ("messages", "conversations", "rejected_conversations")
_IN_TURN = frozenset(["role", "from", "content", "value"])
_PARTS = frozenset(
    [
        "tool_calls",
        "tool_call_id",
        "function_call",
        "reasoning",
        "reasoning_content",
        "thinking",
        "thinking_blocks",
        "refusal",
    ]
)
"""What a turn says beside its text, as APIs of chat models return it."""
_SWITCHES = ("weight", "loss", "train", "loss_scale", "loss_weight")


def media_marks(text: str) -> list[str]:
    """Return the media marks in a text in order: placeholders and media tokens, whatever model family writes them."""
    return _MARK.findall(text)


def misread(row: Mapping[str, Any], used: Collection[str]) -> str | None:
    """Return why reading only the fields `used` of a row would misread it, or None.

    Names the fields that hold media, answers, labels or turns and are not among `used`, also inside the row's turns.
    Null, empty and (for media and answers) merely numeric values are no reason. If no media field is used, any other
    field that holds the name of a media file counts.
    """
    # a row with a medium of its own may name other files as metadata (a thumbnail, a source)
    about_media = any(name in used and _is_media(name) and value for name, value in row.items())
    names = [name for name, value in row.items() if name not in used and _matters(name, value, about_media)]
    for field in _TURNS:
        turns = row.get(field)
        if field not in used or not isinstance(turns, list):
            continue
        for turn in turns:
            if isinstance(turn, Mapping):
                names += [f"{field}.{name}" for name in _in_turn(turn)]
    if not names:
        return None
    briefly = [name[:SHOWN] for name in dict.fromkeys(names[:MOST_NAMES])]
    return f"{', '.join(briefly)}: not used by this format, so what it says would be lost"


def _matters(name: str, value: Any, about_media: bool) -> bool:
    """Return whether an unused field changes what its row or turn says."""
    if value is None or value in ("", [], {}) or (isinstance(value, float) and math.isnan(value)):
        return False
    # `rejectedResponse` is `rejected_response` in other words
    name = _CAMEL.sub("_", name).lower()
    if name in _OTHERS:
        return True
    if _is_media(name) or _is_answer(name) or _NUMBERED.fullmatch(name):
        return holds_text(value)
    return not about_media and _names_file(value)


def _is_media(name: str) -> bool:
    words = _words(name)
    return bool(_MEDIA & words) and words <= _MEDIA | _WHERE


def _is_answer(name: str) -> bool:
    words = _words(name)
    return bool(_SIDES & words) and words <= _SIDES | _ANSWERS


def _words(name: str) -> set[str]:
    """Return the words of a field's name, as in `video_path`, `videoPath`, `rejected_2` and `image2`, without numbers."""
    parts = re.split(r"[^A-Za-z0-9]+", _CAMEL.sub("_", name))
    words = {part.lower().rstrip("0123456789") for part in parts}
    return words - {""}


def holds_text(value: Any) -> bool:
    """Return whether there is a text or bytes in a value, so that it may name or be a medium or an answer."""
    if isinstance(value, str | bytes):
        return bool(value)
    if isinstance(value, Mapping):
        return any(map(holds_text, value.values()))
    return isinstance(value, list | tuple) and any(map(holds_text, value))


def _names_file(value: Any) -> bool:
    """Return whether a value is the name of a media file, or holds one."""
    if isinstance(value, str):
        return len(value) < 4096 and bool(_FILE.search(value))
    if isinstance(value, Mapping):
        return any(map(_names_file, value.values()))
    return isinstance(value, list | tuple) and any(map(_names_file, value))


def _in_turn(turn: Mapping[str, Any]) -> list[str]:
    """Return the fields of a turn that change what it says: media, other answers, and weights that keep it from training."""
    names = [name for name, value in turn.items() if name not in _IN_TURN and _matters(name, value, about_media=True)]
    names += [name for name in turn if name in _PARTS and holds_text(turn[name])]
    # for other tools a turn with weight 0 or loss false is context that is not learned
    names += [name for name in _SWITCHES if name in turn and turn[name] in (0, False)]
    return names
