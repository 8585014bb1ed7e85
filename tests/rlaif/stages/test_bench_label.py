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
    result = bench_label.label_figures(rounds)
    assert result["answers_per_s"] == 4.0 and result["baseline_answers_per_s"] == 0.8
    assert [result[f"label_speedup{name}"] for name in ("", "_lowest", "_highest")] == [4.0, 2.5, 16.0]
    assert result["questions_per_s"] == 12.0 and result["baseline_questions_per_s"] == pytest.approx(2.4)
    assert (
        result["cached_share"] == 0.75 and result["tokens_per_question"] == 100 and result["questions_per_answer"] == 3
    )
    assert result["log_odds_difference"] == 3e-6 and result["rounds"] == 3


@pytest.mark.slow
def test_both_judges_agree_and_the_engine_reuses_prefixes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench_label, "BENCH_MODEL", Size(frames_per_patch=2))
    file = tmp_path / "bench.json"
    small = ["bench.rounds=2", "bench.prompts=2", "candidates.per_model=3", "rollout.cpu_kv_cache_gib=0.2"]
    arguments = ["configs/bench_label.yaml", f"storage={tmp_path}/runs", *small]
    assert main(["bench", "label", *arguments, "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert min(result[name] for name in ("label_speedup", "answers_per_s", "baseline_answers_per_s")) > 0
    assert result["log_odds_difference"] < 1e-3 and result["questions_per_answer"] == 2.0
    assert result["cached_share"] > 0.5
    assert "| label_speedup |" in capsys.readouterr().out


def test_the_label_benchmark_rejects_the_claims_method(tmp_path, capsys):
    arguments = ["configs/bench_label.yaml", f"storage={tmp_path}", "label.method=claims"]
    assert main(["bench", "label", *arguments]) == 1
    assert ConfigError.__name__ in capsys.readouterr().err
