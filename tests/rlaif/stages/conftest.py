"""A small world, an untrained model and a reward model, made once; PPO runs on the real libraries over them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.config.load import load_config
from rlaif.config.schema import Config
from rlaif.models.tiny import build_tiny
from rlaif.worlds.shapes.dataset import add_captions, write_dataset
from rlaif.worlds.shapes.language import WORDS

SETTINGS = """
name: run
storage: {storage}
data: {{root: {world}/data}}
video: {{num_frames: 8}}
model: {{dtype: float32, device: cpu}}
sft: {{init: {world}/base, steps: 2, batch_size: 4, train_vision: true, train_projector: true}}
reward: {{init: {world}/base, lora: {{r: 4, alpha: 4}}, steps: 2, batch_size: 4, eval_every: 2}}
ppo:
  policy: {world}/base
  reward: {{path: "rlaif.worlds.shapes.checker:reward"}}
  lora: {{r: 4, alpha: 4}}
  iterations: 2
  prompts_per_iteration: 4
  samples_per_prompt: 2
  minibatch_size: 8
  sampling: {{max_tokens: 12}}
  optim: {{lr: 1.0e-2}}
  critic_optim: {{lr: 1.0e-2}}
  save: {{every: 1}}
rollout: {{max_model_len: 256, cpu_kv_cache_gib: 0.1}}
eval: {{max_tokens: 12}}
logging: {{wandb: off}}
cluster: {{object_store_gib: 0.3, learner: {{actors: 1}}}}
"""


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """Folder with data/ and base/."""
    folder = tmp_path_factory.mktemp("world")
    write_dataset(folder / "data", {"train": 8, "prompt": 8, "test": 4}, seed=3)
    for name in ("prompts", "eval"):
        add_captions(folder / "data" / f"{name}.jsonl")
    build_tiny(folder / "base", WORDS, seed=3)
    rows = [json.loads(line) for line in (folder / "data" / "prompts.jsonl").read_text().splitlines()]
    kept = ("video", "question", "captions")
    pairs = [
        {"pair_id": str(i), **{name: row[name] for name in kept}, "chosen": row["answer"], "rejected": "no"}
        for i, row in enumerate(rows)
    ]
    (folder / "data" / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


@pytest.fixture(scope="session")
def make_config(world):
    """make_config(folder, *overrides) -> Config of a run stored below `folder`."""

    def make(folder: Path, *overrides: str) -> Config:
        file = folder / "config.yaml"
        file.write_text(SETTINGS.format(storage=folder / "runs", world=world))
        return load_config(file, list(overrides))

    return make


@pytest.fixture(scope="session")
def metrics_of():
    """metrics_of(run folder) -> rows of stage ppo in metrics.jsonl."""

    def read(folder: Path, stage: str = "ppo") -> list[dict]:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [row for row in rows if row["stage"] == stage]

    return read


@pytest.fixture(scope="session")
def samples_of():
    """samples_of(run folder, iteration) -> rows of its samples file."""

    def read(folder: Path, iteration: int) -> list[dict]:
        return [json.loads(line) for line in (folder / "samples" / f"{iteration:06d}.jsonl").read_text().splitlines()]

    return read
