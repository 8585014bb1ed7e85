from dataclasses import fields, replace

import pytest

from rlaif.video.spec import FrameSpec

SPEC = FrameSpec("ab" * 32, (0, 8, 15), 32, 48, 8.0, 16, "processor-1")
CHANGED = {
    "sha256": "cd" * 32,
    "indices": (0, 7, 15),
    "height": 33,
    "width": 47,
    "fps": 8.5,
    "total_frames": 17,
    "processor": "processor-2",
    "span": (0, 16),
}


@pytest.mark.parametrize("name", [field.name for field in fields(FrameSpec)])
def test_hash_changes_with_every_field(name):
    assert replace(SPEC, **{name: CHANGED[name]}).hash != SPEC.hash


def test_json_round_trip_keeps_value_hash_and_hashability():
    again = FrameSpec.from_json(SPEC.to_json())
    assert again == SPEC and again.hash == SPEC.hash and len({again, SPEC}) == 1
    assert len(SPEC.hash) == 16 and int(SPEC.hash, 16) >= 0


def test_metadata_counts_in_native_frames():
    assert SPEC.metadata() == {
        "fps": 8.0,
        "duration": 2.0,
        "total_num_frames": 16,
        "frames_indices": [0, 8, 15],
        "video_backend": "decord",
    }


def test_a_part_is_shown_as_a_video_of_its_own():
    part = SPEC.part((4, 6, 9))
    assert part.hash != SPEC.hash and FrameSpec.from_json(part.to_json()) == part
    metadata = part.metadata()
    assert metadata["frames_indices"] == [0, 2, 5]
    assert metadata["total_num_frames"] == 6 and metadata["duration"] == 6 / 8


def test_fewer_frames_are_chosen_as_a_video_is_sampled():
    spec = FrameSpec("0" * 64, tuple(range(24)), 32, 32, 8.0, 24)
    assert spec.sparse(4) == (0, 8, 15, 23) and spec.sparse(1) == (0,)
    assert spec.sparse(24) == spec.sparse(99) == tuple(range(24))
    assert spec.part(spec.sparse(4)).metadata()["duration"] == spec.metadata()["duration"] == 3.0
