"""`rlaif demo`, every stage of configs/demo.yaml at a small size, and what its feedback is allowed to know."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif.config.load import load_config
from rlaif.stages import demo
from rlaif.stages.run import open_run

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
SMALL = (
    "logging.wandb=off",
    "demo={read_steps: 20, pretrain_steps: 60, train_scenes: 60, prompt_scenes: 16, eval_scenes: 8}",
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
TRUTH = ("truth", "answer")
FEEDBACK = {
    "captions": "feedback/captions.jsonl",
    "candidates": "feedback/candidates.jsonl",
    "pairs": "data/pairs.jsonl",
}
SAID = ("captions", "answers", "chosen", "rejected")


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_the_demo_runs_and_its_feedback_is_the_same_without_any_ground_truth(tmp_path):
    config = load_config(DEMO, [f"storage={tmp_path}", *SMALL])
    demo.demo(config)
    run = tmp_path / "demo"
    rows = json.loads((run / "eval" / "demo.json").read_text())["rows"]
    assert {(row["policy"], row["decoding"]) for row in rows} == {
        (policy, decoding) for policy in ("sft", "rlaif") for decoding in ("greedy", "sample")
    }
    told = {name: read(run / path) for name, path in FEEDBACK.items()}
    assert told["pairs"]

    (run / "feedback").rename(run / "with-truth")
    for path in (run / "data").glob("*.jsonl"):
        stripped = [{name: value for name, value in row.items() if name not in TRUTH} for row in read(path)]
        path.write_text("".join(json.dumps(row) + "\n" for row in stripped))
    (run / "data" / "scenes.jsonl").unlink()
    blind = config.model_copy(update={"label": config.label.model_copy(update={"reference": None})})
    with open_run(blind) as session:
        demo.feedback(blind, session)
    for name, path in FEEDBACK.items():
        assert [[row.get(part) for part in SAID] for row in read(run / path)] == [
            [row.get(part) for part in SAID] for row in told[name]
        ]
