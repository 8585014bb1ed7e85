"""Recognise files that were cut although every packet that is left of them decodes."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

MOVIE = ("mov", "mp4")
BOXES = (b"ftyp", b"moov", b"mdat", b"moof", b"sidx", b"mfra")
"""Boxes of a movie file whose stated size is believed. Anything else at the end of a file may be a program's own note."""
GIF_END = b"\x3b"
TAIL = 1024
"""Bytes at the end of a GIF that are looked at; zeros may follow its end."""


def require_whole(path: Path, form: str) -> None:
    """Raise RuntimeError for a movie (MP4, MOV, AVIF) or a GIF that ends too early. form: FFmpeg's name of the format."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if any(name in MOVIE for name in form.split(",")):
            _require_whole_boxes(file, size)
        elif form == "gif":
            file.seek(max(0, size - TAIL))
            if not file.read().rstrip(b"\0\r\n ").endswith(GIF_END):
                raise RuntimeError("cut off: a GIF without its end")


def _require_whole_boxes(file: BinaryIO, size: int) -> None:
    """Walk over the boxes of the top level: 32-bit size, type, and a 64-bit size if the first is 1 (ISO/IEC 14496-12)."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        (length,) = struct.unpack(">I", head[:4])
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack(">Q", head[8:])
        if length == 0 or head[4:8] not in BOXES and (length < 8 or place + length > size):
            return  # the last box reaches to the end, or these bytes are none
        if place + length > size:
            name = head[4:8].decode("latin-1")
            raise RuntimeError(f"cut off: its box {name!r} states {place + length - size:,} bytes more than there are")
        place += max(length, 8)
