import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rlaif.errors import DataError
from rlaif.video.cache import Counters, FrameCache, SpecCache
from rlaif.video.decode import decode
from rlaif.video.spec import FrameSpec

SIZE = 2 * 4 * 4 * 3


def spec(video: str, processor: str = "") -> FrameSpec:
    return FrameSpec(video, (0, 1), 4, 4, 1.0, 2, processor)


def fake(path, spec):
    return np.zeros((2, 4, 4, 3), np.uint8)


def test_least_recently_used_frames_are_evicted_first():
    cache = FrameCache(2 * SIZE, decode=fake)
    # When c comes, b was used least recently.
    for name in "abac":
        cache.get(name, spec(name))
    cache.get("a", spec("a"))
    assert cache.counters() == Counters(decodes=3, hits=2, evictions=1, bytes=2 * SIZE, videos=3)
    cache.get("b", spec("b"))
    assert cache.counters() == Counters(decodes=3, redecodes=1, hits=2, evictions=2, bytes=2 * SIZE, videos=3)


def test_newest_frames_stay_when_they_exceed_the_budget():
    cache = FrameCache(SIZE // 2, decode=fake)
    cache.get("a", spec("a"))
    cache.get("a", spec("a"))
    assert cache.counters() == Counters(decodes=1, hits=1, bytes=SIZE, videos=1)


def test_one_video_under_two_specs_is_two_entries_and_one_video():
    cache = FrameCache(9 * SIZE, decode=fake)
    cache.get("a", spec("a"))
    cache.get("a", spec("a", "other"))
    assert cache.counters() == Counters(decodes=2, bytes=2 * SIZE, videos=1)


def test_forget_drops_only_the_value_that_was_lost():
    numbers = iter(range(10))
    cache = FrameCache(9 * SIZE, decode=fake, store=lambda frames: f"ref{next(numbers)}")
    assert cache.get("a", spec("a")) == cache.get("a", spec("a")) == "ref0"
    cache.forget(spec("a"), "ref0")
    assert cache.get("a", spec("a")) == "ref1"
    cache.forget(spec("a"), "ref0")  # a slower client lost the same object
    assert cache.get("a", spec("a")) == "ref1"
    cache.forget(spec("never decoded"))
    assert cache.counters() == Counters(decodes=1, redecodes=1, hits=2, lost=1, bytes=SIZE, videos=1)


def test_concurrent_requests_decode_once_and_videos_do_not_wait_for_each_other():
    started = threading.Barrier(2, timeout=10)

    def slow(path, spec):
        # This passes only when both videos are being decoded at the same time.
        started.wait()
        time.sleep(0.02)
        return fake(path, spec)

    cache = FrameCache(9 * SIZE, decode=slow)

    def request(number: int) -> int:
        video = "ab"[number % 2]
        return id(cache.get(video, spec(video)))

    with ThreadPoolExecutor(8) as pool:
        values = set(pool.map(request, range(8)))
    assert len(values) == 2
    assert cache.counters() == Counters(decodes=2, hits=6, bytes=2 * SIZE, videos=2)


def test_failed_decode_raises_and_is_not_cached(clip):
    path = clip()
    frame_spec = SpecCache(4).spec(path)
    data = path.read_bytes()
    path.write_bytes(data[:100])
    cache = FrameCache(10**6, decode=decode)
    with pytest.raises(DataError):
        cache.get(path, frame_spec)
    path.write_bytes(data)
    assert cache.get(path, frame_spec).shape == (4, 32, 48, 3)
    assert cache.counters().decodes == 1


def test_specs_are_computed_once_until_the_video_changes(clip, folder):
    specs = SpecCache(4, processor="p")
    path, frames = clip(), folder()
    file_spec, folder_spec = specs.spec(path), specs.spec(frames)
    assert specs.spec(str(path)) is file_spec and specs.spec(frames) is folder_spec
    clip(length=20)
    os.utime(frames / "frame3.png", ns=(0, 0))
    assert specs.spec(path) != file_spec
    assert specs.spec(frames) == folder_spec and specs.spec(frames) is not folder_spec
    path.unlink()
    with pytest.raises(DataError, match="nothing there"):
        specs.spec(path)
