"""Checkpoints: kills at every step of a save, damage, full disks, buckets, and planted files."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.checkpoint import Checkpoints, check_identity
from rlaif.errors import CheckpointError
from rlaif.io.tensors import load_json, load_tensors, save_json, save_tensors

ROOT = Path(__file__).parents[2]

SAVE_AND_DIE = """
import os, signal, sys
import cluster.checkpoint as module

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

root, point = sys.argv[1:]
store = module.Checkpoints(root, keep=2)

def write(folder):
    for number in range(3):
        (folder / f"{number}.bin").write_bytes(os.urandom(4096))
        if point == f"after file {number}":
            die()

if point == "while verifying":
    module.check_written = die
elif point == "before the rename":
    module.os.rename = die
elif point == "before latest.json":
    store._point_to = die
elif point == "before pruning":
    store._prune = die
elif point == "while pruning":
    pointed = store._point_to
    def point_then_die_at_sweep(iteration):
        pointed(iteration)
        store._sweep = die
    store._point_to = point_then_die_at_sweep
store.save(3, write)
"""


def write_number(number: int):
    """Return a writer of a checkpoint with a number in its tensors and its record."""

    def write(folder: Path) -> None:
        save_tensors(folder / "weights.safetensors", {"w": np.full(1000, number, np.float32)})
        save_json(folder / "state.json", {"number": number})

    return write


def number_in(store: Checkpoints) -> int:
    """Return the number of the newest checkpoint, after a check of its tensors."""
    folder = store.load(store.latest())
    number = load_json(folder / "state.json")["number"]
    assert load_tensors(folder / "weights.safetensors")["w"].eq(number).all()
    return number


@pytest.fixture
def store(tmp_path) -> Checkpoints:
    store = Checkpoints(tmp_path / "checkpoints", keep=2)
    for number in (1, 2):
        store.save(number, write_number(number), meta={"number": number})
    return store


@pytest.fixture
def bucket() -> Checkpoints:
    """Return checkpoints in an object store, in memory, which cannot rename."""
    return Checkpoints(f"fsspec+memory:///{uuid.uuid4().hex}/checkpoints", keep=2)


def leftovers(store: Checkpoints) -> list[str]:
    """Return the hidden folders of saves and deletions that did not finish."""
    return [name for name in store.root.children() if name.startswith(".")]


def test_save_keeps_the_newest_and_the_protected_checkpoints(store, tmp_path):
    assert store.latest().iteration == 2 and store.latest().meta == {"number": 2}
    store.save(3, write_number(3), protect={1})
    assert store.iterations() == [1, 2, 3], "the protected one outlives `keep`"
    store.save(4, write_number(4))
    assert store.iterations() == [3, 4] and number_in(store) == 4
    assert json.loads((tmp_path / "checkpoints/latest.json").read_text()) == {"iteration": 4, "path": "000004"}
    assert leftovers(store) == []


@pytest.mark.parametrize(
    ("point", "survivor"),
    [
        ("after file 0", 2),
        ("after file 2", 2),
        ("while verifying", 2),
        ("before the rename", 2),
        ("before latest.json", 3),
        ("before pruning", 3),
        ("while pruning", 3),
    ],
)
def test_a_kill_at_any_step_of_a_save_loses_no_complete_checkpoint(store, tmp_path, point, survivor):
    """The newest complete checkpoint loads, and the newest one before the save is still there."""
    command = [sys.executable, "-c", SAVE_AND_DIE, str(tmp_path / "checkpoints"), point]
    died = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert store.latest().iteration == survivor
    assert store.at(2).meta == {"number": 2}
    if survivor == 2:
        assert number_in(store) == 2
    store.save(4, write_number(4))
    assert number_in(store) == 4 and leftovers(store) == []
    assert store.iterations() == [survivor, 4], "a complete one was lost before `keep` newer ones existed"


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete", "manifest", "no manifest"])
def test_a_damaged_checkpoint_is_skipped_and_named(store, tmp_path, caplog, harm):
    folder = tmp_path / "checkpoints/000002"
    victim = folder / ("weights.safetensors" if "manifest" not in harm else "manifest.json")
    data = bytearray(victim.read_bytes())
    if harm in ("delete", "no manifest"):
        victim.unlink()
    elif harm == "flip":
        data[-5] ^= 1
        victim.write_bytes(data)
    else:
        victim.write_bytes(data[:-7])
    ref = store.latest()
    assert ref.iteration == 1 and number_in(store) == 1
    assert len(ref.passed_over) == 1 and ref.passed_over[0].startswith("000002: ")
    assert "000002 is not used" in caplog.text
    store.save(2, write_number(20))
    assert number_in(store) == 20, "a damaged one is replaced"


@pytest.mark.parametrize("pointer", [None, '{"iteration": 1}', "garb", '{"iteration": 9, "path": "000009"}'])
def test_latest_ignores_a_wrong_latest_json(store, tmp_path, caplog, pointer):
    path = tmp_path / "checkpoints/latest.json"
    path.unlink() if pointer is None else path.write_text(pointer)
    assert store.latest().iteration == 2
    assert "the newest complete is 000002" in caplog.text


def test_latest_is_none_if_nothing_was_saved(tmp_path):
    assert Checkpoints(tmp_path / "none").latest() is None


def test_begin_refuses_to_replace_a_complete_checkpoint(store):
    with pytest.raises(CheckpointError, match="a complete one at"):
        store.begin(2)
    assert number_in(store) == 2


def test_rewind_hides_newer_checkpoints_and_the_next_save_deletes_them(store):
    store.rewind(1)
    assert number_in(store) == 1 and len(leftovers(store)) == 1
    store.save(2, write_number(22))
    assert number_in(store) == 22 and leftovers(store) == []
    store.rewind(0)
    assert store.latest() is None and not (store.root / "latest.json").exists()


def test_several_writers_share_a_checkpoint(store):
    staging = store.begin(3)
    for rank in range(2):
        with staging.writer(f"rank{rank}") as folder:
            save_tensors(folder / "shard.safetensors", {"w": torch.full((3,), float(rank))})
    ref = store.commit(staging)
    assert sorted(ref.files) == ["rank0/shard.safetensors", "rank1/shard.safetensors"]
    folder = store.load(store.latest(), parts=["rank1"])
    assert load_tensors(folder / "rank1/shard.safetensors")["w"].tolist() == [1.0] * 3


def test_commit_fails_if_a_writer_did_not_finish(store):
    staging = store.begin(3)
    with staging.writer("rank0") as folder:
        (folder / "a").write_text("a")
    with pytest.raises(ValueError, match="rank 1 died"), staging.writer("rank1") as folder:
        (folder / "b").write_text("b")
        raise ValueError("rank 1 died")
    with pytest.raises(CheckpointError, match="rank1/b, of a writer that did not finish"):
        store.commit(staging)
    store.abort(staging)
    assert leftovers(store) == [] and number_in(store) == 2


def test_commit_fails_if_bytes_change_after_the_write(store):
    staging = store.begin(3)
    with staging.writer() as folder:
        (folder / "a").write_bytes(b"good")
    (staging.location / "a").local.write_bytes(b"evil")
    with pytest.raises(CheckpointError, match="a has SHA-256"):
        store.commit(staging)


def full_disk_by_monkeypatch(folder: Path) -> None:
    (folder / "half").write_bytes(b"x" * 100)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "half"))


def test_a_full_disk_leaves_older_checkpoints_untouched(store):
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        store.save(3, full_disk_by_monkeypatch)
    assert "Free space" in caught.value.fix
    assert leftovers(store) == [] and store.iterations() == [1, 2] and number_in(store) == 2


def test_a_write_that_the_kernel_refuses_is_a_checkpoint_error(store, tmp_path):
    """A real failure: a limit on the size of files makes safetensors' own writer fail in the middle of a file."""
    script = """
import resource, sys
from pathlib import Path
import numpy as np
from cluster.checkpoint import Checkpoints
from rlaif.errors import CheckpointError
from rlaif.io.tensors import save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    Checkpoints(sys.argv[1]).save(3, lambda f: save_tensors(f / "w.safetensors", {"w": np.zeros(10**6)}))
except CheckpointError as error:
    print(error.found)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "checkpoints")]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert "File too large" in run.stdout, run.stderr
    assert leftovers(store) == [] and number_in(store) == 2


def test_begin_fails_if_the_disk_is_too_small(store, monkeypatch):
    with pytest.raises(CheckpointError, match="MiB free for checkpoint 000003"):
        store.begin(3, nbytes=2**60)
    free = os.statvfs(store.root.local)
    monkeypatch.setattr("cluster.checkpoint.shutil.disk_usage", lambda _: type("Usage", (), {"free": 100, "st": free}))
    with pytest.raises(CheckpointError, match="save.keep"):
        store.begin(3)  # the newest checkpoint's size is the estimate
    assert leftovers(store) == []


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_planted_pickle_never_runs(store, tmp_path):
    """The manifest is correct here: an attacker who can plant a file can also correct the manifest."""
    canary = tmp_path / "canary"
    bomb = pickle.dumps(Bomb(canary))
    (tmp_path / "checkpoints/000002/extra.pt").write_bytes(bomb)
    staging = store.begin(3)
    with staging.writer() as folder:
        (folder / "weights.safetensors").write_bytes(bomb)
        (folder / "state.json").write_bytes(bomb)
    folder = store.load(store.commit(staging))
    with pytest.raises(CheckpointError, match="safetensors file"):
        load_tensors(folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match="JSON"):
        load_json(folder / "state.json")
    assert not canary.exists()
    pickle.loads(bomb)
    assert canary.exists(), "the bomb does not work, so the test shows nothing"


def test_a_manifest_that_names_files_outside_is_refused(store, tmp_path):
    path = tmp_path / "checkpoints/000002/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../secret"] = {"size": 1, "sha256": "0"}
    path.write_text(json.dumps(manifest))
    assert "names ../../secret" in store.latest().passed_over[0]


def test_a_checkpoint_of_another_model_is_refused():
    meta = {"model": "sha-a", "stage": "ppo"}
    check_identity(meta, {"model": "sha-a"})
    with pytest.raises(CheckpointError) as caught:
        check_identity(meta, {"model": "sha-b", "stage": "ppo", "world": 2})
    assert caught.value.found == "ppo.model: checkpoint sha-a, now sha-b; ppo.world: checkpoint null, now 2"


def test_tensors_are_loaded_as_they_were_saved(tmp_path):
    tied = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    read_only = np.arange(3)
    read_only.flags.writeable = False
    tensors = {
        "tied": tied,
        "tied too": tied,
        "transposed": tied.T,
        "bf16": torch.randn(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "rng": torch.get_rng_state(),
        "read only": read_only,
    }
    save_tensors(tmp_path / "t.safetensors", tensors)
    loaded = load_tensors(tmp_path / "t.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        expected = torch.as_tensor(np.array(tensor) if name == "read only" else tensor)
        assert loaded[name].dtype == expected.dtype
        assert torch.equal(loaded[name], expected), name


def test_ray_train_reads_a_checkpoint(store):
    checkpoint = store.latest().as_ray()
    with checkpoint.as_directory() as folder:
        assert load_json(Path(folder) / "state.json") == {"number": 2}


def test_a_bucket_publishes_with_the_manifest(bucket, monkeypatch):
    """A bucket cannot rename, so the manifest is written last."""
    for number in (1, 2, 3):
        bucket.save(number, write_number(number), meta={"n": number})
    assert bucket.iterations() == [2, 3] and number_in(bucket) == 3
    monkeypatch.setattr("cluster.checkpoint.MANIFEST", "not-yet.json")
    with pytest.raises(CheckpointError, match="a manifest in"):
        bucket.at(3)
    monkeypatch.undo()
    (bucket.root / "000003/weights.safetensors").write(b"damaged")
    assert bucket.latest().iteration == 2 and "weights.safetensors has 7 bytes" in bucket.latest().passed_over[0]
    bucket.rewind(2)
    bucket.save(3, write_number(33))
    assert number_in(bucket) == 33
    with bucket.latest().as_ray().as_directory() as folder:
        assert load_json(Path(folder) / "state.json") == {"number": 33}


def test_a_bucket_ignores_a_save_without_manifest(bucket):
    bucket.save(1, write_number(1))
    staging = bucket.begin(2)
    with staging.writer("rank0") as folder:
        (folder / "a").write_text("a")
    assert bucket.latest().iteration == 1 and bucket.latest().passed_over == ()
    assert bucket.begin(2).location == staging.location, "swept and started again"
    assert not (staging.location / "rank0/a").exists()
