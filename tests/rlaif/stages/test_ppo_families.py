"""PPO end to end for families that the rest of these tests do not use."""

from __future__ import annotations

import pytest
from families import build

from rlaif.models.check import require_model
from rlaif.stages.run.run import open_run
from rlaif.stages.train import ppo

FULL = ("ppo.lora=null", "ppo.train_vision=true", "ppo.train_projector=true")
RUNS = [
    ("llava_next_video", ()),
    ("llava_next_video", FULL),
    ("qwen3_vl", ()),
    ("internvl", ()),
    ("llava_onevision", FULL),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "settings"), RUNS, ids=[f"{name}-{'full' if full else 'lora'}" for name, full in RUNS]
)
def test_the_update_starts_from_the_log_probs_that_were_sampled_with(
    family, settings, make_config, metrics_of, tmp_path
):
    """One update per iteration: its ratios are 1, also in the iteration that samples from published weights. The parity
    gate looks after every publish."""
    path = build(family, tmp_path / "base")
    always = ("rollout.max_model_len=512", "ppo.parity.every=1")
    config = make_config(tmp_path, f"ppo.policy={path}", *settings, *always)
    with open_run(config) as run:
        export = ppo.train(config, run)
    rows = metrics_of(tmp_path / "runs" / "run")
    assert [row["iteration"] for row in rows] == [1, 2]
    for row in rows:
        assert row["policy/ratio_video_p1"] == pytest.approx(1, abs=1e-4)
        assert row["policy/ratio_video_p99"] == pytest.approx(1, abs=1e-4)
        assert max(row["parity/text"], row["parity/after_video"], row["parity/drift_after_video"]) < 1e-4
    assert abs(rows[1]["kl/response"]) > 1e-4  # the weights did change
    if config.ppo.lora is None:
        require_model("the export", export)
