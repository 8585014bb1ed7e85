import av
import numpy as np
import pytest

from rlaif.worlds.shapes import render
from rlaif.worlds.shapes.scene import COLORS, FPS, FRAMES, SHAPES, SIZE, Scene, sample_scenes, trajectory


def read(path) -> tuple[np.ndarray, float]:
    """Return all frames of a video, and its frame rate."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        return np.stack(frames), float(container.streams.video[0].average_rate)


def test_every_video_decodes_with_its_frames_and_colors(world, rows):
    for row in rows("scenes"):
        scene = Scene.read(row)
        frames, fps = read(world / f"videos/{scene.scene_id}.mp4")
        assert fps == pytest.approx(FPS)
        assert frames.shape == (FRAMES, SIZE, SIZE, 3)
        for thing in scene.things:
            for t, (x, y) in enumerate(trajectory(thing)):
                pixel = frames[t, int(y), int(x)].astype(int)
                assert np.abs(pixel - COLORS[thing.color]).max() < 40, (scene, t)


def test_clips_are_the_halves(world, rows):
    test_scenes = [row["scene_id"] for row in rows("scenes") if row["split"] == "test"]
    for scene_id in test_scenes[:5]:
        whole, _ = read(world / f"videos/{scene_id}.mp4")
        early, _ = read(world / f"videos/{scene_id}_early.mp4")
        late, _ = read(world / f"videos/{scene_id}_late.mp4")
        assert len(early) == len(late) == FRAMES // 2
        joined = np.concatenate([early, late]).astype(int)
        assert np.abs(joined - whole).mean() < 3


def test_files_stay_close_to_the_rendered_frames(world, rows):
    scene = Scene.read(rows("scenes")[0])
    decoded, _ = read(world / f"videos/{scene.scene_id}.mp4")
    assert np.abs(decoded.astype(int) - render.render_frames(scene)).mean() < 3


def test_the_same_frames_are_the_same_bytes(tmp_path):
    # Among these scenes are some that x264 encodes in several ways, one after the other, with its macroblock tree.
    names = {"train00043", "train00081", "train00132", "prompt00049", "prompt00175"}
    scenes = [*sample_scenes("prompt", 180, 0), *sample_scenes("train", 180, 0)]
    videos = [render.render_frames(scene) for scene in scenes if scene.scene_id in names]
    assert len(videos) == len(names)
    contents = [set() for _ in videos]
    for _ in range(20):
        for frames, versions in zip(videos, contents, strict=True):
            render.write_mp4(tmp_path / "again.mp4", frames)
            versions.add((tmp_path / "again.mp4").read_bytes())
    for versions in contents:
        (content,) = versions
        # x264 notes its options in the file; luck can hide the difference.
        assert b" mbtree=0 " in content


def test_shapes_look_different():
    masks = [render.coverage(shape, 28.0, 28.0) for shape in SHAPES]
    for i, a in enumerate(masks):
        assert 60 < a.sum() < 4 * 6.5**2
        for b in masks[:i]:
            assert np.abs(a - b).sum() > 15


def test_an_unknown_shape_is_an_error():
    with pytest.raises(ValueError, match="star"):
        render.coverage("star", 1.0, 1.0)
