"""Which files of a folder are a video's frames, and in which order they play."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rlaif.errors import DataError, named

IMAGES = {
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff",
    ".ppm", ".pgm", ".pnm", ".tga", ".jp2", ".avif",
}  # fmt: skip
"""Endings of images that are read."""
UNREAD = {
    ".apng", ".arw", ".bw", ".cin", ".cr2", ".cr3", ".cur", ".dcx", ".dds", ".dng", ".dpx", ".eps", ".exr", ".fit", ".fits",
    ".g3", ".hdr", ".heic", ".heics", ".heif", ".hif", ".icb", ".icns", ".ico", ".ief", ".iff", ".im", ".j2c", ".j2k", ".jif",
    ".jpc", ".jpf", ".jpx", ".jxl", ".jxr", ".mng", ".mpo", ".nef", ".orf", ".pam", ".pbm", ".pcd", ".pcx", ".pfm", ".psd",
    ".qoi", ".raf", ".ras", ".rgb", ".rgba", ".rw2", ".sgi", ".svg", ".svgz", ".vda", ".vst", ".wdp", ".wmf", ".xbm", ".xcf",
    ".xpm", ".xwd",
}  # fmt: skip
"""Endings of images that are not read. A list of our own: that of the system differs from machine to machine."""


def frames_in(folder: Path) -> list[Path]:
    """Return the folder's images in natural order: runs of digits compare as numbers.

    Hidden files are no frames (macOS writes a `._1.jpg` beside each `1.jpg`), and folders and other files (texts, sound)
    are passed over. Raises DataError for images that cannot be read: dropping them would change the video.
    """
    images, unread = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            suffix = Path(entry.name).suffix.lower()
            if entry.name.startswith(".") or suffix not in IMAGES | UNREAD or _is_folder(entry):
                continue
            if _is_frame(entry):
                images.append(folder / entry.name)
            else:
                unread.append(entry.name)
    if unread:
        raise DataError(
            f"frames in {folder} of a kind that is read ({', '.join(sorted(IMAGES))})",
            named(sorted(unread)),
            "Convert these images, or move them out of the folder.",
        )
    # the name itself breaks ties such as 1.jpg and 01.jpg
    return sorted(images, key=lambda image: (_natural(image.name), image.name))


def _is_frame(entry: os.DirEntry) -> bool:
    """Reading a pipe or a device may never return. A link to nowhere counts: whoever reads it will name it."""
    regular = entry.is_file() or (entry.is_symlink() and not os.path.exists(entry))
    return regular and Path(entry.name).suffix.lower() in IMAGES


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _natural(name: str) -> list[str | int]:
    # digits sit at the odd places of the split, so numbers only ever meet numbers
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]
