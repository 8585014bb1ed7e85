import json

import av
import numpy as np
import pytest
from PIL import Image

from rlaif.errors import DataError
from rlaif.video.decode import decode, probe_video, sample_spec
from rlaif.worlds.shapes.render import write_mp4


def numbers(frames: np.ndarray) -> list[int]:
    """Return native frame numbers, read off the grey levels of `ramp` (lossy codecs move them by less than half a step)."""
    return np.rint((frames.mean((1, 2, 3)) - 10) / 5).astype(int).tolist()


def remux(source, target, shift=0, **options):
    """Copy packets into another file, `shift` frames earlier (frames before zero are hidden by an edit list)."""
    with av.open(str(source)) as reader, av.open(str(target), "w", options=options) as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.size:
                packet.pts -= shift * packet.duration
                packet.dts -= shift * packet.duration
                packet.stream = stream
                writer.mux(packet)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.avi", "a.ts"])
def test_files_decode_to_the_requested_frames(clip, name):
    path = clip(name)
    info = probe_video(path)
    assert (info.total_frames, info.fps, info.height, info.width) == (24, 8.0, 32, 48)
    spec = sample_spec(path, 8, processor="p")
    assert spec.indices == (0, 3, 7, 10, 13, 16, 20, 23) and spec.processor == "p"
    frames = decode(path, spec)
    assert frames.shape == (8, 32, 48, 3) and frames.dtype == np.uint8 and frames.flags.c_contiguous
    assert numbers(frames) == list(spec.indices)
    assert np.array_equal(frames, decode(path, spec))


def test_hidden_frames_do_not_count(clip, tmp_path):
    """A clip that was cut without re-encoding keeps the frames since the last keyframe and hides them."""
    remux(clip(), tmp_path / "cut.mp4", shift=5, use_editlist="1", avoid_negative_ts="0")
    spec = sample_spec(tmp_path / "cut.mp4", 8)
    assert spec.total_frames == 19
    assert numbers(decode(tmp_path / "cut.mp4", spec)) == [index + 5 for index in spec.indices]


def test_a_folder_is_read_in_the_order_of_the_file(clip, folder):
    of_file, of_folder = sample_spec(clip(), 8), sample_spec(folder(), 8)
    assert of_file.indices == of_folder.indices and of_folder.fps == 1.0
    assert numbers(decode(clip(), of_file)) == numbers(decode(folder("again"), of_folder))


def test_a_folder_takes_its_fps_from_the_sidecar(folder):
    path = folder(length=4)
    sha256 = probe_video(path).sha256
    (path / "frames.json").write_text(json.dumps({"fps": 2.5}))
    assert probe_video(path).fps == 2.5 and probe_video(path).sha256 == sha256
    (path / "frames.json").write_text(json.dumps({"fps": 0}))
    with pytest.raises(DataError, match="positive fps"):
        probe_video(path)


@pytest.mark.parametrize("name", ["a.png", "a.JPG"])
def test_an_image_is_a_folder_of_one_frame(tmp_path, name):
    Image.fromarray(np.full((14, 28, 3), (200, 10, 60), np.uint8)).save(tmp_path / name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_bytes((tmp_path / name).read_bytes())
    alone = sample_spec(tmp_path / name, 1)
    inside = sample_spec(tmp_path / "folder", 1)
    assert (alone.total_frames, alone.fps, alone.height, alone.width) == (1, 1.0, 14, 28)
    assert np.array_equal(decode(tmp_path / name, alone), decode(tmp_path / "folder", inside))
    with pytest.raises(DataError, match="at least 2 frames"):
        sample_spec(tmp_path / name, 2)
    with pytest.raises(DataError, match="nothing there"):
        probe_video(tmp_path / "gone.png")
    (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(DataError, match="a readable frame"):
        probe_video(tmp_path / name)


def test_sampling_one_frame_gives_the_first(clip):
    path = clip()
    assert numbers(decode(path, sample_spec(path, 1))) == [0]


def test_frames_are_resized_to_the_size_in_the_spec(clip):
    path = clip()
    spec = sample_spec(path, 4, height=14, width=28)
    assert decode(path, spec).shape == (4, 14, 28, 3) and numbers(decode(path, spec)) == list(spec.indices)
    assert sample_spec(path, 4, width=28).height == 32


def cut_off(path):
    # The index of the frames comes last in this file.
    path.write_bytes(path.read_bytes()[:-200])


def cut_off_behind_the_index(path):
    remux(path, path.with_name("whole.mp4"), movflags="faststart")
    path.write_bytes(path.with_name("whole.mp4").read_bytes()[:-10])


def zero_the_middle(path):
    data = bytearray(path.read_bytes())
    middle = slice(len(data) * 4 // 10, len(data) * 6 // 10)
    data[middle] = bytes(middle.stop - middle.start)
    path.write_bytes(data)


def write_sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        container.mux(stream.encode(samples))
        container.mux(stream.encode())


def write_no_frames(path):
    # MP4 would leave the empty stream out.
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        container.start_encoding()


BAD_FILES = {
    "missing": (lambda path: path.unlink(), "nothing there"),
    "empty": (lambda path: path.write_bytes(b""), "empty file"),
    "header only": (lambda path: path.write_bytes(path.read_bytes()[:40]), "do not decode"),
    "truncated": (cut_off, "do not decode"),
    "truncated in its last frame": (cut_off_behind_the_index, "cut off"),
    "no frames": (write_no_frames, "no frames"),
    "sound only": (write_sound, "no video stream"),
    "garbage": (lambda path: path.write_bytes(bytes(range(256)) * 20), "do not decode"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_named(clip, kind):
    spoil, words = BAD_FILES[kind]
    path = clip()
    spoil(path)
    with pytest.raises(DataError) as raised:
        sample_spec(path, 8)
    assert str(path) in raised.value.expected and words in raised.value.found and raised.value.fix


def test_video_with_too_few_frames_is_refused(clip, folder):
    for path in (clip(length=5), folder(length=5)):
        with pytest.raises(DataError, match=r"at least 8 frames at .*\n.* 5 frames\n.*video.num_frames"):
            sample_spec(path, 8)


def test_damage_behind_the_first_frame_raises_when_decoding(tmp_path):
    """The index is whole, so the file opens and its first frame decodes."""
    path = tmp_path / "a.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (24, 64, 64, 3), dtype=np.uint8)
    write_mp4(path, noise)
    zero_the_middle(path)
    spec = sample_spec(path, 8)
    with pytest.raises(DataError, match="does not decode to its last frame"):
        decode(path, spec)


def test_a_video_that_changed_after_probing_is_refused(clip, folder):
    path, frames = clip(), folder()
    specs = sample_spec(path, 4), sample_spec(frames, 4)
    clip(length=23)
    Image.new("RGB", (48, 32)).save(frames / "frame7.png")  # none of the four that were sampled
    for changed, spec in zip((path, frames), specs, strict=True):
        with pytest.raises(DataError, match=f"that was probed, sha256 {spec.sha256[:12]}"):
            decode(changed, spec)
    path.unlink()
    with pytest.raises(DataError, match="nothing there"):
        decode(path, specs[0])


def test_bad_folders_are_named(folder, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="without .jpg or .png"):
        probe_video(tmp_path / "none")
    cut = folder("cut", suffix="jpg", length=4)
    image = cut / "frame2.jpg"
    image.write_bytes(image.read_bytes()[:300])
    with pytest.raises(DataError, match="frame2.jpg"):
        decode(cut, sample_spec(cut, 4))
    mixed = folder("mixed", length=4)
    Image.new("RGB", (10, 10)).save(mixed / "frame1.png")
    with pytest.raises(DataError, match="one height and width"):
        decode(mixed, sample_spec(mixed, 4))
