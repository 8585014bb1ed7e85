"""How a command ends when it is told to, or when its cluster's head goes: exit code, last words, and in time.

The command line is the real one, in a process of its own with a private cluster; the stage is replaced by a few lines.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]

STAGE = """
import os, signal, sys, time
import psutil, ray
from rlaif.cli import main as cli, stages
from rlaif.stages.preflight import examine
from rlaif.stages.run.run import open_run
from rlaif.io.terminal import say

@ray.remote(num_cpus=0)
def sleep():
    time.sleep(600)

def end_head():
    for process in psutil.Process().children():
        if "gcs_server" in process.name():
            process.kill()
            process.wait(timeout=10)  # its port answers until then

def stage(stage, config, typed, start):
    with open_run(config) as run:
        {body}

stages.start_stage, examine.require = stage, lambda *_: None
sys.exit(cli.main(["sft", {file!r}]))
"""
WAITING = "say('waiting'); ray.get(sleep.remote(), timeout=300)"


@pytest.fixture
def command(tmp_path):
    """command(body) starts the command; the body runs where a stage would."""
    file = tmp_path / "run.yaml"
    file.write_text(f"name: run\nstorage: {tmp_path}\ncluster: {{object_store_gib: 0.1}}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    started = []

    def start(body: str, file: Path = file) -> subprocess.Popen:
        script = STAGE.format(body=body, file=str(file))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment["PYTHONPATH"] = str(ROOT)
        started.append(
            subprocess.Popen([sys.executable, "-c", script], env=environment, start_new_session=True, **pipes)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()


def wait_for(process: subprocess.Popen, word: str) -> None:
    for line in process.stdout:
        if line == f"{word}\n":
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize(
    ("signum", "whole_group", "code"),
    [
        (signal.SIGTERM, False, 143),
        pytest.param(signal.SIGINT, True, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, 143, marks=pytest.mark.slow),  # as schedulers send it
    ],
)
def test_a_signal_ends_the_command_with_its_exit_code_and_a_hint_only(command, signum, whole_group, code):
    process = command(WAITING)
    wait_for(process, "waiting")
    (os.killpg if whole_group else os.kill)(process.pid, signum)
    _, output = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert "interrupted; nothing was saved yet: the same command starts again" in output
    assert "***" not in output and "Traceback" not in output


@pytest.mark.slow
def test_losing_the_head_after_the_work_is_a_warning(command):
    process = command("end_head()")
    _, output = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "everything was done" in output and "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "advised"),
    [
        (
            "ref = sleep.remote(); ray.wait([ref], timeout=2); end_head(); say('waiting'); ray.get(ref, timeout=300)",
            True,
        ),
        # a call that asks the head does not return, and the process is ended under it
        ("end_head(); say('waiting'); ray.get(sleep.remote(), timeout=300)", False),
    ],
    ids=["waiting for an actor", "inside a call to the head"],
)
def test_losing_the_head_during_the_work_is_an_error_within_seconds(command, body, advised):
    process = command(body)
    wait_for(process, "waiting")
    _, output = process.communicate(timeout=40)
    assert process.returncode == 1, output
    assert "HeadLostError: expected a cluster whose head answers" in output and "Traceback" not in output
    assert ("the same command starts again" in output) == advised


@pytest.mark.slow
def test_losing_the_head_after_a_whole_run_keeps_its_export(command, make_config, tmp_path):
    config = make_config(tmp_path, "ppo.iterations=1", "ppo.advantage=leave_one_out", "data.eval=none.jsonl")
    file = tmp_path / "resolved.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    process = command("from rlaif.stages.train import ppo; ppo.train(config, run); end_head()", file)
    _, output = process.communicate(timeout=600)
    assert process.returncode == 0 and "everything was done" in output, output[-3000:]
    assert (tmp_path / "runs" / "run" / "export" / "adapter_model.safetensors").is_file()
