"""Reward model and PPO under the seed system's preset, end to end on the real libraries."""

from __future__ import annotations

import json

import pytest

from rlaif.stages.run.run import open_run
from rlaif.stages.train import ppo, reward


@pytest.mark.slow
def test_reward_model_and_ppo_under_the_preset(make_config, tmp_path, metrics_of, samples_of):
    overrides = ["reward.preset=vlm_rlaif", "ppo.preset=vlm_rlaif", "ppo.reward={run}/reward/export"]
    config = make_config(tmp_path, *overrides)
    with open_run(config) as run:
        reward.train(config, run)
        ppo.train(config, run)
    folder = tmp_path / "runs" / "run"
    trained = metrics_of(folder, "reward")
    assert trained[0]["train/lr"] == 0 and max(row["iteration"] for row in trained) == 2  # one pass over 7 or 8 pairs
    card = json.loads((folder / "reward" / "export" / "reward.json").read_text())
    assert card["prompt"]["verdict"] == config.reward.verdict and card["prompt"]["evaluation_turn"]

    first, second = metrics_of(folder)
    assert (first["policy/lr"], first["critic/lr"]) == (0, 0)  # the warm-up counts iterations, from 0
    assert second["policy/lr"] == pytest.approx(config.ppo.optim.lr / 5)
    assert second["kl/response"] == pytest.approx(0, abs=1e-4)  # so the first iteration changed nothing
    ends = set()
    for iteration in (1, 2):
        for row in samples_of(folder, iteration):
            parts = dict(row["reward"])
            assert parts.pop("value") == pytest.approx(sum(parts.values()))
            assert parts["no_eos"] == (0 if row["finish_reason"] == "stop" else -8)
            assert -10 <= parts["length"] < 0 and (row["finish_reason"] == "cut") == ("?" in row["response"])
            ends.add(row["finish_reason"])
    assert len(ends) > 1
