"""The lines of docs/cluster.md, typed unchanged in a copy of the checkout: a head, a token, a job."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlaif.models.tiny import build_tiny
from rlaif.worlds.shapes.dataset import write_dataset
from rlaif.worlds.shapes.language import WORDS

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "cluster.md").read_text()
CONFIG = """
name: job
data: {{root: {folder}/data}}
model: {{dtype: float32, device: cpu}}
sft: {{init: {folder}/base, steps: 2, batch_size: 2}}
cluster: {{learner: {{actors: 1}}}}
logging: {{wandb: off}}
"""


def lines() -> list[str]:
    """Return the guide's shell lines."""
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE, flags=re.DOTALL)
    return "\n".join(blocks).splitlines()


def line(words: str) -> str:
    """Return the only shell line that contains `words`."""
    (only,) = [line for line in lines() if words in line]
    return only


def test_the_guide_names_the_interpreter_and_keeps_the_log_outside():
    job = line("job submit")
    assert '-- "$PWD/.venv/bin/python" -m rlaif' in job and "> ~/" in job and "storage=/" in job
    assert all("RAY_AUTH_MODE=token" in text for text in lines() if "ray start" in text or "job" in text)


NOT_YET = "No available agent to submit job"
"""Ray's error if the head's dashboard is up before its agent (docs/cluster.md tells users to wait)."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """Return a copy of the checkout with its environment, beside a home without a token."""
    clone = tmp_path / "clone"
    for name in ("rlaif", "actors", "learners", "cluster"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".gitignore", clone)
    (clone / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "ray"):
        script = clone / ".venv" / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{Path(sys.executable).parent}/{name}" "$@"\n')
        script.chmod(0o755)
    (tmp_path / "home").mkdir()
    return clone


@pytest.mark.slow
def test_the_lines_of_the_guide_run_a_job(checkout, tmp_path):
    write_dataset(tmp_path / "data", {"train": 4, "prompt": 1, "test": 1}, seed=3)
    build_tiny(tmp_path / "base", WORDS, seed=3)
    (checkout / "job.yaml").write_text(CONFIG.format(folder=tmp_path))
    # no activated environment, and nothing of this session's cluster
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "VIRTUAL_ENV"))}
    environment |= {"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "RAY_TMPDIR": "/tmp"}
    environment.pop("PYTHONPATH", None)
    port, dashboard = free_port(), free_port()

    def typed(text: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            text, shell=True, cwd=checkout, env=environment, capture_output=True, text=True, **options
        )

    assert typed(line("get-auth-token"), timeout=120).returncode == 0
    # --block keeps the head below this process, so that no other Ray of this machine is touched when it ends
    more = f" --block --port {port} --dashboard-port {dashboard} --num-cpus 4 --object-store-memory 200000000"
    head = subprocess.Popen(
        line("--head") + more,
        shell=True,
        cwd=checkout,
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 300
        wait_for(dashboard)
        job = line("job submit").replace("HEAD:8265", f"127.0.0.1:{dashboard}")
        job = re.sub(r"ppo configs/\S+ storage=\S+", f"sft job.yaml storage={tmp_path}/runs", job)
        result, log = typed(job, timeout=480), tmp_path / "home" / "rlaif-job.log"
        while NOT_YET in log.read_text() and time.monotonic() < deadline:
            time.sleep(1)
            result = typed(job, timeout=480)
        log = log.read_text()
        assert result.returncode == 0, log[-3000:]
        assert (tmp_path / "runs" / "job" / "sft" / "export" / "config.json").exists()
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)


def wait_for(port: int, seconds: float = 120.0) -> None:
    """Wait until something listens."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=2).close()
        except OSError:
            time.sleep(1)
    raise TimeoutError(f"nothing listens at port {port}")
