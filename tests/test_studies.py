"""`make study NAME`: a study's figures become a record that states how they were made."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

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
    """Return the runner, with a folder that contains the studies `half-true` and `broken`."""
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


@pytest.fixture
def same_bits(monkeypatch):
    """Yield the study `same-bits` as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "studies"))
    spec = importlib.util.spec_from_file_location("same_bits", ROOT / "tests" / "studies" / "same_bits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for shared in ("common", "bases"):
        sys.modules.pop(shared, None)


def write_run(run: Path, *, seconds: float = 1.0, weight: float = 1.0, loss: float = 0.5, answer: str = "two") -> Path:
    """Write a run directory with one file of each kind."""
    for folder in ("sft/export", "samples", "eval"):
        (run / folder).mkdir(parents=True)
    save_file({"head": np.array([weight, 2.0], np.float32)}, run / "sft" / "export" / "model.safetensors")
    metrics = {"stage": "sft", "iteration": 1, "time": seconds, "time/step": seconds, "train/nll": loss}
    metrics |= {"rollout/tokens_per_s": seconds, "publish/apply_seconds": seconds, "vision/hits": seconds}
    (run / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    sample = {"answer": answer, "model": str(run / "sft"), "kind": str(hash(run))}
    (run / "samples" / "000001.jsonl").write_text(json.dumps(sample) + "\n")
    report = {"command": f"rlaif demo storage={run}", "rows": [{"policy": "sft", "time": seconds}]}
    (run / "eval" / "demo.json").write_text(json.dumps(report))
    return run


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, []),
        ({"seconds": 2.0}, []),
        ({"weight": float(np.nextafter(np.float32(1), np.float32(2)))}, ["weights/sft/export/model.safetensors"]),
        ({"loss": float(np.nextafter(0.5, 1))}, ["metrics/sft"]),
        ({"answer": "three"}, ["rows/samples/000001.jsonl"]),
    ],
)
def test_same_bits_reports_a_changed_last_bit_and_ignores_clock_and_path(same_bits, tmp_path, change, names):
    before = same_bits.hashes_of(write_run(tmp_path / "first"))
    after = same_bits.hashes_of(write_run(tmp_path / "second", **change))
    assert same_bits.differences(before, after) == names
    assert len(before) == 5


def test_same_bits_fails_on_a_difference_and_keeps_the_first_commit(same_bits, tmp_path, monkeypatch):
    weights, commits = iter([1.0, 1.0, 3.0, 3.0]), iter("abcd")
    monkeypatch.setattr(same_bits, "run_demo", lambda storage: write_run(storage / "same-bits", weight=next(weights)))
    monkeypatch.setattr(same_bits, "commit", lambda: next(commits))
    record = tmp_path / "record.json"

    def study(new: bool = False) -> dict:
        figures = same_bits.study(argparse.Namespace(new=new, against=record, storage=None))
        if figures["passed"]:
            record.write_text(json.dumps({"figures": figures}))
        return figures

    first, same, changed, new = study(), study(), study(), study(new=True)
    assert [figures["passed"] for figures in (first, same, changed, new)] == [True, True, False, True]
    assert [figures["first"]["commit"] for figures in (first, same, changed, new)] == ["a", "a", "a", "d"]
    assert [figures["this"]["commit"] for figures in (first, same, changed, new)] == ["a", "b", "c", "d"]
    assert changed["differ"] == ["weights/sft/export/model.safetensors"]
    assert same["same_machine_and_libraries"]
