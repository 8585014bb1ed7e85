"""From a video on disk to frames: probe it, choose frames, decode them. One thread, the same bytes every time.

A video is a file that FFmpeg reads (rlaif/video/files.py), or a folder of images in natural order ("2.jpg" before
"10.jpg"), which behaves as if it were a file with one frame per image. A folder plays at 1 frame per second unless
it holds a `frames.json` such as {"fps": 2.5}. An image by itself is like a folder with nothing else in it.

An MP4 or MOV file that was cut or overwritten is an error, at `probe` or at `decode`. A Matroska, WebM or MPEG
stream that was cut is a shorter video: nothing in it says how long it was meant to be.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rlaif.errors import DataError
from rlaif.video import files
from rlaif.video.folder import IMAGES, frames_in
from rlaif.video.spec import FrameSpec, uniform

SIDECAR = "frames.json"


@dataclass(frozen=True)
class VideoInfo:
    sha256: str
    total_frames: int
    fps: float
    height: int
    """Native size in pixels, as decoded; so is `width`."""
    width: int


def probe(path: str | Path) -> VideoInfo:
    """Hash the video, open it and decode its first frame.

    Raises DataError for a missing, empty or zero-length video and for one that does not decode at its start.
    """
    path = Path(path)
    with _readable(path):
        return _probe_folder(path) if _of_images(path) else _probe_file(path)


def sample_spec(
    path: str | Path, num_frames: int, height: int | None = None, width: int | None = None, processor: str = ""
) -> FrameSpec:
    """Uniform sampling of `num_frames` frames (rlaif/video/spec.py). A size that is None is the native one.

    Raises DataError as `probe` does, and when the video has fewer frames than that.
    """
    info = probe(path)
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


def decode(path: str | Path, spec: FrameSpec) -> np.ndarray:
    """The frames that `spec` names: uint8 [T, H, W, 3] RGB, contiguous, read-only; resized (bicubic) to its size.

    Raises DataError when the video is not the one that `spec` was made from, or does not decode to its last frame.
    """
    path = Path(path)
    with _readable(path):
        found = _sha256(path)
        if found != spec.sha256:
            raise _bad(
                path,
                f"sha256 {found[:12]}",
                "restore the video, or start again so that it is probed again",
                expected=f"the video that was probed, sha256 {spec.sha256[:12]}",
            )
        frames = _folder_frames(path, spec.indices) if _of_images(path) else _file_frames(path, spec.indices)
        stack = np.stack([_resize(frame, spec.height, spec.width) for frame in _same_size(path, frames)])
    stack.setflags(write=False)  # caches share it, as they do what comes out of Ray's object store
    return stack


# -- files


def _probe_file(path: Path) -> VideoInfo:
    size = path.stat().st_size
    if size == 0:
        raise _bad(path, "an empty file (0 bytes)", "copy or download the video again")
    sha256 = _sha256(path)
    try:
        index = files.index(path)
        height, width, _ = next(files.frames(path, (0,), index.exact)).shape
    except files.DAMAGED as error:
        raise _bad(
            path,
            f"{size} bytes that do not decode ({_first_line(error)})",
            "the file is truncated or no video: copy or download it again",
        ) from error
    if not index.fps > 0:
        raise _bad(path, "no frame rate", "re-encode the video with a constant frame rate")
    return VideoInfo(sha256, index.frames, index.fps, height, width)


def _file_frames(path: Path, indices: tuple[int, ...]) -> Iterator[np.ndarray]:
    try:
        yield from files.frames(path, indices, files.index(path).exact)
    except files.DAMAGED as error:
        raise _bad(
            path,
            f"a file that does not decode to its last frame ({_first_line(error)})",
            "the file is truncated or damaged: copy or download it again",
        ) from error


# -- folders


def _of_images(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() in IMAGES


def _probe_folder(path: Path) -> VideoInfo:
    images = _images(path)
    first = _read_image(images[0])
    return VideoInfo(_sha256(path), len(images), _folder_fps(path), *first.shape[:2])


def _folder_frames(path: Path, indices: tuple[int, ...]) -> Iterator[np.ndarray]:
    images = _images(path)
    return (_read_image(images[index]) for index in indices)


def _images(folder: Path) -> list[Path]:
    """An image by itself is its only one."""
    if not folder.is_dir():
        folder.stat()  # one that is missing is no damaged image
        return [folder]
    images = frames_in(folder)
    if not images:
        raise _bad(folder, "a folder without .jpg or .png images", "extract the video's frames into it")
    return images


def _read_image(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on truncated and garbage images
        raise _bad(
            path,
            f"an image that does not decode ({_first_line(error)})",
            "extract this frame again",
            expected="a readable frame",
        ) from error


def _folder_fps(folder: Path) -> float:
    sidecar = folder / SIDECAR
    if not sidecar.exists():
        return 1.0
    try:
        fps = float(json.loads(sidecar.read_text())["fps"])
    except (ValueError, KeyError, TypeError) as error:
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


def _same_size(path: Path, frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    shape = None
    for frame in frames:
        shape = shape or frame.shape
        if frame.shape != shape:
            raise _bad(
                path,
                f"frames of {shape[:2]} and {frame.shape[:2]}",
                "extract the frames at one size",
                expected="frames of one height and width",
            )
        yield frame


def _resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def _bad(path: str | Path, found: str, change: str, expected: str = "a readable video") -> DataError:
    return DataError(f"{expected} at {path}", found, change)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
