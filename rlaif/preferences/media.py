"""Where images that a dataset carries as bytes are kept, and listed frames joined, so that the video reader can open them.

An image becomes a folder of one frame, named by the SHA-256 of its bytes: equal images are stored once, and the bytes
are the source's own.
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from rlaif.data import RowError, video_path
from rlaif.errors import DataError
from rlaif.video.folder import IMAGES

PNG = b"\x89PNG"
GIVE = "give one with --media DIR; to a stage, with agreement.media (a local path)"


def name_of(frames: Sequence[Path]) -> str:
    """Of the folder of links to these files in this order."""
    return hashlib.sha256("\n".join(map(str, frames)).encode()).hexdigest()


class Media:
    """Images below `folder`; a record names them relative to `root` where the folder is inside it."""

    def __init__(self, root: Path, folder: Path | None):
        self.root, self.folder = root, folder

    def put(self, data: bytes) -> str:
        """The `video` of a record for this image, stored if it is new."""
        if self.folder is None:
            raise DataError("a folder for the images inside this file", "none", GIVE)
        digest = hashlib.sha256(data).hexdigest()
        folder = self.folder / digest[:2] / digest
        # the reader goes by content, and knows an image by one of these two endings
        path = folder / ("0.png" if data.startswith(PNG) else "0.jpg")
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{uuid.uuid4().hex}")
            aside.write_bytes(data)
            os.replace(aside, path)
        return self._named(folder)

    def gather(self, frames: Sequence[str]) -> str:
        """The `video` of a record that lists other frames than a folder holds: one with a link to each, in their order.

        Raises RowError for a frame that is not there, or no image.
        """
        if self.folder is None:
            raise DataError("a folder for listed frames", "none", GIVE)
        paths = [self._frame(frame) for frame in frames]
        folder = self.folder / "frames" / name_of(paths)
        if not folder.exists():
            aside = folder.with_name(f".{uuid.uuid4().hex}")
            aside.mkdir(parents=True)
            for number, path in enumerate(paths):
                (aside / f"{number:06d}{path.suffix}").symlink_to(path)
            os.replace(aside, folder)
        return self._named(folder)

    def _frame(self, frame: str) -> Path:
        try:
            path = video_path(self.root, frame).absolute()
        except DataError as error:
            raise RowError("frame missing", error.found) from error
        if not path.is_file():
            raise RowError("frame missing", str(path))
        if path.suffix.lower() not in IMAGES:  # the video reader would pass over it
            raise RowError("video unusable", f"{path}: a frame that ends in none of {', '.join(sorted(IMAGES))}")
        return path

    def _named(self, folder: Path) -> str:
        inside = os.path.relpath(folder, self.root)
        return str(folder.absolute()) if inside.startswith("..") else Path(inside).as_posix()

    def get(self, video: str) -> bytes:
        """The bytes of the one image that `video` names. Raises RowError where it is not there, or not one image."""
        try:
            path = video_path(self.root, video)
            if path.is_dir():
                images = [image for image in path.iterdir() if not image.name.startswith(".")]
                if len(images) != 1:
                    raise RowError("not one image", f"{path} holds {len(images)} files")
                path = images[0]
            return path.read_bytes()
        except (OSError, DataError) as error:
            raise RowError("image missing", str(error)) from error


class Checked(Media):
    """Opens every image (unless `decode` is off) and stores none."""

    def __init__(self, root: Path, folder: Path | None, decode: bool = True):
        super().__init__(root, folder)
        self.decode = decode

    def put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        if not self.decode:
            return f"sha256:{digest}"
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise RowError("video unusable", f"image of {len(data)} bytes: {error}") from error
        return f"sha256:{digest}"

    @staticmethod
    def holds(video: str) -> bool:
        """Whether `video` is an image that was opened already."""
        return video.startswith("sha256:")
