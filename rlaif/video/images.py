"""Read one image as a frame.

Images are turned upright by their EXIF orientation. Of more than 8 bits per channel the highest 8 are kept, as Pillow
does for colour. Transparent images are put on white, as vLLM and qwen-vl-utils do. A file of several pictures (frames
of an animation, pages) is no frame; animations that FFmpeg reads are videos by themselves (rlaif/video/decode.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from rlaif.errors import DataError

VIDEOS = {"PNG", "GIF", "AVIF"}
"""Animations that FFmpeg reads."""
SEVERAL = VIDEOS | {"WEBP", "TIFF"}
"""Formats whose further pictures are frames or pages. (JPEG files of phones hold depth maps and previews.)"""
WHITE = (255, 255, 255, 255)
# Numbers of the tags BitsPerSample and PhotometricInterpretation, and a value of the latter (TIFF 6.0, section 8).
TIFF_BITS = 258
TIFF_PHOTOMETRIC = 262
WHITE_IS_ZERO = 0
TGA_DESCRIPTOR = 17
"""Byte of a TGA header that describes the image; `TGA_ALPHA_BITS` of it say how many bits of a pixel are alpha."""
TGA_ALPHA_BITS = 0x0F


def read_image(path: Path) -> np.ndarray:
    """Return uint8 [H, W, 3] RGB. Raises DataError that names the file if it is not one image that decodes."""
    try:
        with Image.open(path) as image:
            # Pillow decodes lazily: all of it happens while the file is open.
            count = _count_pictures(image)
            if count > 1:
                raise _unreadable(path, f"a file of {count} pictures", "Extract its pictures into a folder of frames.")
            upright = ImageOps.exif_transpose(_correct_mode(image, path))
            return _rgb(upright)
    except DataError:
        raise
    except Exception as error:  # Pillow has no class for what its parsers raise on garbage, nor for its size limit
        if isinstance(error, OSError) and error.errno is not None:  # the file system's
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        raise _unreadable(path, f"an image that does not decode ({lines[0]})", "Extract this frame again.") from error


def is_animation(path: Path) -> bool:
    """Return whether a file is an animation that FFmpeg reads. A damaged image is none; reading it will say so."""
    try:
        with Image.open(path) as image:
            if image.format == "GIF":
                return True
            return image.format in VIDEOS and _count_pictures(image) > 1
    except OSError as error:
        if error.errno is not None:  # the file system's, not Pillow's
            raise
        return False
    except Exception:  # as in read_image
        return False


def _count_pictures(image: Image.Image) -> int:
    return getattr(image, "n_frames", 1) if image.format in SEVERAL else 1


def composite_on_white(image: Image.Image) -> np.ndarray:
    """Return uint8 [H, W, 3] RGB of an RGBA image on a white ground."""
    ground = Image.new("RGBA", image.size, WHITE)
    opaque = Image.alpha_composite(ground, image)
    return np.asarray(opaque.convert("RGB"))


def _correct_mode(image: Image.Image, path: Path) -> Image.Image:
    """Return an image whose mode says what the file says; Pillow passes over some of what headers hold."""
    if image.format == "TGA" and image.mode == "RGBA":
        descriptor = path.read_bytes()[TGA_DESCRIPTOR]
        # Without alpha bits the fourth byte of a pixel has no meaning, but Pillow reads it as alpha.
        if not descriptor & TGA_ALPHA_BITS:
            return _copy_orientation(image, image.convert("RGB"))
    if image.mode.startswith("I;16"):
        return _copy_orientation(image, Image.fromarray(_grey(image)))
    sixteen_bits = image.format == "PNG" and image.mode == "RGB" and image.tile[0][3] == "RGB;16B"
    if sixteen_bits and "transparency" in image.info:
        raise ValueError("16 bits per colour and one colour that is transparent: convert it to 8 bits")
    return image


def _copy_orientation(source: Image.Image, image: Image.Image) -> Image.Image:
    """Give an image the EXIF orientation of another one."""
    exif = image.getexif()
    orientation = source.getexif().get(ExifTags.Base.Orientation)
    if orientation:
        exif[ExifTags.Base.Orientation] = orientation
    return image


def _grey(image: Image.Image) -> np.ndarray:
    """Return uint8 [H, W] of a grey image with 9 to 16 bits per pixel: the highest eight of them."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(TIFF_BITS, (16,))[0]
    # Pillow does not scale samples of 12 bits up to 16, so the file says how many bits there are.
    grey = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey
    # A PNG may name one value that is transparent, which is white here.
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return grey


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F"):
        raise ValueError("32 bits per pixel, of an unknown range: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        return composite_on_white(image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _unreadable(path: Path, found: str, fix: str) -> DataError:
    return DataError(f"a readable frame at {path}", found, fix)
