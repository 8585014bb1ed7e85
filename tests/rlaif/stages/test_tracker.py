"""Metrics that stay valid JSON, a W&B mirror that never stops a run, peak memory."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rlaif.config.schema import Config, Logging
from rlaif.io.memory import MemoryWatch
from rlaif.io.rundir import RunDir
from rlaif.stages.run.tracker import Tracker, wandb_mode


def config(wandb: str = "off") -> Config:
    return Config(name="first", logging=Logging(wandb=wandb))


@pytest.fixture
def run(tmp_path) -> RunDir:
    return RunDir(tmp_path, "first")


@pytest.fixture
def logged_out(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path / "netrc"


def rows(run: RunDir) -> list[dict]:
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in run.metrics.read_text().splitlines()]


def test_tracker_writes_rows_with_null_for_nonfinite_values(run):
    before = time.time()
    with Tracker(run, "ppo", config(), total=2) as tracker:
        tracker.log(1, {"reward/mean": np.float32(0.5), "ppo/loss": torch.tensor(2.0), "rollout/samples": 3})
        tracker.log(2, {"reward/mean": float("nan"), "kl/max": math.inf, "ppo/loss": 1.0})
    first, second = rows(run)
    assert before <= first.pop("time") <= time.time()
    assert first == {"stage": "ppo", "iteration": 1, "reward/mean": 0.5, "ppo/loss": 2.0, "rollout/samples": 3}
    assert second["reward/mean"] is None and second["kl/max"] is None and second["tracking/nonfinite"] == 2


def test_each_row_is_on_disk_at_once(run):
    tracker = Tracker(run, "sft", config(), total=2)
    tracker.log(1, {"sft/loss": 1.0})
    assert len(rows(run)) == 1


def test_metric_names_without_a_group_are_rejected(run):
    with pytest.raises(ValueError, match="<group>/<metric>"):
        Tracker(run, "sft", config(), total=1).log(1, {"loss": 1.0})


def test_a_torn_line_of_a_crash_does_not_swallow_the_next(run):
    run.prepare()
    run.metrics.write_text('{"stage": "sft", "iteration": 1}\n{"stage"')
    Tracker(run, "ppo", config(), total=1).log(1, {"a/b": 1})
    assert [row["stage"] for row in rows(run)] == ["sft", "ppo"]


def test_wandb_mode_follows_environment_then_login(logged_out, monkeypatch):
    assert wandb_mode() == "offline"
    logged_out.write_text("machine other.example login user password x\n")
    assert wandb_mode() == "offline"
    logged_out.write_text("machine api.wandb.ai login user password x\n")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example:8080")
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode() == "disabled"


def test_wandb_offline_keeps_its_id_on_resume(run, logged_out):
    """Without a login nothing is asked, files lie under the run, and a resume continues the same W&B run."""
    for iteration in (1, 2):
        with Tracker(run, "ppo", config("auto"), total=2, done=iteration - 1) as tracker:
            tracker.log(iteration, {"reward/mean": float("nan"), "kl/mean": 0.5})
    (stage, wandb_id), *others = json.loads((run.path / "wandb_id.json").read_text()).items()
    assert stage == "ppo" and not others
    assert len(list((run.path / "wandb").glob(f"offline-run-*{wandb_id}*/run-{wandb_id}.wandb"))) == 2


def test_a_wandb_failure_is_one_warning(run, logged_out, monkeypatch, caplog):
    import wandb

    class Broken:
        def define_metric(self, *_, **__):
            pass

        def log(self, *_):
            raise ConnectionError("no route")

    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    with Tracker(run, "ppo", config("auto"), total=3) as tracker:
        for iteration in (1, 2, 3):
            tracker.log(iteration, {"a/b": iteration})
    assert len(rows(run)) == 3
    assert [r.getMessage() for r in caplog.records] == [
        "W&B could not log and is off from here (ConnectionError: no route)"
    ]


def test_a_wandb_start_failure_is_one_warning(run, logged_out, monkeypatch, caplog):
    import wandb

    def fail(**_):
        raise RuntimeError("service did not start")

    monkeypatch.setattr(wandb, "init", fail)
    with Tracker(run, "ppo", config("auto"), total=1) as tracker:
        tracker.log(1, {"a/b": 1})
    assert len(rows(run)) == 1 and "could not start" in caplog.text


def test_memory_watch_sees_children_while_they_live():
    script = "import sys, time; block = bytearray(200 * 2**20); print('ready', flush=True); sys.stdin.read()"
    watch = MemoryWatch(interval_s=0.05)
    with watch:
        alone = watch.sample()
        child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout.readline() == b"ready\n"
        assert watch.sample() - alone > 190 * 2**20
        child.communicate()
    assert watch.peak_gib > (alone + 190 * 2**20) / 2**30
    assert watch.sample() < alone + 100 * 2**20, "the peak stays, the footprint does not"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs proportional set sizes")
def test_memory_shared_between_processes_counts_once():
    script = """
import mmap, os, sys
shared = mmap.mmap(-1, 200 * 2**20)
shared[:] = bytes(len(shared))
pid = os.fork()
sum(shared[::4096])
print('ready', flush=True)
sys.stdin.read()
if pid:
    os.wait()
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert [child.stdout.readline(), child.stdout.readline()] == [b"ready\n"] * 2
    assert 190 < MemoryWatch(roots=[child.pid]).sample() / 2**20 < 300
    child.communicate()


def test_memory_watch_ignores_a_process_that_has_ended():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert MemoryWatch(roots=[gone.pid]).sample() == 0
