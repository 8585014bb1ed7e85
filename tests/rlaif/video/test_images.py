"""Tests of images as frames: upright, 8 bits, on white, one picture each; and of which files of a folder count."""

from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from rlaif.errors import DataError
from rlaif.video.decode import decode, probe_video, sample_spec
from rlaif.video.folder import IMAGES, frames_in

COLORS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [90, 90, 90]], [[10, 200, 30], [0, 0, 0]]], np.uint8)
UPRIGHT = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: np.rot90(image, 2),
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda image: np.rot90(image, 1),
}


def decode_single_frame(path) -> np.ndarray:
    return decode(path, sample_spec(path, 1))[0]


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_images_are_turned_upright(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(COLORS).save(path, exif=exif, **options)
    assert np.array_equal(decode_single_frame(path), UPRIGHT[orientation](COLORS))


def sixteen_bits(value: int) -> Image.Image:
    return Image.fromarray(np.full((4, 4), value, np.uint16))


def palette(index: int) -> Image.Image:
    image = Image.new("P", (4, 4), index)
    image.putpalette([200, 10, 60, 0, 0, 0] + [0] * 762)
    image.info["transparency"] = 1
    return image


KINDS = {
    "16 bits, dark": (lambda: sixteen_bits(256 * 3), (3, 3, 3)),
    "16 bits, bright": (lambda: sixteen_bits(60000), (234, 234, 234)),
    "grey": (lambda: Image.new("L", (4, 4), 77), (77, 77, 77)),
    "one bit": (lambda: Image.new("1", (4, 4), 1), (255, 255, 255)),
    "opaque": (lambda: Image.new("RGBA", (4, 4), (200, 10, 60, 255)), (200, 10, 60)),
    "transparent": (lambda: Image.new("RGBA", (4, 4), (200, 10, 60, 0)), (255, 255, 255)),
    "half transparent": (lambda: Image.new("RGBA", (4, 4), (0, 0, 0, 128)), (127, 127, 127)),
    "grey, transparent": (lambda: Image.new("LA", (4, 4), (9, 0)), (255, 255, 255)),
    "palette": (lambda: palette(0), (200, 10, 60)),
    "palette, transparent": (lambda: palette(1), (255, 255, 255)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_pixel_becomes_rgb(tmp_path, kind):
    make, color = KINDS[kind]
    image = make()
    options = {"transparency": 1} if image.mode == "P" else {}
    image.save(tmp_path / "a.png", **options)
    assert np.abs(decode_single_frame(tmp_path / "a.png").astype(int) - color).max() <= 1


def test_sixteen_bit_colour_keeps_its_high_byte(tmp_path):
    frame = av.VideoFrame.from_ndarray(np.full((4, 4, 3), 60000, np.uint16), format="rgb48le")
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 4, 4, "rgb48be"
    encoder.time_base = Fraction(1, 25)
    (packet,) = [*encoder.encode(frame.reformat(format="rgb48be")), *encoder.encode()]
    (tmp_path / "a.png").write_bytes(bytes(packet))
    assert np.abs(decode_single_frame(tmp_path / "a.png").astype(int) - 234).max() <= 1


def moving(path, **options):
    images = [Image.new("RGB", (32, 32), (number * 10, 0, 0)) for number in range(20)]
    images[0].save(path, save_all=True, append_images=images[1:], **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "gif", "avif"])
def test_an_animated_image_is_a_video(tmp_path, suffix):
    path = moving(tmp_path / f"a.{suffix}")
    spec = sample_spec(path, 20)
    reds = decode(path, spec)[..., 0].mean((1, 2))
    assert spec.total_frames == 20 and np.abs(reds - 10 * np.arange(20)).max() < 6


@pytest.mark.parametrize("suffix", ["png", "gif", "webp", "tif", "avif"])
def test_an_animated_image_is_no_frame(tmp_path, suffix):
    (tmp_path / "frames").mkdir()
    moving(tmp_path / "frames" / f"1.{suffix}")
    with pytest.raises(DataError, match=rf"1\.{suffix}\n.*20 pictures"):
        probe_video(tmp_path / "frames")
    if suffix in ("webp", "tif"):
        with pytest.raises(DataError, match="20 pictures"):
            probe_video(moving(tmp_path / f"alone.{suffix}"))


def test_folders_with_mixed_endings_are_read_fully_and_others_are_named(tmp_path):
    kinds = ["jpg", "webp", "JPEG", "bmp", "tiff", "gif", "png", "ppm", "tga"]
    for number, kind in enumerate(kinds):
        Image.new("RGB", (16, 16), (number * 20, 0, 0)).save(tmp_path / f"{number}.{kind}")
    for name in ("notes.txt", "frames.json", "sound.wav", "Thumbs.db"):
        (tmp_path / name).write_text('{"fps": 2}')
    spec = sample_spec(tmp_path, len(kinds))
    assert spec.total_frames == len(kinds) and spec.fps == 2
    assert np.abs(decode(tmp_path, spec)[..., 0].mean((1, 2)) - 20 * np.arange(len(kinds))).max() < 3
    for name in ("9.heic", "10.svg"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"10\.svg, 9\.heic"):
        probe_video(tmp_path)


def test_hidden_files_and_folders_are_no_frames(tmp_path):
    for number in range(8):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{number}.jpg")
        (tmp_path / f"._{number}.jpg").write_bytes(b"Mac OS X")
    (tmp_path / ".hidden.png").write_bytes(b"")
    for name in ("__MACOSX", "folder.png"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "9.jpg").write_bytes(b"")
    assert [frame.name for frame in frames_in(tmp_path)] == [f"{number}.jpg" for number in range(8)]
    assert sample_spec(tmp_path, 8).total_frames == 8


@pytest.mark.parametrize("place", ["alone", "first", "later"])
def test_a_decompression_bomb_is_named(tmp_path, monkeypatch, place):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    bomb = tmp_path / {"alone": "0.png", "first": "0.png", "later": "2.png"}[place]
    Image.new("RGB", (40, 40)).save(bomb)
    path = bomb if place == "alone" else tmp_path
    with pytest.raises(DataError, match=bomb.name) as raised:
        decode(path, sample_spec(path, 1 if place == "alone" else 2))
    assert "exceeds limit" in raised.value.found


HEADS = {".png": b"\x89PNG\r\n\x1a\n", ".bmp": b"BM", ".tif": b"II*\0", ".gif": b"GIF89a"}
JPEG_HEAD = b"\xff\xd8\xff"


@pytest.mark.parametrize("suffix", sorted(IMAGES))
def test_garbage_in_an_image_is_named(tmp_path, suffix):
    for seed in range(8):
        path = tmp_path / f"{seed}{suffix}"
        garbage = np.random.default_rng(seed).bytes(300)
        path.write_bytes(HEADS.get(suffix, JPEG_HEAD) + garbage)
        with pytest.raises(DataError, match=path.name.replace(".", r"\.")):
            probe_video(path)
