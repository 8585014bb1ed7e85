"""Read one image as a frame.

Images are turned upright by their EXIF orientation. 16 bits per channel become 8 by keeping the high byte, as Pillow
does for colour. Transparent images are put on white, as vLLM and qwen-vl-utils do. A file of several pictures (frames
of an animation, pages) is no frame; animations that FFmpeg reads are videos by themselves (rlaif/video/decode.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from rlaif.errors import DataError
from rlaif.video.container import first_line

VIDEOS = {"PNG", "GIF", "AVIF"}
"""Animations that FFmpeg reads."""
SEVERAL = VIDEOS | {"WEBP", "TIFF"}
"""Formats whose further pictures are frames or pages. (JPEG files of phones hold depth maps and previews.)"""
WHITE = (255, 255, 255, 255)


def read_image(path: Path) -> np.ndarray:
    """Return uint8 [H, W, 3] RGB. Raises DataError that names the file if it is not one image that decodes."""
    try:
        with Image.open(path) as image:
            count = _pictures(image)
            if count > 1:
                raise _unreadable(path, f"a file of {count} pictures", "Extract its pictures into a folder of frames.")
            return _rgb(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Exception as error:  # Pillow has no class for what its parsers raise on garbage, nor for its size limit
        if isinstance(error, OSError) and error.errno is not None:  # the file system's
            raise
        found = f"an image that does not decode ({first_line(error)})"
        raise _unreadable(path, found, "Extract this frame again.") from error


def moves(path: Path) -> bool:
    """Whether a file is an animation that FFmpeg reads. A damaged image is none; reading it will say so."""
    try:
        with Image.open(path) as image:
            return image.format == "GIF" or (image.format in VIDEOS and _pictures(image) > 1)
    except OSError as error:
        if error.errno is not None:  # the file system's, not Pillow's
            raise
        return False
    except Exception:  # as in read_image
        return False


def _pictures(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1) if image.format in SEVERAL else 1


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError("32 bits per pixel, of an unknown range: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    return np.asarray(image.convert("RGB"))


def _unreadable(path: Path, found: str, change: str) -> DataError:
    return DataError(f"a readable frame at {path}", found, change)
