"""`rlaif demo`, every stage of configs/demo.yaml at a small size: what its feedback may know, and what it prints."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from rlaif.cli import main
from rlaif.config.load import load_config
from rlaif.models.check import require_model
from rlaif.models.vlm import load_vlm
from rlaif.stages.recipes import demo
from rlaif.stages.run.run import open_run

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
SMALL = (
    "logging.wandb=off",
    "demo.train_scenes=60",
    "demo.prompt_scenes=16",
    "demo.eval_scenes=8",
    "sft.steps=20",
    "reward.steps=4",
    "reward.eval_every=2",
    "candidates.per_model=4",
    "label.method=pairwise",  # after so few steps every claim is true to the model
    "label.flips=average",
    "pairs.margin=0",
    "ppo.iterations=1",
    "ppo.prompts_per_iteration=8",
    "ppo.samples_per_prompt=2",
    "ppo.minibatch_size=16",
    "ppo.eval_every=1",
    "ppo.save.every=1",
    "cluster.object_store_gib=0.3",
)
SCRATCH = ("demo.scratch=true", "demo.read_steps=20", "demo.pretrain_steps=60", "demo.pretrain_scenes=60")
TRUTH = ("truth", "answer")
FEEDBACK = {
    "captions": "feedback/captions.jsonl",
    "candidates": "feedback/candidates.jsonl",
    "pairs": "data/pairs.jsonl",
}
SAID = ("captions", "answers", "chosen", "rejected")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def verdicts_in(path: Path) -> list[list]:
    """Return what the model wrote in each row: captions, answers, and which of two it prefers."""
    return [[row.get(name) for name in SAID] for row in read(path)]


@pytest.mark.slow
def test_the_demo_from_scratch_and_its_feedback_without_any_ground_truth(tmp_path):
    config = load_config(DEMO, [f"storage={tmp_path}", *SMALL, *SCRATCH])
    with open_run(config) as run:
        demo.demo(config, run)
    run = tmp_path / "demo"
    rows = json.loads((run / "eval" / "demo.json").read_text())["rows"]
    cells = {(row["policy"], row["decoding"]) for row in rows}
    assert cells == set(itertools.product(("sft", "rlaif"), ("greedy", "sample")))
    before = {name: verdicts_in(run / path) for name, path in FEEDBACK.items()}
    assert before["pairs"]

    (run / "feedback").rename(run / "with-truth")
    for path in (run / "data").glob("*.jsonl"):
        rows = read(path)
        for name, row in itertools.product(TRUTH, rows):
            row.pop(name, None)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "data" / "scenes.jsonl").unlink()
    blind = config.model_copy(update={"label": config.label.model_copy(update={"reference": None})})
    with open_run(blind) as session:
        demo.make_feedback(blind, session)
    for name, path in FEEDBACK.items():
        assert verdicts_in(run / path) == before[name]


FOREIGN = ("(pid=", " pid=", "\x1b", "DeepSpeed", "Triton", "NUMA", "accelerator", "oken", "Exception ignored", "INFO ")


@pytest.mark.slow
def test_the_quick_demo_shows_its_own_lines_and_prints_commands_that_work(tmp_path, monkeypatch, capsys):
    """From the base model in the package; the printed PPO command runs the same experiment in another directory."""
    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert main.main(["demo", str(DEMO), f"storage={tmp_path}", *SMALL]) == 0
    shown = capsys.readouterr()
    lines = (shown.out + shown.err).splitlines()
    assert not [line for line in lines if any(word in line for word in FOREIGN)]
    assert sum("checking videos" in line for line in lines) < 5
    assert "(RolloutActor pid=" in (tmp_path / "demo" / "logs" / "demo.log").read_text()
    run = tmp_path / "demo"
    assert not (run / "read").exists() and not (run / "data" / "pretrain.jsonl").exists()
    assert json.loads((run / "eval" / "demo.json").read_text())["base"] == "shipped"

    again, variant = [shlex.split(line) for line in shown.out.splitlines() if re.match(r" +rlaif (eval|ppo) ", line)]
    assert main.main(variant[1:]) == 0
    told = capsys.readouterr().err
    assert "captions" not in told, "every prompt has captions there too"
    scored = {name: read(tmp_path / name / "samples" / "000001.jsonl") for name in ("demo", "demo-kl")}
    assert [sample["reward"] for sample in scored["demo"]] == [sample["reward"] for sample in scored["demo-kl"]]
    assert main.main(again[1:]) == 0
    assert "| rlaif | 0 | greedy |" in capsys.readouterr().out


def test_the_shipped_base_model_matches_its_record():
    made_by = json.loads((demo.SHIPPED / "made_by.json").read_text())
    files = [file for file in demo.SHIPPED.iterdir() if file.name != "made_by.json"]
    assert {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files} == made_by["sha256"]
    assert sum(file.stat().st_size for file in demo.SHIPPED.iterdir()) <= 5_000_000
    config = load_config(DEMO)
    assert made_by["steps"] == {"read": config.demo.read_steps, "pretrained": config.demo.pretrain_steps}
    assert made_by["seed"] == config.seed and re.fullmatch(r"[0-9a-f]{40}", made_by["commit"])
    assert made_by["pretrain_scenes"] == config.demo.pretrain_scenes


def test_the_shipped_base_model_loads():
    require_model("sft.init", str(demo.SHIPPED))
    weights = load_vlm(str(demo.SHIPPED), "float32")
    assert 1_000_000 < sum(weight.numel() for weight in weights.parameters()) < 1_200_000
