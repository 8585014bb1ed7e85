"""From a video on disk to frames: probe it, choose frames, decode them. The same bytes every time.

A video is a file that FFmpeg reads (rlaif/video/container.py says which, and which of several video streams), or a
folder of images in natural order ("2.jpg" before "10.jpg"), which behaves as if it were a file with one frame per
image. A folder plays at 1 frame per second unless it holds a `frames.json` such as {"fps": 2.5}. An image by itself is
like a folder with nothing else in it; an animated one (GIF, APNG) is a video with all its frames.

Frame i is frame i of a decode in order, and only frames that decode are counted (rlaif/video/files.py). Files are
turned upright by their display matrix, images by their EXIF orientation.

An MP4 or MOV file that was cut or overwritten is an error, at `probe` or at `decode`, and so is a GIF that was cut (its
last picture would be drawn in part). A fragmented MP4 that was cut between two fragments and a file of another kind (Matroska,
WebM, MPEG streams, AVI, IVF, WMV) that was cut are shorter videos, as for FFmpeg.

What `probe` learns is remembered (rlaif/video/known.py): a video is hashed again only if its size or time changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from rlaif.errors import DataError
from rlaif.video import files
from rlaif.video.container import DAMAGED, NotVideo, first_line
from rlaif.video.folder import IMAGES, frames_in
from rlaif.video.images import moves, read_image
from rlaif.video.index import Index, Start, read_index
from rlaif.video.known import KnownVideos
from rlaif.video.spec import FrameSpec, uniform

SIDECAR = "frames.json"
_IN_PROCESS = KnownVideos()


@dataclass(frozen=True)
class VideoInfo:
    sha256: str
    total_frames: int
    fps: float
    height: int
    """Native size in pixels, as decoded; so is `width`."""
    width: int
    damage: str = ""
    """Why the video does not decode to its last frame, if that is known already; decoding that frame is an error."""


def probe(path: str | Path, known: KnownVideos | None = None) -> VideoInfo:
    """Return what is known about a video; if nothing is, hash it, read its packets and decode at least its first frame.

    Raises DataError for a missing, empty or zero-length video and for one that does not decode at its start.
    """
    return _learned(Path(path), known)[0]


def sample_spec(
    path: str | Path,
    num_frames: int,
    height: int | None = None,
    width: int | None = None,
    processor: str = "",
    known: KnownVideos | None = None,
) -> FrameSpec:
    """Return a uniform sampling of `num_frames` frames (rlaif/video/spec.py). A size that is None is the native one.

    Raises DataError as `probe` does, and when the video has fewer frames than that.
    """
    return spec_of(path, probe(path, known), num_frames, height, width, processor)


def spec_of(
    path: str | Path, info: VideoInfo, num_frames: int, height: int | None, width: int | None, processor: str
) -> FrameSpec:
    """Return the sampling of a video that was probed. Raises DataError if it has too few frames."""
    if info.total_frames < num_frames:
        raise _bad(
            path,
            f"{info.total_frames} frames",
            "use a longer video, or lower video.num_frames",
            expected=f"at least {num_frames} frames",
        )
    return FrameSpec(
        sha256=info.sha256,
        indices=tuple(uniform(info.total_frames, num_frames)),
        height=height or info.height,
        width=width or info.width,
        fps=info.fps,
        total_frames=info.total_frames,
        processor=processor,
    )


def decode(path: str | Path, spec: FrameSpec, known: KnownVideos | None = None) -> np.ndarray:
    """Return the frames that `spec` names: uint8 [T, H, W, 3] RGB, contiguous, read-only; resized (bicubic) to its size.

    Raises DataError when the video is not the one that `spec` was made from, or does not decode to its last frame.
    """
    path = Path(path)
    info, index = _learned(path, known)
    if info.sha256 != spec.sha256:
        raise _bad(
            path,
            f"sha256 {info.sha256[:12]}",
            "restore the video, or start again so that it is probed again",
            expected=f"the video that was probed, sha256 {spec.sha256[:12]}",
        )
    numbers = sorted(set(spec.indices))
    with _readable(path):
        numbered = _file_frames(path, numbers, index) if index else _image_frames(path, numbers)
        by_number = {}
        for number, frame in _same_size(path, numbered, (info.height, info.width)):
            by_number[number] = _resize(frame, spec.height, spec.width)
    stack = np.stack([by_number[number] for number in spec.indices])
    stack.setflags(write=False)  # caches share it, as they do what comes out of Ray's object store
    return stack


# -- what is learned about a video


def _learned(path: Path, known: KnownVideos | None) -> tuple[VideoInfo, Index | None]:
    """Return what is known about a video, and for a file its index. Raises DataError for one that cannot be used."""
    if "\0" in str(path):
        raise _bad(path, "a name with a NUL character", "Correct the row's `video`.")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        found = f"a name that no file system holds ({first_line(error)})"
        raise _bad(ascii(str(path)), found, "Correct the row's `video`.") from error
    with _readable(path):
        facts = (known or _IN_PROCESS).get(path, partial(_learn, path))
    if "problem" in facts:
        raise DataError(*facts["problem"])
    index = facts["index"]
    if index:
        index = Index(**index | {"starts": tuple(Start(*start) for start in index["starts"])})
    return VideoInfo(**facts["info"]), index


def _learn(path: Path, earlier: dict | None) -> dict:
    if earlier and "info" in earlier and _sha256(path) == earlier["info"]["sha256"]:
        return earlier
    return _facts(path)


def _facts(path: Path) -> dict:
    try:
        info, index = _probe_images(path) if _of_images(path) else _probe_file(path)
    except DataError as error:
        if isinstance(error.__cause__, (OSError, MemoryError)):  # perhaps the machine's trouble, not the video's
            raise
        return {"problem": [error.expected, error.found, error.fix]}
    facts = None
    if index:
        starts = [[start.frame, start.pts, start.pos, start.size] for start in index.starts]
        facts = asdict(index) | {"starts": starts}
    return {"info": asdict(info), "index": facts}


# -- files


def _probe_file(path: Path) -> tuple[VideoInfo, Index | None]:
    size = path.stat().st_size
    if path.is_file() and size == 0:
        raise _bad(path, "an empty file (0 bytes)", "copy or download the video again")
    try:
        index = read_index(path)
    except NotVideo as error:
        raise _bad(
            path, f"{error}; it does not decode", "name a video file, or a folder of images", "a video"
        ) from error
    except DAMAGED as error:
        raise _bad(
            path,
            f"{size} bytes that do not decode ({first_line(error)})",
            "the file is no video, is damaged, or begins in the middle of a recording: copy or download it again, or "
            "re-encode it with ffmpeg",
        ) from error
    if index.frames == 1 and path.suffix.lower() in IMAGES:  # an animation of one picture states any rate
        index = replace(index, fps=1.0)
    if not index.fps > 0:
        raise _bad(path, "no frame rate", "re-encode the video with a constant frame rate")
    return VideoInfo(_sha256(path), index.frames, index.fps, index.height, index.width, index.damage), index


def _file_frames(path: Path, numbers: list[int], index: Index) -> Iterator[tuple[int, np.ndarray]]:
    try:
        yield from files.frames(path, numbers, index)
    except DAMAGED as error:
        raise _bad(
            path,
            f"a file that does not decode to its last frame ({first_line(error)})",
            "the file is truncated or damaged: copy or download it again",
        ) from error


# -- folders


def _of_images(path: Path) -> bool:
    if path.is_dir():
        return True
    return path.suffix.lower() in IMAGES and path.is_file() and not moves(path)


def _probe_images(path: Path) -> tuple[VideoInfo, None]:
    images = _images(path)
    first = read_image(images[0])
    return VideoInfo(_sha256(path), len(images), _folder_fps(path), *first.shape[:2]), None


def _image_frames(path: Path, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    images = _images(path)
    return ((number, read_image(images[number])) for number in numbers)


def _images(folder: Path) -> list[Path]:
    """Return a folder's images; an image by itself is its only one."""
    if not folder.is_dir():
        return [folder]
    images = frames_in(folder)
    if not images:
        raise _bad(folder, "a folder without .jpg or .png images", "extract the video's frames into it")
    return images


def _folder_fps(folder: Path) -> float:
    sidecar = folder / SIDECAR
    if not sidecar.exists():
        return 1.0
    try:
        if not sidecar.is_file():  # reading a pipe may never return
            raise ValueError("no regular file")
        fps = json.loads(sidecar.read_text())["fps"]
        if isinstance(fps, bool):
            raise TypeError(f"{fps} is no number")
        fps = float(fps)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise _bad(
            sidecar,
            f"{type(error).__name__}: {error}",
            "write the frame rate as a number",
            expected='JSON such as {"fps": 2.5}',
        ) from error
    if not 0 < fps < float("inf"):
        raise _bad(sidecar, f"{fps} frames per second", "write a positive frame rate", expected="a positive fps")
    return fps


# -- both


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    node = f"(looked from node {socket.gethostname()})"
    try:
        yield
    except FileNotFoundError as error:
        raise _bad(
            path, f"nothing there {node}", "check data.root and the row's `video`; every node must see the file"
        ) from error
    except OSError as error:
        raise _bad(path, f"{error} {node}", "make the video readable for the user that runs the job") from error


def _sha256(path: Path) -> str:
    """Of a file's bytes; of a folder, over the digests of its images in order (their names only give the order)."""
    if path.is_dir():
        return hashlib.sha256("".join(_sha256(image) for image in _images(path)).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _same_size(
    path: Path, frames: Iterable[tuple[int, np.ndarray]], size: tuple[int, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the frames; raise DataError for one that has another size than the video's first."""
    for number, frame in frames:
        if frame.shape[:2] != size:
            raise _bad(
                path,
                f"frames of {size} and {frame.shape[:2]}",
                "extract the frames at one size" if path.is_dir() else "re-encode the video at one size",
                expected="frames of one height and width",
            )
        yield number, frame


def _resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def _bad(path: str | Path, found: str, change: str, expected: str = "a readable video") -> DataError:
    return DataError(f"{expected} at {path}", found, change)
