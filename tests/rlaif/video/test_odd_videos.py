"""Tests of rare videos and images: they are read correctly, or refused with a reason."""

from __future__ import annotations

import io
import os
import struct
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from av.bitstream import BitStreamFilterContext
from av.stream import Disposition
from PIL import Image
from video_corpus import remux

from rlaif.errors import DataError
from rlaif.video.container import NotVideoError, video_stream
from rlaif.video.decode import decode, probe_video, sample_spec
from rlaif.video.folder import frames_in
from rlaif.video.images import read_image
from rlaif.video.known import KnownVideos

RED = (200, 20, 10)


def all_frames(path) -> np.ndarray:
    return decode(path, sample_spec(path, probe_video(path).total_frames))


def write_blank_video(path, rate: int) -> None:
    """Write 12 frames of H.264 without a picture."""
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(12):
            writer.mux(stream.encode(av.VideoFrame(48, 32, "yuv420p")))
        writer.mux(stream.encode())


def filtered(source, target, filters: str) -> None:
    """Copy a video through one of FFmpeg's bitstream filters."""
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = reader.streams.video[0]
        copy = writer.add_stream_from_template(stream)
        bitstream = BitStreamFilterContext(filters, stream)
        for packet in reader.demux(stream):
            for changed in bitstream.filter(packet if packet.size else None):
                changed.stream = copy
                writer.mux(changed)


def jpegs_in_avi(path, exif: bytes = b"", fourcc: bytes = b"MJPG", count: int = 3) -> None:
    """Write a Motion JPEG whose pictures carry EXIF, as cameras do. The left half is red, the right half black."""
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, :32] = RED
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, exif=exif)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuvj420p"
        for number in range(count):
            packet = av.Packet(file.getvalue())
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), stream, True
            container.mux(packet)
    path.write_bytes(path.read_bytes().replace(b"MJPG", fourcc))


# -- streams


def stream(disposition=0, frames=10, decodes=True) -> SimpleNamespace:
    return SimpleNamespace(
        disposition=Disposition(disposition), frames=frames, codec_context=object() if decodes else None
    )


def container(*streams, best=None, brand="isom") -> SimpleNamespace:
    every = SimpleNamespace(video=list(streams), best=lambda kind: best)
    return SimpleNamespace(streams=every, metadata={"major_brand": brand})


@pytest.mark.parametrize(
    ("streams", "reason"),
    [
        ([stream(Disposition.dependent, frames=1)] * 4, "tiles of a larger picture"),
        ([stream(Disposition.attached_pic)], "attached pictures"),
        ([stream(decodes=False)], "a codec that this FFmpeg cannot decode"),
    ],
)
def test_streams_that_show_no_video_are_refused(streams, reason):
    with pytest.raises(NotVideoError, match=reason):
        video_stream(container(*streams))


def test_a_stream_without_a_decoder_is_skipped():
    other = stream()
    assert video_stream(container(stream(decodes=False), other)) is other


def test_colours_of_an_avif_are_used_instead_of_its_transparency(tmp_path):
    # The mask is a stream of its own, and in these pictures it has the higher bit rate.
    masks = np.random.default_rng(0).integers(0, 255, (8, 64, 96), dtype=np.uint8)
    colours = np.full((64, 96, 3), RED, np.uint8)
    pictures = [Image.fromarray(np.dstack([colours, mask])) for mask in masks]
    pictures[0].save(tmp_path / "a.avif", save_all=True, append_images=pictures[1:], duration=100)
    frames = all_frames(tmp_path / "a.avif")
    assert len(frames) == 8 and np.abs(frames.mean((0, 1, 2)) - RED).max() < 12


def test_a_codec_without_decoder_is_named(tmp_path):
    jpegs_in_avi(tmp_path / "a.avi", fourcc=b"ZZZZ")
    with pytest.raises(DataError, match="a codec that this FFmpeg cannot decode"):
        probe_video(tmp_path / "a.avi")


# -- orientation and transparency


@pytest.mark.parametrize(("orientation", "height", "width"), [(1, 32, 64), (3, 32, 64), (6, 64, 32)])
def test_frames_with_exif_are_read_upright(orientation, height, width, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "a camera"
    jpegs_in_avi(tmp_path / "a.avi", exif.tobytes())
    frames = all_frames(tmp_path / "a.avi")
    assert frames.shape == (3, height, width, 3)
    red = {1: np.s_[:, :, :24], 3: np.s_[:, :, 40:], 6: np.s_[:, :24]}[orientation]
    assert np.abs(frames[red].reshape(-1, 3).mean(0) - RED).max() < 12


@pytest.mark.parametrize("turn", ["rotate=180", "flip=horizontal"])
def test_an_orientation_of_the_first_frame_alone_is_refused(turn, tmp_path):
    write_blank_video(tmp_path / "a.mp4", rate=25)
    filtered(tmp_path / "a.mp4", tmp_path / "turned.mp4", f"h264_metadata=display_orientation=insert:{turn}")
    with pytest.raises(DataError, match="the display orientation changes at frame 1"):
        probe_video(tmp_path / "turned.mp4")


def test_transparency_is_white_in_animations_as_in_images(tmp_path):
    pictures = [Image.new("RGBA", (40, 30)) for _ in range(3)]
    for number, picture in enumerate(pictures):
        picture.paste((*RED, 255), (5 * number, 0, 5 * number + 10, 30))
    pictures[0].save(tmp_path / "still.png")
    pictures[0].save(tmp_path / "moving.png", save_all=True, append_images=pictures[1:], duration=100)
    moving = all_frames(tmp_path / "moving.png")
    assert len(moving) == 3 and (moving[:, :, -1] == 255).all()
    np.testing.assert_array_equal(moving[0], all_frames(tmp_path / "still.png")[0])


# -- images of uncommon kinds


def tiff(path, values: np.ndarray, bits: int, white_is_zero: bool) -> None:
    """Write a grey TIFF with 16-bit samples of which `bits` are used."""
    Image.fromarray(values.astype(np.uint16)).save(path, tiffinfo={258: bits, 262: 0 if white_is_zero else 1})


@pytest.mark.parametrize("white_is_zero", [False, True])
def test_sixteen_bit_tiffs_keep_their_high_byte(white_is_zero, tmp_path):
    tiff(tmp_path / "a.tif", np.full((4, 4), 200 << 8), 16, white_is_zero)
    assert (read_image(tmp_path / "a.tif") == (55 if white_is_zero else 200)).all()


def test_twelve_bit_tiffs_keep_their_highest_bits(tmp_path):
    # 2 x 2 pixels of 12 bits, packed: rows of 3 bytes. Entries are (tag, type, count, value).
    entries = [(256, 3, 1, 2), (257, 3, 1, 2), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 2), (279, 4, 1, 6)]
    value = 200 << 4 | 15
    row = (value << 12 | value).to_bytes(3, "big")
    directory = struct.pack("<H", len(entries))
    for entry in entries:
        directory += struct.pack("<HHII", *entry)
    header = b"II*\0" + struct.pack("<I", 14)
    (tmp_path / "a.tif").write_bytes(header + row + row + directory + struct.pack("<I", 0))
    assert (read_image(tmp_path / "a.tif") == 200).all()


@pytest.mark.parametrize(("alpha_bits", "colour"), [(0, RED), (8, (255, 255, 255))])
def test_the_fourth_byte_of_a_tga_is_alpha_only_if_the_header_says_so(alpha_bits, colour, tmp_path):
    head = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 4, 4, 32, 0x20 | alpha_bits)
    (tmp_path / "a.tga").write_bytes(head + bytes([*RED[::-1], 0]) * 16)
    assert (read_image(tmp_path / "a.tga") == colour).all()


def test_a_transparent_grey_of_sixteen_bits_is_white(tmp_path):
    values = np.array([[1000, 51200], [51200, 1000]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=1000)
    assert read_image(tmp_path / "a.png")[..., 0].tolist() == [[255, 200], [200, 255]]


# -- files that were cut


def test_a_movie_that_is_cut_between_two_frames_is_refused(clip, tmp_path):
    # The index comes first, as on servers: if it came last, it would be cut away.
    path = remux(clip(length=24), tmp_path / "f.mp4", movflags="faststart")
    with av.open(str(path)) as movie:
        entries = list(movie.streams.video[0].index_entries)
    data, place = path.read_bytes(), entries[16].pos
    assert data.index(b"moov") < place
    assert probe_video(path).total_frames == 24
    (tmp_path / "cut.mp4").write_bytes(data[:place])
    with pytest.raises(DataError, match="cut off: its box 'mdat' states"):
        probe_video(tmp_path / "cut.mp4")


@pytest.mark.parametrize("note", [b"a note of the program that wrote this", b"\0" * 7, b"\xff" * 64])
def test_bytes_behind_a_movie_are_ignored(note, clip):
    path = clip(length=12)
    path.write_bytes(path.read_bytes() + note)
    assert probe_video(path).total_frames == 12


def test_a_gif_that_is_cut_is_refused(tmp_path):
    noise = [np.random.default_rng(i).integers(0, 255, (30, 40, 3), np.uint8) for i in range(6)]
    pictures = [Image.fromarray(pixels) for pixels in noise]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:])
    data = (tmp_path / "a.gif").read_bytes()
    assert probe_video(tmp_path / "a.gif").total_frames == 6
    (tmp_path / "cut.gif").write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(DataError, match="a GIF without its end"):
        probe_video(tmp_path / "cut.gif")


# -- rates


def test_a_matroska_with_pauses_plays_at_the_rate_of_its_timestamps(clip, tmp_path):
    # It states the duration of one frame, here an eighth of a second, and has only every third frame.
    with av.open(str(clip(length=24))) as reader, av.open(str(tmp_path / "a.mkv"), "w") as writer:
        template = reader.streams.video[0]
        copy = writer.add_stream("mjpeg", rate=8)
        copy.width, copy.height, copy.pix_fmt = template.width, template.height, "yuvj420p"
        for number, frame in enumerate(reader.decode(video=0)):
            if number % 3 == 0:
                picture = frame.reformat(format="yuvj420p")
                picture.pts, picture.time_base = number, Fraction(1, 8)
                writer.mux(copy.encode(picture))
        writer.mux(copy.encode())
    assert probe_video(tmp_path / "a.mkv").fps == pytest.approx(8 / 3, rel=0.01)


def test_a_raw_stream_plays_at_the_rate_of_its_header(tmp_path):
    write_blank_video(tmp_path / "a.h264", rate=120)
    assert probe_video(tmp_path / "a.h264").fps == 120


def test_a_gif_of_one_picture_is_like_a_folder_with_one(tmp_path):
    Image.new("RGB", (8, 8), RED).save(tmp_path / "a.gif")
    assert probe_video(tmp_path / "a.gif").fps == 1.0


# -- files and folders


@pytest.mark.parametrize("suffix", ["dds", "j2k", "pcx", "qoi", "sgi", "im", "heic", "mpo", "pbm", "svg"])
def test_images_of_a_kind_that_is_not_read_are_named(suffix, folder):
    frames = folder(length=3)
    (frames / f"frame3.{suffix}").write_bytes(b"x")
    with pytest.raises(DataError, match=f"frame3.{suffix}"):
        probe_video(frames)


@pytest.mark.parametrize("name", ["loop.txt", "loop"])
def test_a_link_to_itself_that_is_no_image_is_skipped(name, folder):
    frames = folder(length=3)
    (frames / name).symlink_to(frames / name)
    assert len(frames_in(frames)) == 3


def test_a_file_that_was_replaced_with_its_size_and_time_kept_is_read_again(tmp_path):
    path, known = tmp_path / "a.bmp", KnownVideos(tmp_path / "known")
    for number, colour in enumerate((RED, (10, 20, 200))):
        Image.new("RGB", (8, 8), colour).save(path)
        os.utime(path, ns=(10**18, 10**18))
        info = probe_video(path, known)
        assert tuple(decode(path, sample_spec(path, 1, known=known), known)[0, 0, 0]) == colour, number
    assert probe_video(path, KnownVideos(tmp_path / "known")) == info


def test_half_of_a_surrogate_pair_in_a_name_is_an_error(tmp_path):
    with pytest.raises(DataError, match="a name that no file system holds"):
        probe_video(f"{tmp_path}/\ud800.mp4")
