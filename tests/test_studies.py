"""`make study NAME`: a study's figures become a record that says how they were made."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STUDY = """
import argparse, sys
from common import write_figures
parser = argparse.ArgumentParser()
parser.add_argument("--bad", action="store_true")
sys.exit(write_figures(lambda args: {"accuracy": 0.5, "passed": not args.bad}, parser))
"""


@pytest.fixture
def common(tmp_path, monkeypatch):
    """The runner, with a folder that holds one study, `half-true`."""
    spec = importlib.util.spec_from_file_location("study_runner", ROOT / "tests" / "studies" / "common.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "common.py").write_text((ROOT / "tests" / "studies" / "common.py").read_text())
    (tmp_path / "half_true.py").write_text(STUDY)
    (tmp_path / "broken.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(module, "STUDIES", tmp_path)
    return module


@pytest.mark.parametrize("name", ["half-true", "half_true"])
def test_a_study_is_recorded(common, tmp_path, name):
    assert common.run_study(name, [], tmp_path / "records") == 0
    record = json.loads((tmp_path / "records" / "half-true.json").read_text())
    assert record["command"] == "make study half-true" and record["figures"] == {"accuracy": 0.5, "passed": True}
    assert record["minutes"] >= 0 and record["libraries"]["torch"] and record["commit"]
    assert {"cores", "memory_gib", "cpu"} <= record["machine"].keys()
    assert os.uname().nodename not in json.dumps(record["machine"])


@pytest.mark.parametrize(
    ("name", "arguments", "status"), [("half-true", ["--bad"], 1), ("broken", [], 3), ("absent", [], 2)]
)
def test_a_study_that_fails_is_not_recorded(common, tmp_path, name, arguments, status):
    assert common.run_study(name, arguments, tmp_path / "records") == status
    assert not (tmp_path / "records").exists()


def test_every_study_takes_json():
    folder = ROOT / "tests" / "studies"
    studies = [file for file in sorted(folder.glob("*.py")) if file.stem not in ("common", "bases")]
    assert studies
    for file in studies:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run([sys.executable, str(file), "--help"], capture_output=True, text=True, env=environment)
        assert result.returncode == 0 and "--json" in result.stdout, result.stderr
