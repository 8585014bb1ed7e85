"""Killed and resumed is the same run: the same bits, the same samples, no prompt lost or used twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml
from safetensors.numpy import load_file

from rlaif.stages.run.run import open_run
from rlaif.stages.train import reward, supervised

ROOT = Path(__file__).parents[3]
EXACT = ["deterministic=true", "ppo.iterations=4", "ppo.kl.controller=adaptive", "ppo.epochs=2"]
EXACT += ["ppo.save.every=2", "ppo.parity.every=1", "cluster.learner.actors=2"]
OF_A_PROCESS = ("time/", "timeline/", "frames/", "vision/")
"""Metrics that count or time what one process has done since it began."""
PACE = 1.0
"""Seconds between looks at a run's files."""


def start(file: Path, *arguments: str) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "rlaif", "ppo", str(file), *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors.decode()[-3000:]


def wait_until(process: subprocess.Popen, there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not there():
        assert process.poll() is None, process.stderr.read().decode()[-3000:]
        assert time.monotonic() < deadline, "nothing to wait for"
        time.sleep(PACE / 10)


def kill_when(process: subprocess.Popen, there: Callable[[], bool]) -> None:
    """SIGKILL to the whole session, driver and actors, once something is there."""
    wait_until(process, there)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _kill_orphans(process.pid)


def _kill_orphans(session: int) -> None:
    """Wait for those of the session that do not die at once."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and _ray_alive(session):
        time.sleep(PACE)


def _ray_alive(session: int) -> bool:
    result = subprocess.run(["ps", "-eo", "sid"], capture_output=True, text=True, check=True).stdout.split()
    return str(session) in result


def has_row(metrics: Path, iteration: int) -> bool:
    return metrics.is_file() and f'"iteration": {iteration},' in metrics.read_text()


def write(config, folder: Path) -> Path:
    file = folder / "resolved.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return file


def weights(folder: Path, iteration: int) -> dict[str, bytes]:
    """Every trained tensor and optimizer moment of a checkpoint, by name."""
    return tensors(folder / "checkpoints" / f"{iteration:06d}")


def tensors(folder: Path) -> dict[str, bytes]:
    result = {}
    for file in sorted(folder.rglob("*.safetensors")):
        result |= {f"{file.name}/{name}": array.tobytes() for name, array in load_file(file).items()}
    return result


def learner_state(folder: Path, iteration: int) -> dict:
    meta = json.loads((folder / "checkpoints" / f"{iteration:06d}" / "manifest.json").read_text())["meta"]
    files = sorted((folder / "checkpoints" / f"{iteration:06d}").rglob("*.json"))
    roles = {file.name: json.loads(file.read_text()) for file in files if file.name in ("policy.json", "critic.json")}
    assert len(roles) == 2
    return {name: meta[name] for name in ("learner", "best", "gate")} | roles


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["{r: 4, alpha: 4}", "null"], ids=["lora", "full"])
def test_a_killed_and_resumed_run_has_the_bits_of_an_uninterrupted_run(
    make_config, tmp_path, lora, samples_of, metrics_of
):
    folders = {}
    for name in ("whole", "cut"):
        config = make_config(tmp_path, f"name={name}", f"ppo.lora={lora}", *EXACT)
        folders[name] = Path(config.storage) / name
        file = write(config, tmp_path)
        if name == "cut":
            kill_when(start(file), partial(has_row, folders[name] / "metrics.jsonl", 3))
            assert not (folders[name] / "checkpoints" / "000004").exists()
            assert samples_of(folders[name], 3)  # and a row: both have to be cut back to iteration 2
        finish(start(file, *(["--resume"] if name == "cut" else [])))
    whole, cut = folders["whole"], folders["cut"]
    a, b = weights(whole, 4), weights(cut, 4)
    assert a.keys() == b.keys() and len([name for name in a if "exp_avg" in name]) > 10
    assert [name for name in a if a[name] != b[name]] == []
    assert learner_state(whole, 4) == learner_state(cut, 4)
    for iteration in range(1, 5):
        assert samples_of(whole, iteration) == samples_of(cut, iteration)
    for folder in (whole, cut):
        assert [row["iteration"] for row in metrics_of(folder)] == [1, 2, 3, 4]
    quiet = ("time", "publish/seconds", "publish/apply_seconds", "rollout/tokens_per_s")
    for x, y in zip(metrics_of(whole), metrics_of(cut), strict=True):
        different = [n for n in x if x[n] != y[n] and n not in quiet and not n.startswith(OF_A_PROCESS)]
        assert set(different) <= {"ledger/reissued"}


@pytest.mark.slow
def test_resume_with_a_batch_in_flight_loses_and_repeats_no_prompt(make_config, tmp_path, samples_of, metrics_of):
    config = make_config(
        tmp_path, "ppo.max_staleness=1", "ppo.iterations=4", "ppo.advantage=leave_one_out", "ppo.prompts_per_iteration=2",
        "ppo.minibatch_size=4",
    )  # fmt: skip
    folder = Path(config.storage) / config.name
    file = write(config, tmp_path)
    kill_when(start(file), (folder / "checkpoints" / "000002").is_dir)
    finish(start(file, "--resume"))
    used = [row["prompt_id"] for i in (1, 2, 3, 4) for row in samples_of(folder, i) if row["sample_index"] == 0]
    assert len(used) == len(set(used)) == 8  # one epoch over eight prompts
    last = metrics_of(folder)[-1]
    assert last["ledger/trained"] == 16 and last["ledger/masked"] == 0 and last["ledger/open"] == 0
    assert last["ledger/reissued"] == 4  # iteration 3's samples were in flight when the run died


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_a_new_start_that_is_killed_costs_nothing(
    make_config, tmp_path, metrics_of, monkeypatch, request
):
    temporary = Path(tempfile.mkdtemp(prefix="rl-", dir="/tmp"))  # Ray's sockets need a short path
    request.addfinalizer(partial(shutil.rmtree, temporary, ignore_errors=True))
    config = make_config(
        tmp_path, "ppo.advantage=leave_one_out", "ppo.save={every: 0, keep: 2}", "data.eval=none.jsonl"
    )
    folder, file = Path(config.storage) / config.name, write(config, tmp_path)
    monkeypatch.setenv("TMPDIR", str(temporary))
    process = start(file, "ppo.iterations=500")
    wait_until(process, partial(has_row, folder / "metrics.jsonl", 1))
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    told = told.decode()
    (saved,) = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    assert process.returncode == 143 and f"--resume continues from the checkpoint of iteration {saved}" in told
    assert "***" not in told and "Traceback" not in told
    assert [row["iteration"] for row in metrics_of(folder)][-1] == saved
    assert [path.name for path in temporary.iterdir() if path.name.startswith(("vllm_dist_", "rlaif-"))] == []

    before = (folder / "metrics.jsonl").read_bytes()
    kill_when(
        start(file, "--fresh", "ppo.iterations=500"), partial(has_row, folder / "restart-ppo" / "metrics.jsonl", 1)
    )
    assert (folder / "metrics.jsonl").read_bytes() == before
    finish(start(file, "--resume", f"ppo.iterations={saved + 1}"))
    assert [row["iteration"] for row in metrics_of(folder)] == list(range(1, saved + 2))
    again = start(file, "--resume", "ppo.iterations=1")
    _, told = again.communicate(timeout=120)
    assert again.returncode == 0 and "nothing remains to be trained" in told.decode()


class StoppedError(Exception):
    pass


def stop_after(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let the driver die once the metrics of this step are written."""
    usual = supervised._finish_step

    def finish(tracker, done, *args):
        left_out = usual(tracker, done, *args)
        if done == step:
            raise StoppedError
        return left_out

    patch.setattr(supervised, "_finish_step", finish)


REWARD = [
    "deterministic=true",
    "cluster.learner.actors=2",
    "reward.steps=4",
    "reward.save={every: 2, keep: 2}",
    "reward.eval_every=2",
]
REWARD += ["reward.eval_fraction=0.5", "reward.optim={lr: 1.0e-2, schedule: cosine, warmup_steps: 2}"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lora", "which"),
    [("{r: 4, alpha: 4, dropout: 0.2}", "best"), ("null", "last")],
    ids=["lora with dropout", "full"],
)
def test_a_resumed_reward_model_equals_that_of_an_uninterrupted_run(make_config, tmp_path, lora, which, metrics_of):
    """Four steps, and the same four with an end after the third: the checkpoint of step 2 is where it goes on. The best one
    may have come before the end."""
    configs = {
        name: make_config(tmp_path, f"name={name}", f"reward.lora={lora}", f"reward.export={which}", *REWARD)
        for name in ("whole", "cut")
    }
    whole, cut = (Path(config.storage) / name for name, config in configs.items())
    with open_run(configs["whole"]) as run:
        reward.train(configs["whole"], run)
    with open_run(configs["cut"]) as run, pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        stop_after(3, patch)
        reward.train(configs["cut"], run)
    before = metrics_of(cut, "reward")
    assert [row["iteration"] for row in before] == [1, 2, 2, 3] and not (cut / "reward" / "export").exists()
    with open_run(configs["cut"]) as run:
        assert run.checkpoints("reward", 1).latest().iteration == 2
        export = reward.train(configs["cut"], run, "resume")
    after = metrics_of(cut, "reward")
    assert [row["iteration"] for row in after] == [1, 2, 2, 3, 4, 4]
    assert after[:3] == before[:3]  # nothing before the checkpoint is done again
    assert after[3]["time"] > before[3]["time"]
    for x, y in zip(metrics_of(whole, "reward"), after, strict=True):
        assert {name: x[name] for name in x if name != "time"} == {name: y[name] for name in y if name != "time"}
    a, b = weights(whole / "reward", 4), weights(cut / "reward", 4)
    assert a.keys() == b.keys() and len([name for name in a if "exp_avg" in name]) > 10
    assert [name for name in a if a[name] != b[name]] == []
    earlier = weights(whole / "reward", 2)
    assert earlier.keys() == a.keys() and earlier != a
    metas = [json.loads((f / "reward/checkpoints/000004/manifest.json").read_text())["meta"] for f in (whole, cut)]
    for meta in metas:
        del meta["config"]  # the two runs have different names
        del meta["directory"]
    assert metas[0] == metas[1]
    exported = tensors(whole / "reward" / "export")
    assert Path(export) == cut / "reward" / "export" and len(exported) > 2 and exported == tensors(Path(export))
