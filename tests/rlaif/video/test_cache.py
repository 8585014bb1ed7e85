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


def test_least_recently_used_frames_go_first():
    cache = FrameCache(2 * SIZE, decode=fake)
    for name in "abac":  # b is the oldest when c comes
        cache.get(name, spec(name))
    cache.get("a", spec("a"))
    assert cache.counters() == Counters(decodes=3, hits=2, evictions=1, bytes=2 * SIZE, videos=3)
    cache.get("b", spec("b"))
    assert cache.counters() == Counters(decodes=3, redecodes=1, hits=2, evictions=2, bytes=2 * SIZE, videos=3)


def test_the_newest_stays_even_beyond_the_budget():
    cache = FrameCache(SIZE // 2, decode=fake)
    cache.get("a", spec("a"))
    cache.get("a", spec("a"))
    assert cache.counters() == Counters(decodes=1, hits=1, bytes=SIZE, videos=1)


def test_one_video_under_two_specs_is_two_entries_and_one_video():
    cache = FrameCache(9 * SIZE, decode=fake)
    cache.get("a", spec("a"))
    cache.get("a", spec("a", "other"))
    assert cache.counters() == Counters(decodes=2, bytes=2 * SIZE, videos=1)


def test_what_store_returns_is_kept_and_lost_forgets_only_that():
    numbers = iter(range(10))
    cache = FrameCache(9 * SIZE, decode=fake, store=lambda frames: f"ref{next(numbers)}")
    assert cache.get("a", spec("a")) == cache.get("a", spec("a")) == "ref0"
    cache.forget(spec("a"), "ref0")
    assert cache.get("a", spec("a")) == "ref1"
    cache.forget(spec("a"), "ref0")  # a slower client's news of the same loss
    assert cache.get("a", spec("a")) == "ref1"
    cache.forget(spec("never seen"))
    assert cache.counters() == Counters(decodes=1, redecodes=1, hits=2, lost=1, bytes=SIZE, videos=1)


def test_threads_that_ask_together_cause_one_decode_and_videos_do_not_wait_for_each_other():
    started = threading.Barrier(2, timeout=10)

    def slow(path, spec):
        started.wait()  # passes only when both videos are being decoded at the same time
        time.sleep(0.02)
        return fake(path, spec)

    cache = FrameCache(9 * SIZE, decode=slow)
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda i: id(cache.get("ab"[i % 2], spec("ab"[i % 2]))), range(8)))
    assert len(set(values)) == 2
    assert cache.counters() == Counters(decodes=2, hits=6, bytes=2 * SIZE, videos=2)


def test_a_failed_decode_reaches_the_caller_and_is_not_kept(clip):
    path = clip()
    good = SpecCache(4).spec(path)
    data = path.read_bytes()
    path.write_bytes(data[:100])
    cache = FrameCache(10**6, decode=decode)
    with pytest.raises(DataError):
        cache.get(path, good)
    path.write_bytes(data)
    assert cache.get(path, good).shape == (4, 32, 48, 3)
    assert cache.counters().decodes == 1


def test_specs_are_computed_once_until_the_video_changes(clip, folder):
    specs = SpecCache(4, processor="p")
    path, frames = clip(), folder()
    assert specs.spec(path) is specs.spec(str(path)) and specs.spec(frames) is specs.spec(frames)
    before = specs.spec(path), specs.spec(frames)
    clip(length=20)
    os.utime(frames / "frame3.png", ns=(0, 0))
    assert specs.spec(path) != before[0]
    assert specs.spec(frames) == before[1] and specs.spec(frames) is not before[1]
    path.unlink()
    with pytest.raises(DataError, match="nothing there"):
        specs.spec(path)
