"""Which files of a folder are a video's frames, and in which order they play."""

from __future__ import annotations

import re
from pathlib import Path

IMAGES = {".jpg", ".jpeg", ".png", ".webp"}


def frames_in(folder: Path) -> list[Path]:
    """Its images in natural order: runs of digits compare as numbers."""
    images = [entry for entry in folder.iterdir() if entry.suffix.lower() in IMAGES]
    # the name itself breaks ties such as 1.jpg and 01.jpg
    return sorted(images, key=lambda image: (_natural(image.name), image.name))


def _natural(name: str) -> list[str | int]:
    # digits sit at the odd places of the split, so numbers only ever meet numbers
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]
