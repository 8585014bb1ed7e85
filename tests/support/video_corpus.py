"""Write small video files of many kinds with fixed seeds; a decode in order shows what their frames are."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np

# The AV1 encoder would write to the terminal.
os.environ.setdefault("SVT_LOG", "0")

LENGTH = 60
# Decoders for old codecs refuse smaller pictures.
HEIGHT, WIDTH = 48, 80
BITS = 6


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Return a frame that shows its number: six vertical bars are the bits, over a texture that moves."""
    rows, columns = np.mgrid[0:height, 0:width]
    red = (rows * 3 + number * 5) % 64
    green = (columns * 2 + number * 3) % 64
    blue = (rows + columns) % 64
    image = np.stack([red, green, blue], axis=2)
    bar = width // (BITS + 2)
    for bit in range(BITS):
        lit = number >> bit & 1
        image[height // 4 : height * 3 // 4, (bit + 1) * bar : (bit + 2) * bar] = 220 if lit else 20
    return image.astype(np.uint8)


def number_of(frame: np.ndarray) -> int:
    """Return the number that a decoded picture shows."""
    height, width = frame.shape[:2]
    bar = width // (BITS + 2)
    number = 0
    for bit in range(BITS):
        block = frame[height // 4 + 4 : height * 3 // 4 - 4, (bit + 1) * bar + 3 : (bit + 2) * bar - 3]
        number |= (block.mean() > 120) << bit
    return int(number)


def encode(
    path: Path,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    length: int = LENGTH,
    gop: int = 12,
    pix_fmt: str = "yuv420p",
    form: str | None = None,
    times: Callable[[int], int] = lambda number: number,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a video at 25 frames per second; times: the timestamp of each frame, in frames."""
    options = {"threads": "1"} | (options or {})
    with av.open(str(path), "w", format=form, options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.gop_size = gop
        if codec != "libsvtav1":
            stream.codec_context.bit_rate = 1_500_000
        stream.codec_context.time_base = Fraction(1, 25)
        for number in range(length):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame = frame.reformat(format=pix_fmt)
            frame.pts, frame.time_base = times(number), Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def remux(
    source: Path,
    target: Path,
    first: int = 0,
    last: int | None = None,
    shift: int = 0,
    change: Callable[[int, av.Packet], bool | None] = lambda number, packet: None,
    form: str | None = None,
    **options: str,
) -> Path:
    """Copy packets `first` to `last` into another file, `shift` frames later; `change` may alter one, False drops it."""
    with av.open(str(source)) as reader, av.open(str(target), "w", format=form, options=options) as writer:
        template = reader.streams.video[0]
        stream = writer.add_stream_from_template(template)
        frame = round(1 / (25 * template.time_base))
        packets = [packet for packet in reader.demux(template) if packet.size]
        for number, packet in enumerate(packets[first:last]):
            packet.pts += shift * frame
            if packet.dts is not None:
                packet.dts += shift * frame
            if change(number, packet) is False:
                continue
            packet.stream = stream
            writer.mux(packet)
    return target


X264 = {
    "closed": {"x264-params": "open-gop=0:bframes=2"},
    "open": {"x264-params": "open-gop=1:bframes=3:b-adapt=0:keyint=12:min-keyint=2:scenecut=0"},
    "no_b": {"x264-params": "bframes=0"},
    "pyramid": {"x264-params": "bframes=5:b-adapt=0:b-pyramid=normal:keyint=30:min-keyint=30:scenecut=0"},
    "one_idr": {"x264-params": "keyint=infinite:bframes=2:scenecut=0"},
    "intra_refresh": {"x264-params": "intra-refresh=1:keyint=12:bframes=0"},
    "interlaced": {"x264-params": "interlaced=1:bframes=2:keyint=12"},
    "slices": {"x264-params": "slices=4:bframes=2"},
    "intra_only": {"x264-params": "keyint=1"},
    "recovery": {"x264-params": "keyint=10:min-keyint=5:open-gop=1:bframes=2:scenecut=0"},
}
CONTAINERS = ("mp4", "mkv", "ts", "avi", "flv", "mov")
OTHERS = {
    "mpeg4_b": ("mpeg4", {"bf": "2"}, ("mp4", "mkv", "avi")),
    "mpeg4": ("mpeg4", {}, ("mp4", "avi", "mov")),
    "mpeg2_b": ("mpeg2video", {"bf": "2"}, ("ts", "mpg", "mkv", "mp4")),
    "mpeg1": ("mpeg1video", {"bf": "2"}, ("mpg", "mkv")),
    "hevc": ("libx265", {"x265-params": "keyint=12:bframes=3:log-level=none:pools=none:frame-threads=1"}, ("mp4", "mkv", "ts")),
    "hevc_open": ("libx265", {"x265-params": "keyint=12:open-gop=1:bframes=4:log-level=none:pools=none:frame-threads=1"}, ("mp4", "mkv")),
    "vp8": ("libvpx", {"auto-alt-ref": "1", "lag-in-frames": "10", "deadline": "realtime", "cpu-used": "8"}, ("webm", "mkv")),
    "vp9": ("libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "12", "deadline": "good", "cpu-used": "8"}, ("webm", "mp4")),
    "av1": ("libsvtav1", {"preset": "10", "crf": "20", "svtav1-params": "lp=1"}, ("mp4", "mkv", "webm")),
    "mjpeg": ("mjpeg", {}, ("avi", "mov")),
    "ffv1": ("ffv1", {}, ("mkv", "avi")),
    "wmv2": ("wmv2", {}, ("asf",)),
    "flv1": ("flv", {}, ("flv",)),
    "h263p": ("h263p", {}, ("avi",)),
    "prores": ("prores_ks", {}, ("mov",)),
    "rle": ("qtrle", {}, ("mov",)),
    "gif": ("gif", {}, ("gif",)),
    "apng": ("apng", {}, ("apng",)),
}  # fmt: skip
KINDS = ("negative", "hidden", "late", "cut_start", "cut_negative", "cut_end", "lost", "all_keys")
PIXELS = {"mjpeg": "yuvj420p", "prores": "yuv422p10le", "rle": "rgb24", "gif": "rgb8", "apng": "rgb24"}


def plain(folder: Path) -> Iterator[Callable[[], Path]]:
    """Yield writers of files with many codecs, containers and structures of groups of pictures."""
    for structure, options in X264.items():
        for container in CONTAINERS:
            yield partial(encode, folder / f"h264_{structure}.{container}", options=options)
    for name, (codec, options, containers) in OTHERS.items():
        pix_fmt = PIXELS.get(name, "yuv420p")
        for container in containers:
            yield partial(encode, folder / f"{name}.{container}", codec, options, pix_fmt=pix_fmt)


def odd(folder: Path) -> Iterator[Callable[[], Path]]:
    """Yield writers of copies of the plain files with other timestamps, cuts and losses."""
    for structure in ("closed", "open", "one_idr", "no_b"):
        source = folder / f"h264_{structure}.mp4"
        copy = partial(remux, source)
        for container in ("mp4", "mkv"):
            names = {kind: folder / f"{structure}_{kind}.{container}" for kind in KINDS}
            yield partial(copy, names["negative"], shift=-30, avoid_negative_ts="disabled")
            yield partial(copy, names["hidden"], shift=-5, avoid_negative_ts="disabled")
            yield partial(copy, names["late"], shift=1000)
            yield partial(copy, names["cut_start"], first=7)
            yield partial(copy, names["cut_negative"], first=7, shift=-25, avoid_negative_ts="disabled")
            yield partial(copy, names["cut_end"], last=43)
            yield partial(copy, names["lost"], change=lambda number, packet: number not in (20, 21))
            yield partial(copy, names["all_keys"], change=_key)
        yield partial(copy, folder / f"{structure}_streamed.mkv", form="matroska", live="1")
        yield partial(copy, folder / f"{structure}_fragmented.mp4", movflags="frag_keyframe+empty_moov")
        yield partial(copy, folder / f"{structure}_swapped.mkv", change=_swapped)
        yield partial(_recorded, source, folder / f"{structure}_recorded.ts")
        for container in ("mkv", "ts", "mp4"):
            yield partial(_cut, source, folder / f"{structure}_cut.{container}")
    yield partial(encode, folder / "variable.mkv", times=lambda number: number + number // 7 * 4)
    yield partial(encode, folder / "variable.mp4", times=lambda number: number * 3 + number % 3)


def _cut(source: Path, path: Path) -> Path:
    """Copy a file and keep its first part; MP4 with its table of frames first."""
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    data = remux(source, path, **options).read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    return path


def _recorded(source: Path, path: Path) -> Path:
    """Copy a file to a transport stream that begins in the middle of a packet."""
    data = remux(source, path).read_bytes()
    path.write_bytes(data[len(data) * 3 // 10 :])
    return path


def _key(number: int, packet: av.Packet) -> None:
    """Flag every packet as a key frame."""
    packet.is_keyframe = True


def _swapped(number: int, packet: av.Packet) -> None:
    """Give pictures the timestamps of decoding, which contradict the order in which they are shown."""
    packet.pts = packet.dts


def damaged(source: Path, target: Path, seed: int) -> Path:
    """Write a copy of a file with random damage: bytes overwritten, zeroed, removed, repeated or cut off."""
    chance, data = random.Random(seed), bytearray(source.read_bytes())
    for _ in range(chance.choice((1, 1, 2, 4))):
        start = chance.randrange(len(data) // 50, len(data))
        end = min(len(data), start + chance.choice((1, 4, 32, 200)))
        kind = chance.choice(("noise", "noise", "zeros", "flip", "remove", "repeat", "cut"))
        if kind == "noise":
            data[start:end] = chance.randbytes(end - start)
        elif kind == "zeros":
            data[start:end] = bytes(end - start)
        elif kind == "flip":
            data[start] ^= 1 << chance.randrange(8)
        elif kind == "remove":
            del data[start:end]
        elif kind == "repeat":
            data[start:start] = data[start:end]
        elif chance.random() < 0.3:
            del data[max(start, len(data) // 2) :]
    target.write_bytes(data)
    return target


def in_order(path: Path, threads: int = 1) -> list[np.ndarray]:
    """Decode a file from its start with PyAV alone, upright; up to the first error, if there is one."""
    frames = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            stream.codec_context.thread_count = threads
            for frame in container.decode(stream):
                frames.append(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
    except (av.error.FFmpegError, AttributeError):
        pass
    return frames
