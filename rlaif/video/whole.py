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
"""The trailer of a GIF (GIF89a, section 27)."""
TAIL = 1024
"""Bytes at the end of a GIF that are searched for the trailer; zeros may follow it."""
# Sizes of box headers (ISO/IEC 14496-12, 4.2): a 32-bit size and a type, then a 64-bit size if the first size is 1.
SHORT_HEADER = 8
LONG_HEADER = 16


def require_whole(path: Path, form: str) -> None:
    """Raise RuntimeError for a movie (MP4, MOV, AVIF) or a GIF that ends too early. form: FFmpeg's name of the format."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if any(name in MOVIE for name in form.split(",")):
            _require_whole_boxes(file, size)
        elif form == "gif":
            _require_gif_end(file, size)


def _require_gif_end(file: BinaryIO, size: int) -> None:
    file.seek(max(0, size - TAIL))
    tail = file.read().rstrip(b"\0\r\n ")
    if not tail.endswith(GIF_END):
        raise RuntimeError("cut off: a GIF without its end")


def _require_whole_boxes(file: BinaryIO, size: int) -> None:
    """Raise RuntimeError if a box of the top level states more bytes than the file holds."""
    place = 0
    while place + SHORT_HEADER <= size:
        file.seek(place)
        header = file.read(LONG_HEADER)
        (length,) = struct.unpack(">I", header[:4])
        if length == 1 and len(header) == LONG_HEADER:
            (length,) = struct.unpack(">Q", header[8:])
        kind = header[4:8]
        excess = place + length - size
        # A size of 0 means that the last box reaches to the end of the file.
        if length == 0:
            return
        # Bytes that are no known box and state an impossible size are a note behind the last box.
        if kind not in BOXES and (length < SHORT_HEADER or excess > 0):
            return
        if excess > 0:
            name = kind.decode("latin-1")
            raise RuntimeError(f"cut off: its box {name!r} states {excess:,} bytes more than there are")
        # A size below that of the header must not stop the walk.
        place += max(length, SHORT_HEADER)
