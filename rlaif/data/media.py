"""Store the images that a dataset carries as bytes, and join listed frames, so that the video reader can open them.

An image becomes a folder of one frame, named by the SHA-256 of its bytes: equal images are stored once, and the bytes
are the source's own. Only what opens as an image is stored or exported as one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import uuid
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from rlaif.data.frame_lists import link_folder
from rlaif.data.rows import RowError, excerpt
from rlaif.data.videos import UNUSABLE, video_path
from rlaif.errors import DataError
from rlaif.video.folder import IMAGES, frames_in

GIVE = "Give one with --media DIR; to a stage, with agreement.media (a local path)."
ENDINGS = {b"\x89PNG": ".png", b"RIFF": ".webp"}
"""Endings of stored images by their first bytes; any other is a .jpg: the reader goes by content."""
SHARED_IMAGES = 4096
"""Images that have been looked up are remembered: the rows of a file share them."""


def from_data_uri(uri: str, field: str) -> bytes:
    """Return the bytes of a base64 data URI. Raise RowError for any other."""
    head, comma, text = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise RowError("wrong type", f"{field}: {excerpt(uri)} is not a base64 data URI")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError("wrong type", f"{field}: a data URI that is not base64: {error}") from error


def check_image(file: BinaryIO | Path, name: str, decode: bool = True) -> None:
    """Raise RowError for what is no image; unless `decode`, only its header is read."""
    try:
        with Image.open(file) as image:
            # a cut file has a whole header: only its pixels tell
            if decode:
                image.load()
    except UnidentifiedImageError as error:
        raise RowError(UNUSABLE, f"{name}: no image that can be read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RowError(UNUSABLE, f"{name}: {error}") from error


class Media:
    """Images below `folder`; a record names them relative to `root` if the folder is inside it."""

    def __init__(self, root: Path, folder: Path | None):
        self.root, self.folder = root, folder
        self._image = lru_cache(maxsize=SHARED_IMAGES)(self._still)

    def put(self, data: bytes) -> str:
        """Return the `video` of a record for this image, which is stored if it is new. Raise RowError if it is no image."""
        if self.folder is None:
            raise DataError("a folder for the images inside this file", "none", GIVE)
        digest = hashlib.sha256(data).hexdigest()
        folder = self.folder / digest[:2] / digest
        path = folder / f"0{ENDINGS.get(data[:4], '.jpg')}"
        if not path.exists():
            check_image(io.BytesIO(data), f"image of {len(data)} bytes")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                # written aside first: another process may store the same image, or read this one
                aside = path.with_name(f".{uuid.uuid4().hex}")
                aside.write_bytes(data)
                os.replace(aside, path)
            except OSError as error:
                raise self._unwritable(error) from error
        return self._named(folder)

    def gather(self, frames: Sequence[str]) -> str:
        """Return the `video` of a record that lists other frames than a folder holds: one with a link to each, in order.

        Raise RowError for a frame that is not there, or no image.
        """
        if self.folder is None:
            raise DataError("a folder for listed frames", "none", GIVE)
        paths = [self.frame(frame) for frame in frames]
        # one folder for equal lists: its name is made from the paths, so it is never changed
        folder = self.folder / "frames" / link_folder(paths)
        if not folder.exists():
            aside = folder.with_name(f".{uuid.uuid4().hex}")
            try:
                aside.mkdir(parents=True)
                # six digits keep the order: a folder is read by name
                for number, path in enumerate(paths):
                    (aside / f"{number:06d}{path.suffix}").symlink_to(path)
                os.replace(aside, folder)
            except OSError as error:
                raise self._unwritable(error) from error
        return self._named(folder)

    def frame(self, frame: str) -> Path:
        """Return the path of a listed frame. Raise RowError if there is none, or no image that the video reader takes."""
        try:
            path = video_path(self.root, frame).absolute()
        except DataError as error:
            raise RowError("frame missing", error.found) from error
        if not path.is_file():
            raise RowError("frame missing", str(path))
        if path.suffix.lower() not in IMAGES:  # the video reader would pass over it
            endings = ", ".join(sorted(IMAGES))
            raise RowError(UNUSABLE, f"{path}: a frame that ends in none of {endings}")
        check_image(path, str(path), decode=False)
        return path

    def get(self, video: str) -> bytes:
        """Return the bytes of the one image that `video` names. Raise RowError if it is not there, or not one image."""
        try:
            return (self.root / self._image(video)).read_bytes()
        except OSError as error:
            raise RowError("image missing", str(error)) from error

    def image(self, video: str) -> str:
        """Return the path of the one image file that `video` names: of a folder with one image, that image.

        Raise RowError if there are several, or if it is no image. A path with nothing there is returned as it is, so
        that a file can be converted without its media.
        """
        try:
            return self._image(video) if self.there(video) else video
        except OSError as error:
            raise RowError("image missing", str(error)) from error

    def there(self, path: str) -> bool:
        """Return whether there is something at the path of a medium."""
        try:
            return os.path.exists(video_path(self.root, path))
        except DataError:
            return False

    def _still(self, video: str) -> str:
        """Return the path of the one image that `video` names, relative to `root` as `video` is."""
        try:
            path = video_path(self.root, video)
        except DataError as error:
            raise RowError("image missing", error.found) from error
        if path.is_dir():
            images = frames_in(path)
            if len(images) != 1:
                raise RowError("not one image", f"{path} holds {len(images)} files")
            path = images[0]
            video = f"{video.rstrip('/')}/{path.name}"
        if not path.is_file():
            raise RowError("image missing", str(path))
        check_image(path, str(path))
        return video

    def _named(self, folder: Path) -> str:
        inside = os.path.relpath(folder, self.root)
        return str(folder.absolute()) if inside.startswith("..") else Path(inside).as_posix()

    def _unwritable(self, error: OSError) -> DataError:
        return DataError("a folder that can be written to at --media", f"{self.folder}: {error}", GIVE)


class Checked(Media):
    """Opens every image (unless `decode` is off) and stores none: what `rlaif data check` needs."""

    def __init__(self, root: Path, folder: Path | None, decode: bool = True):
        super().__init__(root, folder)
        self.decode = decode
        self._names: set[str] = set()

    def put(self, data: bytes) -> str:
        """Return a name for this image, which is checked. Raise RowError if it is no image."""
        if self.decode:
            check_image(io.BytesIO(data), f"image of {len(data)} bytes")
        name = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._names.add(name)
        return name

    def holds(self, video: str) -> bool:
        """Return whether `video` is an image inside the file, which has been opened already."""
        return video in self._names
