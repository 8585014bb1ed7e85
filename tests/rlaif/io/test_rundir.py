"""The run directory on a file system and in a bucket: paths, atomic files, locks, and the rows that a resume removes."""

import errno
import fcntl
import json
import multiprocessing
import os
import resource
import uuid
from pathlib import Path

import numpy as np
import pytest
import yaml

from rlaif.errors import ConfigError, StorageError
from rlaif.io.rundir import RunDir, dumps
from rlaif.io.storage import fetch, locate, replacing


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir(tmp_path / "runs", "first")
    run.prepare()
    return run


@pytest.fixture
def remote(tmp_path, monkeypatch) -> RunDir:
    """Return a run whose storage is an object store, in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = RunDir(f"fsspec+memory:///{uuid.uuid4().hex}", "far")
    run.prepare()
    return run


def rows(path: Path) -> list[dict]:
    """Read a file of one JSON object per line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def log_some(run: RunDir) -> None:
    """Write metrics of three iterations of SFT and of five of PPO, and samples of the latter."""
    for stage, last in (("sft", 3), ("ppo", 5)):
        for iteration in range(1, last + 1):
            run.append_metrics({"stage": stage, "iteration": iteration, "time": 0.5, "loss/total": 1 / iteration})
    for iteration in range(1, 6):
        run.write_samples(iteration, [{"prompt_id": "p", "sample_index": i} for i in range(2)])


def test_ppo_is_at_the_top_and_other_stages_have_a_folder(run, tmp_path):
    top = tmp_path / "runs/first"
    assert str(run.checkpoints("ppo")) == f"{top}/checkpoints" and str(run.export("ppo")) == f"{top}/export"
    assert (
        str(run.checkpoints("sft")) == f"{top}/sft/checkpoints" and str(run.export("reward")) == f"{top}/reward/export"
    )
    assert run.resolve("{run}/sft/export") == f"{top}/sft/export"
    assert run.resolve("hub/name") == "hub/name" and run.resolve("{run}") == str(top)


def test_relative_and_home_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert RunDir("runs", "a").path == tmp_path / "runs/a"
    assert RunDir("~/runs", "a").path == tmp_path / "home/runs/a"
    assert RunDir(f"file://{tmp_path}/x", "a").path == tmp_path / "x/a"


def test_options_of_a_uri_stay_at_its_end():
    run = RunDir("s3://bucket/some/where?region=eu", "a")
    assert run.resolve("{run}/sft/export") == "s3://bucket/some/where/a/sft/export?region=eu"
    assert str(run.checkpoints("ppo")) == "s3://bucket/some/where/a/checkpoints?region=eu"


def test_config_samples_and_eval_are_written_as_plain_values(run):
    run.write_config({"name": "first", "ppo": {"clip": 0.2, "targets": ["ä"]}})
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == {
        "name": "first",
        "ppo": {"clip": 0.2, "targets": ["ä"]},
    }
    run.write_samples(7, [{"kl": np.float32(0.5), "reward": {"masked": "no key"}}, {"kl": float("nan")}])
    assert rows(run.path / "samples/000007.jsonl") == [{"kl": 0.5, "reward": {"masked": "no key"}}, {"kl": None}]
    run.write_eval("final", {"f1": 0.5, "command": "rlaif eval"})
    assert json.loads((run.path / "eval/final.json").read_text()) == {"f1": 0.5, "command": "rlaif eval"}
    assert not list(run.path.rglob(".*")), "a half-written file stays behind"


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.write_config({"name": "first"}),
        lambda run: run.keep_config("ppo", 3, {"name": "first"}),
        lambda run: run.write_samples(1, [{"prompt_id": "p"}]),
        lambda run: run.write_eval("ppo", {"rows": []}),
        lambda run: run.append_metrics({"stage": "ppo", "iteration": 1}),
    ],
)
def test_a_full_disk_is_a_storage_error_with_a_fix(run, monkeypatch, write):
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr("rlaif.io.storage.os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device") as caught:
        write(run)
    assert f"Free space at {run.path}" in caught.value.fix and "set storage=" in caught.value.fix


def test_a_storage_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="the run directory") as caught, RunDir(tmp_path / "file", "a").lock():
        pass
    assert "Free space" not in caught.value.fix and "set storage=" in caught.value.fix


def test_a_row_that_does_not_fit_is_removed_again(run):
    run.append_metrics({"stage": "ppo", "iteration": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (run.metrics.stat().st_size + 10, hard))
    try:
        with pytest.raises(StorageError, match="another row of metrics"):
            run.append_metrics({"stage": "ppo", "iteration": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [row["iteration"] for row in rows(run.metrics)] == [1]


def test_dumps_writes_plain_json():
    value = {1: np.arange(3), "nested": [{"x": float("inf")}, (np.int64(2), np.bool_(True), None)], "text": "é"}
    assert dumps(value) == '{"1": [0, 1, 2], "nested": [{"x": null}, [2, true, null]], "text": "é"}'


def test_cut_back_removes_later_rows_and_samples_of_the_stage(run):
    log_some(run)
    with open(run.metrics, "ab") as file:
        file.write(b'{"stage": "ppo", "iterat')
    run.cut_back("ppo", 3)
    remaining = [(row["stage"], row["iteration"]) for row in rows(run.metrics)]
    assert remaining == [("sft", i) for i in (1, 2, 3)] + [("ppo", i) for i in (1, 2, 3)]
    assert sorted(p.name for p in (run.path / "samples").iterdir()) == [f"{i:06d}.jsonl" for i in (1, 2, 3)]


def test_cut_back_of_another_stage_leaves_samples_alone(run):
    log_some(run)
    run.cut_back("sft", 0)
    assert {row["stage"] for row in rows(run.metrics)} == {"ppo"}
    assert len(list((run.path / "samples").iterdir())) == 5


def test_cut_back_of_an_empty_run_writes_nothing(run):
    run.cut_back("ppo", 0)
    assert not run.metrics.exists()


def test_a_torn_last_line_is_dropped(run, caplog):
    run.append_metrics({"stage": "ppo", "iteration": 1})
    with open(run.metrics, "ab") as file:
        file.write(b'{"stage": ')
    run.drop_torn_line()
    run.append_metrics({"stage": "ppo", "iteration": 2})
    assert [row["iteration"] for row in rows(run.metrics)] == [1, 2]
    assert "cut short" in caplog.text


def hold(path: Path, locked, release) -> None:
    """Hold the lock of a run, in a process of its own."""
    with RunDir(path, "first").lock():
        locked.set()
        release.wait(30)


def test_lock_refuses_a_second_process_and_ends_with_its_holder(run):
    context = multiprocessing.get_context("spawn")
    locked, release = context.Event(), context.Event()
    other = context.Process(target=hold, args=(run.path.parent, locked, release))
    other.start()
    assert locked.wait(60)
    with pytest.raises(ConfigError, match=f"process {other.pid} on "), run.lock():
        pass
    other.kill()
    other.join()
    with run.lock():  # a killed process leaves nothing behind
        assert (run.path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    with run.lock():
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_lock_warns_on_a_file_system_without_locks(run, monkeypatch, caplog, number):
    """Some network file systems have no locks: the run works, and no marker file stays that would block a later one."""

    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with run.lock():
            assert "no file locks there" in caplog.text
        caplog.clear()


def test_files_of_a_bucket_run_are_in_the_mirror_and_in_the_bucket(remote, tmp_path):
    remote.write_config({"name": "far"})
    log_some(remote)
    assert (remote.location / "config.yaml").read() == (remote.path / "config.yaml").read_bytes()
    assert not (remote.location / "metrics.jsonl").exists()
    remote.sync()
    assert (remote.location / "metrics.jsonl").read() == remote.metrics.read_bytes()
    remote.write_json("wandb_id.json", {"ppo": "abc"})
    assert remote.read_json("wandb_id.json") == {"ppo": "abc"} and remote.read_json("nothing.json") is None


def test_a_bucket_run_resumes_on_another_machine(remote, tmp_path, monkeypatch):
    log_some(remote)
    remote.sync()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    elsewhere = RunDir(remote.location.root, "far")
    assert elsewhere.path != remote.path
    elsewhere.cut_back("ppo", 2)
    assert [row["iteration"] for row in rows(elsewhere.metrics) if row["stage"] == "ppo"] == [1, 2]
    assert (remote.location / "samples").children() == ["000001.jsonl", "000002.jsonl"]
    assert (remote.location / "metrics.jsonl").read() == elsewhere.metrics.read_bytes()


def write_model(target, text: str) -> None:
    """Write a folder with a file in a sub-folder, through `replacing`."""
    with replacing(target) as folder:
        (folder / "sub").mkdir()
        (folder / "config.json").write_text(text)
        (folder / "sub/weights").write_text("w")


def test_an_export_in_a_bucket_is_fetched_once_per_version(remote):
    target = remote.export("sft")
    write_model(target, "{}")
    assert str(target) == remote.resolve("{run}/sft/export")
    local = Path(fetch(str(target)))
    assert (local / "sub/weights").read_text() == "w"
    assert fetch(str(target)) == str(local), "once per node"
    write_model(target, '{"new": 1}')
    assert (Path(fetch(str(target))) / "config.json").read_text() == '{"new": 1}'


def test_an_export_that_fails_leaves_the_previous_one(run):
    target = run.export("ppo")
    write_model(target, "old")
    with pytest.raises(OSError, match="full"), replacing(target) as folder:
        (folder / "config.json").write_text("half")
        raise OSError("disk full")
    assert (target.local / "config.json").read_text() == "old"
    write_model(target, "new")
    assert (target.local / "config.json").read_text() == "new"
    assert [path.name for path in target.local.parent.iterdir() if path.name.startswith(".tmp")] == []


def test_fetch_returns_paths_and_hub_names_unchanged(tmp_path):
    assert fetch(str(tmp_path)) == str(tmp_path) and fetch("org/model-7b") == "org/model-7b"
    with pytest.raises(FileNotFoundError, match="no files there"):
        fetch(f"fsspec+memory:///{uuid.uuid4().hex}/none")


def test_a_location_reads_writes_and_removes_files(tmp_path):
    location = locate(tmp_path) / "a/b"
    (location / "c.txt").write(b"hello")
    assert location.children() == ["c.txt"] and location.files()["c.txt"].size == 5
    assert (location / "c.txt").read() == b"hello" and location.name == "b"
    location.remove()
    assert not location.exists() and location.children() == [] and location.files() == {}
    location.remove()
