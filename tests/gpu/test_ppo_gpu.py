"""Test PPO on GPUs: one device shared by all roles, bfloat16, NCCL, adapters and full weights."""

from __future__ import annotations

import json

import pytest
import torch

from rlaif.config.load import load_config
from rlaif.models.tiny import build_tiny
from rlaif.stages.run.run import open_run
from rlaif.stages.train import ppo
from rlaif.worlds.shapes.dataset import write_dataset
from rlaif.worlds.shapes.language import WORDS

SETTINGS = """
name: run
storage: {folder}/runs
data: {{root: {folder}/data}}
model: {{dtype: {dtype}, device: cuda}}
ppo:
  policy: {folder}/base
  reward: {{path: "rlaif.worlds.shapes.checker:reward"}}
  lora: {lora}
  iterations: 2
  prompts_per_iteration: 4
  samples_per_prompt: 2
  minibatch_size: 8
  sampling: {{max_tokens: 12}}
rollout: {{max_model_len: 512, gpu_memory_utilization: 0.3}}
logging: {{wandb: off}}
cluster:
  rollout: {{gpus: 0.4}}
  reward: {{gpus: 0.2}}
  learner: {{actors: 1, gpus: 0.4}}
  zero_stage: {zero}
"""


def trained(folder, *overrides, lora="null", dtype="bfloat16", zero=2) -> list[dict]:
    """Train two iterations, with the parity gate after each publish; return the rows of metrics.jsonl."""
    write_dataset(folder / "data", {"train": 2, "prompt": 8, "test": 2}, seed=0)
    build_tiny(folder / "base", WORDS)
    file = folder / "config.yaml"
    file.write_text(SETTINGS.format(folder=folder, lora=lora, dtype=dtype, zero=zero))
    config = load_config(file, ["ppo.parity.every=1", *overrides])
    with open_run(config) as run:
        ppo.train(config, run)
    rows = [json.loads(line) for line in (folder / "runs" / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2]
    return rows


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("lora", ["{r: 8, alpha: 8}", "null"])
@pytest.mark.parametrize(("dtype", "zero"), [("float32", 2), ("bfloat16", 2), ("bfloat16", 3)])
def test_a_run_on_one_shared_gpu(tmp_path, lora, dtype, zero):
    rows = trained(tmp_path, lora=lora, dtype=dtype, zero=zero)
    drift = 1e-3 if dtype == "float32" else 0.1
    assert all(abs(row["policy/importance"] - 1.0) < drift for row in rows if "policy/importance" in row)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sleep", [0, 1, 2])
@pytest.mark.parametrize("zero", [2, 3])
def test_weights_go_over_ipc_to_an_engine_on_the_same_gpu(tmp_path, zero, sleep):
    rows = trained(tmp_path, "rollout.transport=ipc", f"rollout.sleep_level={sleep}", zero=zero)
    assert all(row["publish/rerouted"] == 0 for row in rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_an_engine_with_adapters_sleeps_during_the_update(tmp_path):
    trained(tmp_path, "rollout.sleep_level=1", lora="{r: 8, alpha: 8}")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 3, reason="needs three GPUs: two learner ranks and an engine")
@pytest.mark.parametrize("zero", [2, 3])
def test_weights_go_over_nccl_to_engines_on_other_gpus(tmp_path, zero):
    placed = ["cluster.learner.actors=2", "cluster.learner.gpus=1", "cluster.rollout.gpus=1", "cluster.reward.gpus=0"]
    rows = trained(tmp_path, "rollout.transport=nccl", *placed, zero=zero)
    assert all(row["publish/rerouted"] == 0 for row in rows)
