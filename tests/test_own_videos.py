"""The commands of the README, from twelve clips in an empty folder to a policy trained with PPO."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif.cli import main
from rlaif.config.load import load_config
from rlaif.models.tiny import build_tiny

ROOT = Path(__file__).parents[1]


def make_files():
    """Import the module that writes clips and rows, which the script runs as well."""
    spec = importlib.util.spec_from_file_location("make_files", ROOT / "tests" / "own_videos" / "make_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_check_names_missing_files_and_passes_when_they_exist(tmp_path, capsys):
    """It names all missing files at once."""
    mine = tmp_path / "mine"
    build_tiny(tmp_path / "model", ["a"], seed=0)
    assert main.main(["init", str(mine), "--model", str(tmp_path / "model")]) == 0
    assert main.main(["check", str(mine / "rlaif.yaml")]) == 1
    output = capsys.readouterr().out
    for name in ("prompts", "sft", "pairs"):
        assert f"no file at {mine}/{name}.jsonl" in output
    (mine / "rlaif.yaml").rename(tmp_path / "written.yaml")
    mine.rmdir()
    make_files().write_files(mine)
    assert main.main(["check", str(tmp_path / "written.yaml")]) == 0
    output = capsys.readouterr().out
    assert "sft -> reward -> ppo -> eval" in output and "no problems found" in output
    assert output.rstrip().splitlines()[-1] == f"next:  rlaif sft {tmp_path / 'written.yaml'}"


@pytest.mark.slow
@pytest.mark.timeout(1600)
def test_ppo_runs_on_twelve_own_clips(tmp_path):
    """No command of the script ends with a configuration error."""
    mine = tmp_path / "mine"
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"}
    command = ["bash", str(ROOT / "tests" / "own_videos.sh"), str(mine)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "ConfigError" not in result.stderr
    config = load_config(mine / "rlaif.yaml")
    run = Path(config.storage) / config.name
    assert (run / "export" / "adapter_config.json").exists() and (run / "eval" / "ppo.json").exists()
    assert len(list((run / "samples").glob("*.jsonl"))) == config.ppo.iterations
