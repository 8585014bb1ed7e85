"""From a video on disk to frames: probe it, choose frames, decode them. The same bytes every time.

A video is a file that FFmpeg reads (rlaif/video/container.py says which, and which of several video streams), or a
folder of images in natural order ("2.jpg" before "10.jpg"), which behaves as if it were a file with one frame per
image. A folder plays at 1 frame per second unless it holds a `frames.json` such as {"fps": 2.5}. An image by itself is
like a folder with nothing else in it; an animated one (GIF, APNG) is a video with all its frames.

Frame i is frame i of a decode in order, and only frames that decode are counted (rlaif/video/files.py). Files are
turned upright by their display matrix, images by their EXIF orientation.

An MP4 or MOV file that was cut or overwritten is an error, at `probe_video` or at `decode`, and so is a GIF that was cut
(its last picture would be drawn in part). A fragmented MP4 that was cut between two fragments and a file of another kind
(Matroska, WebM, MPEG streams, AVI, IVF, WMV) that was cut are shorter videos, as for FFmpeg.

What `probe_video` learns is remembered (rlaif/video/known.py): a video is hashed again only if its size or time changed.
"""

from __future__ import annotations

import hashlib
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
from rlaif.video.container import DAMAGED, NotVideoError, first_line
from rlaif.video.files import read_frames
from rlaif.video.folder import IMAGES, folder_fps, images_of
from rlaif.video.images import is_animation, read_image
from rlaif.video.index import Index, read_index
from rlaif.video.known import KnownVideos
from rlaif.video.packets import Start
from rlaif.video.spec import FrameSpec, uniform

_IN_PROCESS = KnownVideos()


@dataclass(frozen=True)
class VideoInfo:
    """What is known about a video."""

    sha256: str
    """Hash of a file's bytes; of a folder, of its images in order."""
    total_frames: int
    fps: float
    """Frames per second."""
    height: int
    """Native height in pixels, as decoded."""
    width: int
    """Native width in pixels, as decoded."""
    damage: str = ""
    """Why the video does not decode to its last frame, if that is known already; decoding that frame is an error."""


def probe_video(path: str | Path, known: KnownVideos | None = None) -> VideoInfo:
    """Return what is known about a video; if nothing is, hash it, read its packets and decode at least its first frame.

    Raises DataError for a missing, empty or zero-length video and for one that does not decode at its start.
    """
    return _look_up(Path(path), known)[0]


def sample_spec(
    path: str | Path,
    num_frames: int,
    height: int | None = None,
    width: int | None = None,
    processor: str = "",
    known: KnownVideos | None = None,
) -> FrameSpec:
    """Return a uniform sampling of `num_frames` frames (rlaif/video/spec.py). A size that is None is the native one.

    Raises DataError as `probe_video` does, and when the video has fewer frames than that.
    """
    info = probe_video(path, known)
    return spec_of(path, info, num_frames, height, width, processor)


def spec_of(
    path: str | Path, info: VideoInfo, num_frames: int, height: int | None, width: int | None, processor: str
) -> FrameSpec:
    """Return the sampling of a video that was probed. Raises DataError if it has too few frames."""
    if info.total_frames < num_frames:
        raise _video_error(
            path,
            f"{info.total_frames} frames",
            "Use a longer video, or lower `video.num_frames`.",
            expected=f"at least {num_frames} frames",
        )
    indices = uniform(info.total_frames, num_frames)
    return FrameSpec(
        sha256=info.sha256,
        indices=tuple(indices),
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
    info, index = _look_up(path, known)
    if info.sha256 != spec.sha256:
        raise _video_error(
            path,
            f"sha256 {info.sha256[:12]}",
            "Restore the video, or start again so that it is probed again.",
            expected=f"the video that was probed, sha256 {spec.sha256[:12]}",
        )
    # A frame that occurs twice is decoded once.
    numbers = sorted(set(spec.indices))
    by_number = {}
    with _name_unreadable(path):
        numbered = _file_frames(path, numbers, index) if index else _image_frames(path, numbers)
        # A number may come twice: the later frame replaces one that was in doubt.
        for number, frame in _require_same_size(path, numbered, (info.height, info.width)):
            by_number[number] = _resize(frame, spec.height, spec.width)
    stack = np.stack([by_number[number] for number in spec.indices])
    # Caches share the frames, so they are read-only, as arrays that come out of Ray's object store are.
    stack.setflags(write=False)
    return stack


# -- what is known about a video


def _look_up(path: Path, known: KnownVideos | None) -> tuple[VideoInfo, Index | None]:
    """Return what is known about a video, and for a file its index. Raises DataError for one that cannot be used."""
    _require_name(path)
    # Without a store of their own, all calls of this process share one.
    with _name_unreadable(path):
        facts = (known or _IN_PROCESS).get(path, partial(_learn, path))
    if "problem" in facts:
        raise DataError(*facts["problem"])
    index = None
    if facts["index"]:
        starts = tuple(Start(*start) for start in facts["index"]["starts"])
        index = Index(**facts["index"] | {"starts": starts})
    return VideoInfo(**facts["info"]), index


def _require_name(path: Path) -> None:
    """Raise DataError for a name that no file can have."""
    fix = "Correct the row's `video`."
    if "\0" in str(path):
        raise _video_error(path, "a name with a NUL character", fix)
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        problem = f"a name that no file system holds ({first_line(error)})"
        # The name itself could not be printed.
        raise _video_error(ascii(str(path)), problem, fix) from error


def _learn(path: Path, earlier: dict | None) -> dict:
    """Return the facts about a video: the earlier ones if its content is the same."""
    if earlier and "info" in earlier and _sha256(path) == earlier["info"]["sha256"]:
        return earlier
    return _facts(path)


def _facts(path: Path) -> dict:
    """Return the facts about a video as JSON values: its info and index, or the problem with it."""
    try:
        info, index = _probe_images(path) if _is_of_images(path) else _probe_file(path)
    except DataError as error:
        # Perhaps this is the machine's trouble, not the video's: it must not be remembered.
        if isinstance(error.__cause__, (OSError, MemoryError)):
            raise
        return {"problem": [error.expected, error.found, error.fix]}
    index_facts = None
    if index:
        starts = [[start.frame, start.pts, start.pos, start.size] for start in index.starts]
        index_facts = asdict(index) | {"starts": starts}
    return {"info": asdict(info), "index": index_facts}


# -- files


def _probe_file(path: Path) -> tuple[VideoInfo, Index | None]:
    size = path.stat().st_size
    if path.is_file() and size == 0:
        raise _video_error(path, "an empty file (0 bytes)", "Copy or download the video again.")
    index = _read_index(path, size)
    # An animation of one picture states any rate.
    if index.frames == 1 and path.suffix.lower() in IMAGES:
        index = replace(index, fps=1.0)
    if not index.fps > 0:
        raise _video_error(path, "no frame rate", "Re-encode the video with a constant frame rate.")
    info = VideoInfo(_sha256(path), index.frames, index.fps, index.height, index.width, index.damage)
    return info, index


def _read_index(path: Path, size: int) -> Index:
    """Read a file's index. Raises DataError that says why the file is no video."""
    try:
        return read_index(path)
    except NotVideoError as error:
        raise _video_error(
            path,
            f"{error}; it does not decode",
            "Name a video file, or a folder of images.",
            expected="a video",
        ) from error
    except DAMAGED as error:
        raise _video_error(
            path,
            f"{size} bytes that do not decode ({first_line(error)})",
            "Copy or download the file again, or re-encode it with ffmpeg: it is not a video, is damaged, or begins in the "
            "middle of a recording.",
        ) from error


def _file_frames(path: Path, numbers: list[int], index: Index) -> Iterator[tuple[int, np.ndarray]]:
    try:
        yield from read_frames(path, numbers, index)
    except DAMAGED as error:
        raise _video_error(
            path,
            f"a file that does not decode to its last frame ({first_line(error)})",
            "Copy or download the file again: it is truncated or damaged.",
        ) from error


# -- folders


def _is_of_images(path: Path) -> bool:
    if path.is_dir():
        return True
    return path.suffix.lower() in IMAGES and path.is_file() and not is_animation(path)


def _probe_images(path: Path) -> tuple[VideoInfo, None]:
    images = images_of(path)
    height, width = read_image(images[0]).shape[:2]
    info = VideoInfo(_sha256(path), len(images), folder_fps(path), height, width)
    return info, None


def _image_frames(path: Path, numbers: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    images = images_of(path)
    for number in numbers:
        yield number, read_image(images[number])


# -- both


@contextmanager
def _name_unreadable(path: Path) -> Iterator[None]:
    """Turn the file system's errors into DataErrors that name the video and this node."""
    node = f"(looked from node {socket.gethostname()})"
    try:
        yield
    except FileNotFoundError as error:
        raise _video_error(
            path,
            f"nothing there {node}",
            "Check `data.root` and the row's `video`; every node must see the file.",
        ) from error
    except OSError as error:
        raise _video_error(path, f"{error} {node}", "Let the user that runs the job read the video.") from error


def _sha256(path: Path) -> str:
    """Hash a file's bytes; of a folder, the digests of its images in order (their names only give the order)."""
    if path.is_dir():
        digests = "".join(_sha256(image) for image in images_of(path))
        return hashlib.sha256(digests.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_same_size(
    path: Path, frames: Iterable[tuple[int, np.ndarray]], size: tuple[int, int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the frames; raise DataError for one that has another size than the video's first."""
    for number, frame in frames:
        if frame.shape[:2] != size:
            raise _video_error(
                path,
                f"frames of {size} and {frame.shape[:2]}",
                "Extract the frames at one size." if path.is_dir() else "Re-encode the video at one size.",
                expected="frames of one height and width",
            )
        yield number, frame


def _resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    if frame.shape[:2] == (height, width):
        return frame
    resized = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def _video_error(path: str | Path, found: str, fix: str, expected: str = "a readable video") -> DataError:
    return DataError(f"{expected} at {path}", found, fix)
