"""The figures of `rlaif bench label` from known rounds, and the whole of it on a tiny model."""

from __future__ import annotations

import json

import pytest

from rlaif.cli.main import main
from rlaif.errors import ConfigError
from rlaif.models.tiny import Size
from rlaif.stages.recipes import bench_label


def one_round(seconds: float, baseline: float, **changes) -> dict:
    counts = {"answers": 8, "questions": 24, "prompt_tokens": 2400, "cached_tokens": 1800}
    return {"seconds": seconds, "baseline_seconds": baseline, **counts, "log_odds_difference": 1e-6, **changes}


def test_figures_are_medians_without_the_first_round():
    rounds = [one_round(99, 1), one_round(2, 8), one_round(4, 10), one_round(1, 16, log_odds_difference=3e-6)]
    found = bench_label.figures(rounds)
    assert found["answers_per_s"] == 4.0 and found["baseline_answers_per_s"] == 0.8
    assert [found[f"label_speedup{name}"] for name in ("", "_lowest", "_highest")] == [4.0, 2.5, 16.0]
    assert found["questions_per_s"] == 12.0 and found["baseline_questions_per_s"] == pytest.approx(2.4)
    assert found["cached_share"] == 0.75 and found["tokens_per_question"] == 100 and found["questions_per_answer"] == 3
    assert found["log_odds_difference"] == 3e-6 and found["rounds"] == 3


@pytest.mark.slow
def test_both_judges_say_the_same_and_the_engine_finds_prefixes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_label, "MODEL", Size(frames_per_patch=2))
    file = tmp_path / "bench.json"
    small = ["bench.rounds=2", "bench.prompts=2", "candidates.per_model=3", "rollout.cpu_kv_cache_gib=0.2"]
    arguments = ["configs/bench_label.yaml", f"storage={tmp_path}/runs", *small]
    assert main(["bench", "label", *arguments, "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert min(found[name] for name in ("label_speedup", "answers_per_s", "baseline_answers_per_s")) > 0
    assert found["log_odds_difference"] < 1e-3 and found["questions_per_answer"] == 2.0
    assert found["cached_share"] > 0.5
    assert "| label_speedup |" in capsys.readouterr().out


def test_only_two_answers_side_by_side_are_compared(tmp_path, capsys):
    arguments = ["configs/bench_label.yaml", f"storage={tmp_path}", "label.method=claims"]
    assert main(["bench", "label", *arguments]) == 1
    assert ConfigError.__name__ in capsys.readouterr().err
