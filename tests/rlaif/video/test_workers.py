"""Tests of decoding in child processes: the same results, and an end to what crashes or hangs."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rlaif.errors import DataError
from rlaif.video import decode as decoding
from rlaif.video import workers
from rlaif.video.decode import decode, probe_video, sample_spec
from rlaif.video.workers import Decoders

STUCK = """
import os, signal, sys
import rlaif.video.container as container
import rlaif.video.index as index
original = container.open_container
def open_container(path):
    if path.name == "stuck.mp4":
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        while True:
            sum(range(10**6))
    if path.name == "crash.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    return original(path)
index.open_container = open_container
from rlaif.video.worker import serve_requests
serve_requests(int(sys.argv[1]), float(sys.argv[2]), *sys.argv[3:])
"""


@pytest.fixture
def decoders():
    decoders = Decoders(2, timeout_s=60)
    yield decoders
    decoders.close()


def test_children_return_the_same_as_this_process(decoders, clip, folder, tmp_path):
    for path in (clip(), folder()):
        spec = sample_spec(path, 8, height=20)
        frames = decoders.decode(path, spec)
        assert decoders.probe(path) == probe_video(path)
        assert np.array_equal(frames, decode(path, spec)) and not frames.flags.writeable and frames.flags.c_contiguous
    with pytest.raises(DataError, match="nothing there"):
        decoders.probe(tmp_path / "gone.mp4")
    clip(length=20)
    with pytest.raises(DataError, match="that was probed"):
        decoders.decode(clip("other.mp4", length=9), spec)


def test_many_threads_share_the_children(decoders, clip):
    paths = [clip(f"{number}.mp4", length=10 + number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        lengths = list(pool.map(lambda path: decoders.probe(path).total_frames, paths * 3))
    assert lengths == [10, 11, 12, 13, 14, 15] * 3
    assert decoders._idle.qsize() <= 2


@pytest.fixture
def faulty(tmp_path, monkeypatch, clip):
    """Yield decoders whose children hang on `stuck.mp4` and crash on `crash.mp4`, and the list of children."""
    script = tmp_path / "faulty_worker.py"
    script.write_text(STUCK)
    started = []
    original = workers.subprocess.Popen

    def popen(arguments, **options):
        # The first four arguments are those of `python -P -m rlaif.video.worker`.
        child = original([arguments[0], str(script), *arguments[4:]], **options)
        started.append(child)
        return child

    monkeypatch.setattr(workers.subprocess, "Popen", popen)
    for name in ("stuck.mp4", "crash.mp4", "good.mp4"):
        clip(name)
    decoders = Decoders(1, timeout_s=3)
    yield decoders, started
    decoders.close()


def test_a_decoder_that_does_not_return_is_ended_and_its_video_named(faulty, tmp_path):
    decoders, started = faulty
    with pytest.raises(DataError, match=r"within 3 s at .*stuck\.mp4") as raised:
        decoders.probe(tmp_path / "stuck.mp4")
    assert "video.decode_timeout_s" in raised.value.fix
    assert started[0].poll() is not None
    assert decoders.probe(tmp_path / "good.mp4").total_frames == 24


def test_a_decoder_crash_is_an_error_and_other_videos_still_decode(faulty, tmp_path):
    decoders, started = faulty
    with pytest.raises(DataError, match=r"crash\.mp4\n.*ended with code -11"):
        decoders.probe(tmp_path / "crash.mp4")
    assert decoders.probe(tmp_path / "good.mp4").total_frames == 24 and len(started) == 2


def test_children_end_with_their_parent(faulty, tmp_path):
    decoders, started = faulty
    decoders.probe(tmp_path / "good.mp4")
    decoders.close()
    assert started[0].wait(10) is not None


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    times = []

    def probe_pipe():
        with pytest.raises(DataError, match="no regular file"):
            decoding.probe_video(tmp_path / "pipe.mp4")
        times.append(time.monotonic())

    thread = threading.Thread(target=probe_pipe, daemon=True)
    thread.start()
    thread.join(10)
    assert times
