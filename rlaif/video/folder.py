"""A folder of images as a video: which files are its frames, in which order and how fast they play."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from rlaif.errors import DataError, named

SIDECAR = "frames.json"
"""File in a folder of images that states its frame rate."""
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
            hidden = entry.name.startswith(".")
            if hidden or suffix not in IMAGES | UNREAD or _is_folder(entry):
                continue
            if _is_frame(entry):
                images.append(folder / entry.name)
            else:
                unread.append(entry.name)
    # All of them are named at once, in a fixed order: scandir has none.
    if unread:
        raise DataError(
            f"frames in {folder} of a kind that is read ({', '.join(sorted(IMAGES))})",
            named(sorted(unread)),
            "Convert these images, or move them out of the folder.",
        )
    # The name itself breaks ties such as 1.jpg and 01.jpg.
    return sorted(images, key=lambda image: (_natural_key(image.name), image.name))


def images_of(path: Path) -> list[Path]:
    """Return a folder's images; an image by itself is its only one. Raises DataError for a folder without images."""
    if not path.is_dir():
        return [path]
    images = frames_in(path)
    if not images:
        raise DataError(
            f"a readable video at {path}",
            "a folder without .jpg or .png images",
            "Put the video's frames into it as images.",
        )
    return images


def folder_fps(folder: Path) -> float:
    """Return the frame rate that a folder's sidecar states; 1 without a sidecar. Raises DataError for a bad sidecar."""
    sidecar = folder / SIDECAR
    if not sidecar.exists():
        return 1.0
    try:
        fps = _read_fps(sidecar)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(
            f'JSON such as {{"fps": 2.5}} at {sidecar}',
            f"{type(error).__name__}: {error}",
            "Write the frame rate as a number.",
        ) from error
    if not 0 < fps < float("inf"):
        raise DataError(
            f"a positive fps at {sidecar}", f"{fps} frames per second", "Write a positive frame rate into this file."
        )
    return fps


def _read_fps(sidecar: Path) -> float:
    # Reading a pipe may never return.
    if not sidecar.is_file():
        raise ValueError("no regular file")
    fps = json.loads(sidecar.read_text())["fps"]
    if isinstance(fps, bool):
        raise TypeError(f"{fps} is not a number")
    return float(fps)


def _is_frame(entry: os.DirEntry) -> bool:
    """Return whether an entry is an image that is read: a regular file, or a link to nowhere (reading it will name it).

    Reading a pipe or a device may never return.
    """
    regular = entry.is_file() or (entry.is_symlink() and not os.path.exists(entry))
    return regular and Path(entry.name).suffix.lower() in IMAGES


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _natural_key(name: str) -> list[str | int]:
    # Digits sit at the odd places of the split, so numbers are only ever compared with numbers.
    parts: list[str | int] = list(re.split(r"(\d+)", name))
    parts[1::2] = map(int, parts[1::2])
    return parts
