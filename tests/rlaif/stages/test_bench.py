"""The benchmark's figures from known rows, and the whole of it on a tiny model."""

from __future__ import annotations

import json

import pytest

from rlaif.cli.main import main
from rlaif.models.tiny import Size
from rlaif.stages.recipes import bench_ppo
from rlaif.stages.recipes.bench_baseline import Times

KEYS = [
    "rollout_speedup",
    "iteration_speedup",
    "padding_waste",
    "vision_passes_per_key",
    "decodes_per_video",
    "publish_share",
    "idle_share",
    "rollout_tokens_per_s",
    "update_tokens_per_s",
]


def row(start: float, **changes) -> dict:
    """An iteration that begins at `start`: 8 answers of 5 tokens each."""
    return {
        "timeline/waited_from": start,
        "time/rollout": 4.0,
        "time/reward_busy": 1.0,
        "time/update": 8.0,
        "time/wait_for_samples": 2.0,
        "publish/seconds": 0.3,
        "publish/apply_seconds": 0.2,
        "publish/bytes": 2e8,
        "response/length": 5.0,
        "waste/padding": 1.1,
        "waste/forwards_per_sample": 2.0,
        "vision/passes_per_key": 1.0,
        "frames/decodes": 6,
        "frames/videos": 6,
        **changes,
    }


def test_figures_are_medians_without_the_first_iteration_and_the_last_row():
    slow = {"time/rollout": 99.0, "time/update": 99.0, "waste/padding": 9.0}
    rows = [row(0, **slow), row(100), row(110), row(120, **{"time/update": 9.0}), row(130, **slow)]
    alone = [Times({"rollout": 99.0}, 1), *[Times({"rollout": 10.0, "reward": 5.0, "update": 25.0}, 20)] * 3]
    found = bench_ppo.figures(rows, alone, 8)
    assert found["rollout_tokens_per_s"] == 40 / 4 and found["rollout_speedup"] == (40 / 4) / (20 / 10)
    assert found["iteration_speedup"] == (40 / 20) / (10 / 40)
    assert found["idle_share"] == pytest.approx(0.2) and found["waiting_rollout"] == pytest.approx(0.6)
    assert found["waiting_reward"] == pytest.approx(0.9) and found["update_tokens_per_s"] == 5.0
    assert found["publish_share"] == pytest.approx(0.05) and found["publish_gb_per_s"] == pytest.approx(1.0)
    assert found["padding_waste"] == 1.1 and found["decodes_per_video"] == 1.0 and found["iteration_seconds"] == 10.0


@pytest.mark.slow
def test_the_benchmark_runs_and_writes_its_keys(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_ppo, "MODEL", Size(frames_per_patch=2))
    small = ["ppo.iterations=4", "ppo.prompts_per_iteration=2", "ppo.samples_per_prompt=2", "ppo.minibatch_size=4"]
    file = tmp_path / "bench.json"
    arguments = ["configs/bench.yaml", f"storage={tmp_path}/runs", *small, "ppo.sampling.max_tokens=24"]
    assert main(["bench", "ppo", *arguments, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert set(KEYS) <= found.keys() and all(found[key] > 0 for key in KEYS if key != "idle_share")
    assert found["vision_passes_per_key"] == 1.0 and found["decodes_per_video"] == 1.0
    assert "| rollout_speedup |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "option"), [("ppo", "data.root"), ("ppo", "ppo.policy"), ("label", "data.root"), ("label", "label.judge")]
)
def test_a_benchmark_writes_nothing_outside_its_run_directory(tmp_path, capsys, kind, option):
    (tmp_path / "prompts.jsonl").write_text("mine")
    config = "configs/bench.yaml" if kind == "ppo" else "configs/bench_label.yaml"
    assert main(["bench", kind, config, f"storage={tmp_path}/runs", f"{option}={tmp_path}"]) == 1
    assert f"{option} below the run directory" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"prompts.jsonl", "runs"}
    assert (tmp_path / "prompts.jsonl").read_text() == "mine"
