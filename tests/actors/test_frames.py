import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import ray

from actors.frames import FrameClient, FrameStore, LocalFrames, start_frame_store
from rlaif.errors import DataError
from rlaif.worlds.shapes.render import write_mp4

NAMES = ["a.mp4", "b.mp4", "c.mp4"]
FRAMES = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for seed, name in enumerate(NAMES):
        write_mp4(root / name, np.random.default_rng(seed).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8))
    (root / "broken.mp4").write_bytes(b"no video")
    return root


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 * 1024**2)
    yield
    ray.shutdown()


@pytest.fixture
def store(cluster):
    actor = start_frame_store(num_frames=FRAMES, height=14, width=28, processor="p", threads=2)
    yield actor
    ray.kill(actor)


@ray.remote(num_cpus=0)
class Role:
    """Uses frames as a rollout or reward actor does."""

    def __init__(self, store, root):
        self.client = FrameClient(store, root)

    def sums(self, videos):
        return {name: (self.client.spec(name).hash, int(self.client.get(name).sum(dtype=np.int64))) for name in videos}


def test_two_roles_see_the_same_frames_and_each_video_is_decoded_once(store, root):
    roles = [Role.remote(store, root) for _ in range(2)]
    results = ray.get([role.sums.remote(NAMES * 2) for role in roles])
    local = LocalFrames(root, FRAMES, 14, 28, "p")
    expected = {name: (local.spec(name).hash, int(local.get(name).sum(dtype=np.int64))) for name in NAMES}
    assert results == [expected, expected]
    counters = ray.get(store.counters.remote())
    assert (counters["decodes"], counters["redecodes"], counters["videos"]) == (3, 0, 3)
    assert counters["hits"] == 3  # the second role's first look at each; then both have their own


def test_frames_outlive_the_first_role_that_requested_them(store, root):
    first = Role.remote(store, root)
    ray.get(first.sums.remote(["a.mp4"]))
    ray.kill(first)
    ray.get(Role.remote(store, root).sums.remote(["a.mp4"]))
    counters = ray.get(store.counters.remote())
    assert (counters["decodes"], counters["redecodes"], counters["hits"]) == (1, 0, 1)


@ray.remote(num_cpus=0)
class Owner:
    def put(self, frames):
        return [ray.put(frames)]


class Forgetful(FrameStore):
    """A store whose objects belong to another actor: they are lost when that one is killed."""

    def __init__(self, **options):
        super().__init__(**options)
        self.owner = Owner.remote()
        self._cache._store = lambda frames: ray.get(self.owner.put.remote(frames))[0] if self.owner else ray.put(frames)

    def lose(self, spec, path):
        (ref,) = self.frames(spec, path)
        ray.kill(self.owner)
        self.owner = None
        wait_until(lambda: not resolves(ref))


def test_a_lost_object_is_decoded_again_once(cluster, root):
    store = ray.remote(Forgetful).options(num_cpus=0, max_concurrency=4).remote(num_frames=FRAMES)
    local = LocalFrames(root, FRAMES)
    ray.get(store.lose.remote(local.spec("a.mp4"), str(root / "a.mp4")))
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda client: client.get("a.mp4"), [FrameClient(store, root) for _ in range(2)]))
    assert all(np.array_equal(frames, local.get("a.mp4")) for frames in results)
    counters = ray.get(store.counters.remote())
    assert (counters["decodes"], counters["redecodes"], counters["lost"]) == (1, 1, 1)


def test_dead_store_restarts(store, root):
    first = FrameClient(store, root)
    before = first.get("a.mp4").copy()
    ray.kill(store, no_restart=False)
    assert np.array_equal(FrameClient(store, root).get("a.mp4"), before)


def test_errors_are_data_errors_in_every_role(store, root):
    client = FrameClient(store, root)
    bad = {"broken.mp4": "do not decode", "gone.mp4": "nothing there", "../x.mp4": "video '../x.mp4'"}
    for video, reason in bad.items():
        with pytest.raises(DataError) as raised:
            client.get(video)
        assert type(raised.value) is DataError and reason in raised.value.found
    with pytest.raises(ray.exceptions.RayTaskError) as raised:
        ray.get(Role.remote(store, root).sums.remote(["broken.mp4"]))
    assert isinstance(raised.value.cause, DataError) and "broken.mp4" in raised.value.cause.expected


def test_prefetch_decodes_ahead_and_defers_errors_to_the_request(store, root):
    client = FrameClient(store, root)
    client.prefetch([*NAMES, "broken.mp4"])
    wait_until(lambda: (client.counters()["decodes"], client.counters()["prefetch_failures"]) == (3, 1))
    client.get("b.mp4")
    assert client.counters()["hits"] == 1 and client.counters()["redecodes"] == 0


def test_timed_out_request_names_the_video(cluster, root):
    @ray.remote(num_cpus=0)
    class Stuck:
        def spec(self, path):
            time.sleep(60)

    with pytest.raises(DataError, match=r"a\.mp4 within 0\.2 s"):
        FrameClient(Stuck.remote(), root, timeout_s=0.2).get("a.mp4")


def test_the_store_evicts_within_its_budget(cluster, root):
    store = FrameStore(FRAMES, store_bytes=2 * FRAMES * 32 * 32 * 3)
    for name in [*NAMES, "a.mp4"]:
        path = str(root / name)
        assert ray.get(store.frames(store.spec(path), path)[0]).shape == (FRAMES, 32, 32, 3)
    counters = store.counters()
    assert (counters["decodes"], counters["redecodes"], counters["evictions"]) == (3, 1, 2)
    assert counters["bytes"] == 2 * FRAMES * 32 * 32 * 3


def test_second_store_reuses_known_facts_about_videos(cluster, root, tmp_path):
    """Another stage or node that shares the storage does not read the videos again."""
    for name in NAMES:
        os.utime(root / name, (0, 0))
    known, options = tmp_path / "storage" / ".cache" / "videos", {"num_frames": FRAMES, "threads": 1}
    first = FrameStore(known=str(known), **options)
    specs = [first.spec(str(root / name)) for name in NAMES]
    entries = {entry: entry.stat().st_mtime_ns for entry in known.rglob("*.json")}
    assert len(entries) == len(NAMES)
    second = FrameStore(known=str(known), **options)
    assert [second.spec(str(root / name)) for name in NAMES] == specs
    second.frames(specs[0], str(root / NAMES[0]))
    assert {entry: entry.stat().st_mtime_ns for entry in known.rglob("*.json")} == entries
    for store in (first, second):
        store._decoders.close()


def test_a_full_queue_drops_prefetches(cluster, root):
    store = FrameStore(FRAMES, queue=2)
    assert store.prefetch([str(root / name) for name in NAMES] * 2) == 2
    store._pool.shutdown()  # a thread that asked Ray after its end would take this process with it


def test_local_frames_are_cached_and_read_only(root, tmp_path):
    local = LocalFrames(root, FRAMES)
    local.prefetch(NAMES)
    frames = local.get("a.mp4")
    assert frames is local.get("a.mp4", local.spec("a.mp4")) and not frames.flags.writeable
    assert local.counters()["decodes"] == 1 and local.counters()["hits"] == 1
    absolute = os.path.join(root, "a.mp4")
    assert np.array_equal(LocalFrames(tmp_path, FRAMES).get(absolute), frames)


def resolves(ref) -> bool:
    try:
        return ray.get(ref, timeout=10) is not None
    except ray.exceptions.ObjectLostError:
        return False


def wait_until(condition, seconds: float = 20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition never held"
        time.sleep(0.05)
