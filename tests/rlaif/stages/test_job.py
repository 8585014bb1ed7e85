"""`ray job submit` against a real head node with token authentication: killed after an iteration, submitted again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.remote import free_port

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent


@pytest.fixture
def head(tmp_path):
    """Environment of a client that may submit jobs to a head node of its own."""
    port, dashboard = free_port(), free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {
        "PATH": f"{BIN}:{env['PATH']}",
        "HOME": str(tmp_path / "home"),
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "OMP_NUM_THREADS": "1",
        # DeepSpeed builds an operator into the user's cache: a new home would build it again
        "TORCH_EXTENSIONS_DIR": env.get("TORCH_EXTENSIONS_DIR", str(Path.home() / ".cache" / "torch_extensions")),
    }
    (tmp_path / "home").mkdir()
    subprocess.run([BIN / "ray", "get-auth-token", "--generate"], env=env, check=True, capture_output=True)
    # a short path: the sockets below it may not exceed 107 bytes
    temporary = Path("/tmp") / f"rlaif-head-{port}"
    command = [BIN / "ray", "start", "--head", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=8"]
    command += [
        f"--temp-dir={temporary}",
        f"--dashboard-agent-listen-port={free_port()}",
        "--object-store-memory=300000000",
    ]
    node = subprocess.Popen([*command, "--block"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: listening(dashboard), 120, "the head node's dashboard")
    yield env | {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
        process.kill()
    node.wait()
    shutil.rmtree(temporary, ignore_errors=True)


def submit(env: dict, config: Path, *arguments: str, wait: bool) -> subprocess.CompletedProcess:
    """As the README prints it."""
    command = [BIN / "ray", "job", "submit", *([] if wait else ["--no-wait"]), "--working-dir", ".", "--"]
    command += ["python", "-m", "rlaif", "ppo", str(config), *arguments]
    result = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=400)
    if "No available agent" in result.stderr:  # the dashboard is up, and the agent of the node not yet
        time.sleep(2)
        return submit(env, config, *arguments, wait=wait)
    return result


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(true, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what} did not come in {seconds} s"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_job_with_two_rollout_actors_runs_is_killed_and_comes_back(
    head, make_config, tmp_path, metrics_of, samples_of
):
    make_config(tmp_path)
    config, folder = tmp_path / "config.yaml", tmp_path / "runs" / "run"
    overrides = ("ppo.iterations=4", "cluster.rollout.actors=2", "ppo.advantage=leave_one_out")
    submitted = submit(head, config, *overrides, wait=False)
    assert submitted.returncode == 0, submitted.stderr
    wait_until((folder / "checkpoints" / "latest.json").exists, 300, "the first checkpoint")
    driver = json.loads((folder / "session.json").read_text())["pid"]
    os.kill(driver, signal.SIGKILL)

    refused = submit(head, config, *overrides, wait=True)
    assert refused.returncode != 0 and "--resume" in refused.stdout

    finished = submit(head, config, *overrides, "--resume", wait=True)
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert [row["iteration"] for row in metrics_of(folder)] == [1, 2, 3, 4]
    assert all(len(samples_of(folder, i)) == 8 for i in (1, 2, 3, 4))
    assert (folder / "export" / "adapter_model.safetensors").is_file()


def test_a_job_that_would_lose_its_files_is_refused(head, make_config, tmp_path):
    make_config(tmp_path)
    refused = submit(head, tmp_path / "config.yaml", "storage=runs", wait=True)
    assert refused.returncode != 0 and "absolute" in refused.stdout


@pytest.mark.slow
def test_a_job_runs_to_its_end(head, make_config, tmp_path, metrics_of):
    make_config(tmp_path)
    config, folder = tmp_path / "config.yaml", tmp_path / "runs" / "run"
    finished = submit(head, config, "ppo.iterations=1", wait=True)
    assert finished.returncode == 0, finished.stdout[-3000:]
    assert [row["iteration"] for row in metrics_of(folder)] == [1]
    assert (folder / "export" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_job_that_is_stopped_says_how_to_go_on(head, make_config, tmp_path):
    make_config(tmp_path)
    config, folder = tmp_path / "config.yaml", tmp_path / "runs" / "run"
    command = [BIN / "ray", "job", "submit", "--no-wait", "--submission-id", "stopped", "--working-dir", ".", "--"]
    command += ["python", "-m", "rlaif", "ppo", str(config), "ppo.iterations=500", "ppo.advantage=leave_one_out"]
    subprocess.run(command, env=head, cwd=ROOT, check=True, capture_output=True, timeout=400)
    wait_until((folder / "checkpoints" / "latest.json").exists, 300, "the first checkpoint")
    subprocess.run([BIN / "ray", "job", "stop", "stopped"], env=head, check=True, capture_output=True, timeout=60)
    told = subprocess.run([BIN / "ray", "job", "logs", "stopped"], env=head, capture_output=True, text=True).stdout
    assert "interrupted; --resume continues from the checkpoint of iteration" in told
    assert "*** SIGTERM" not in told
