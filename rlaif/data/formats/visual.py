"""Read and write the media of rows of the LLaVA kind: `image`, `video`, `images` and `videos`, and their placeholders.

A video is one file or folder (`video`, or `videos` with one), or a list of frame paths (`images`). `image` is a single
picture, or a list of several. A record of ours is about one video: several pictures become its frames.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlaif.data.media import from_data_uri
from rlaif.data.misread import UNUSED, media_marks
from rlaif.data.rows import RowError, excerpt, without_none
from rlaif.data.texts import DATA, check_path

Fields = dict[str, Any]
PLACEHOLDERS = ("<image>", "<video>")
"""What human turns contain in place of media. They are taken out: the media come first in our prompts."""
VIDEO, IMAGES = ("video", "videos"), ("image", "images")
MEDIA = (*VIDEO, *IMAGES)
FRAME_ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
LONE = "placeholder without media"
"""Reason under which a row is counted whose text has more placeholders than the row has media."""
_SPACE = r"[\s\u200b\ufeff]*"
_PLACEHOLDER = re.compile("(?:{})".format("|".join(PLACEHOLDERS)))
_AT_START = re.compile(rf"\A(?:{_SPACE}{_PLACEHOLDER.pattern})+{_SPACE}")
_AT_END = re.compile(rf"{_SPACE}(?:{_PLACEHOLDER.pattern}{_SPACE})+\Z")


def read_media(fields: Fields) -> Fields:
    """Return `video` (the folder that holds all frames, if there is one), `frames` and `modality`."""
    present = [name for name in MEDIA if not _is_nothing(fields.get(name))]
    if len(present) > 1:
        raise RowError("several media", f"{', '.join(present)}: a row is about one video or image")
    if not present:
        return {"modality": "text"}
    (name,) = present
    return _video(name, fields[name]) if name in VIDEO else _images(name, fields[name])


def _is_nothing(value: Any) -> bool:
    """Return whether a field is empty; a table whose column has gaps may hold NaN in them."""
    return value in (None, "", []) or (isinstance(value, float) and math.isnan(value))


def _video(name: str, value: Any) -> Fields:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list):
        paths = _paths(name, value)
        if not all(path.lower().endswith(FRAME_ENDINGS) for path in paths):
            raise RowError("several media", f"{name}: {len(paths)} videos; a row is about one")
        return {"video": folder_of(paths), "frames": paths, "modality": "video"}
    return {"video": _paths(name, [value])[0], "modality": "video"}


def _images(name: str, value: Any) -> Fields:
    if name == "image" and isinstance(value, str):
        return {"video": _paths(name, [value])[0], "modality": "image"}
    paths = _paths(name, value)
    if name == "image" and len(paths) == 1:
        return {"video": paths[0], "modality": "image"}
    return {"video": folder_of(paths), "frames": paths, "modality": "image" if name == "image" else "video"}


def _paths(name: str, value: Any) -> list[str]:
    """Return a list of paths, checked. Raise RowError for anything else."""
    paths: list[str] = value if isinstance(value, list) else [""]
    if not all(isinstance(path, str) and path for path in paths):
        raise RowError("wrong type", f"{name}: not a path, or not a list of paths")
    for path in paths:
        check_path(path, name)
    return paths


def folder_of(paths: Sequence[str]) -> str | None:
    """Return the folder that holds all the files, or None."""
    folders = {posixpath.dirname(path) or "." for path in paths}
    return folders.pop() if len(folders) == 1 else None


def above(paths: Sequence[str]) -> str | None:
    """Return the closest folder above all the files, or None."""
    folders = [posixpath.dirname(path) for path in paths]
    absolute = set(map(posixpath.isabs, folders))
    if len(absolute) != 1:  # no path, or one with a root beside one without
        return None
    return posixpath.commonpath(folders) or "."


def write_media(video: str | None, frames: Sequence[str], modality: str, from_video: bool) -> Fields:
    """Return the fields that `read_media` reads back.

    Raise RowError for a video without a list of its frames, unless the row came with a video file (`from_video`): the
    tools that these formats belong to read frames.
    """
    if modality == "text" or not (video or frames):
        return {}
    if modality == "image":
        return {"image": list(frames) if frames else video}
    if frames:
        return {"images": list(frames)}
    if from_video:
        return {"video": video}
    raise RowError("no frame list", f"video {video!r}: these rows list every frame's path in `images`")


def came_with_video(fields: Mapping[str, Any], name: str) -> Fields:
    """Return the `native` of a record whose row of the format `name` has a video file, so that `write_media` allows it."""
    # an empty change restores nothing
    return {name: {"video": {}}} if any(map(fields.get, VIDEO)) else {}


def check_placeholders(texts: Sequence[str], media: Fields) -> None:
    """Raise RowError if a text has more placeholders than the row has media to put there."""
    frames, modality = media.get("frames", ()), media["modality"]
    for text in texts:
        marks = media_marks(text)
        videos, images = marks.count("<video>"), marks.count("<image>")
        if modality == "text" and (videos or images):
            raise RowError(LONE, f"{'<video>' if videos else '<image>'} in a text, and none of {', '.join(MEDIA)}")
        if modality == "image" and videos:
            raise RowError(LONE, "<video> in a text, and only `image`")
        # a text may have one mark for the whole video, or one for each of its frames
        most = max(1, len(frames))
        # frames of one video file may each have an <image>
        if videos > 1 or (images > most and (frames or modality == "image")):
            raise RowError(LONE, f"{videos + images} placeholders in one text for {most} media")
        if videos and images:
            raise RowError(LONE, "<video> and <image> in one text for one video")


def without_placeholders(text: str) -> str:
    """Return the text of a human turn without its placeholders and the white space between them and the text."""
    if not _PLACEHOLDER.search(text):
        return text
    # at both ends with the white space beside them, inside the text without it: there it separates words
    text = _AT_START.sub("", text, count=1)
    text = _AT_END.sub("", text)
    return _PLACEHOLDER.sub("", text)


def stored(fields: Fields, options: Any) -> Fields:
    """Return a row whose images inside the file (bytes, data URIs) are stored and replaced by their paths."""
    changes = {}
    for name in MEDIA:
        if _is_inside(fields.get(name)):
            changes[name] = _stored(fields[name], name, options.media)
    return fields | changes if changes else fields


def _is_inside(value: Any) -> bool:
    """Return whether a value is an image, or a list with one, and not a path."""
    if isinstance(value, list):
        return any(map(_is_inside, value))
    return isinstance(value, bytes | dict) or (isinstance(value, str) and value.startswith(DATA))


def _stored(value: Any, name: str, media: Any) -> Any:
    if isinstance(value, list):
        return [_stored_item(item, name, media) for item in value]
    if isinstance(value, dict):
        value = _content(value, name)
    if isinstance(value, str) and value.startswith(DATA):
        value = from_data_uri(value, name)
    return media.put(value) if isinstance(value, bytes) else value


def _stored_item(item: Any, name: str, media: Any) -> Any:
    """Return an image of a list as the path of a file: a list of frames names files, not folders of one frame."""
    if not _is_inside(item):
        return item
    path = _stored(item, name, media)
    return media.image(path) if isinstance(path, str) else path


def _content(value: Fields, name: str) -> bytes | str | None:
    """Return the bytes or else the path of `{"bytes": ..., "path": ...}`; None if all its members are null.

    Raise RowError for an object that holds neither, or says more: a part of the video, for instance.
    """
    members = without_none(value)
    if not members:
        return None
    others = sorted(members.keys() - {"bytes", "path"})
    if others:
        raise RowError(UNUSED, f"{name}.{excerpt(others[0])}: only `bytes` and `path` of an object are read")
    data, path = members.get("bytes"), members.get("path")
    if data is not None and not isinstance(data, bytes):
        hint = "a data URI (data:image/...;base64,...) holds an image as text"
        raise RowError("wrong type", f"{name}.bytes: a {type(data).__name__} instead of bytes; {hint}")
    if path is not None and not isinstance(path, str):
        raise RowError("wrong type", f"{name}.path: a {type(path).__name__} instead of a text")
    if not (data or path):
        raise RowError("wrong type", f"{name}: an object without bytes or path")
    return data or path


def named_files(fields: Fields, options: Any) -> Fields:
    """Return a row whose `image` names an image file, not a folder that holds one."""
    image = fields.get("image")
    return fields | {"image": options.media.image(image)} if isinstance(image, str) else fields
