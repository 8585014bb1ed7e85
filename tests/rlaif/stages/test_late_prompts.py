"""PPO on prompts that turn out to be unusable while it runs: two of them fill an iteration, and a resume gets past it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from half_broken import half_broken

from cluster.checkpoint import Checkpoints
from rlaif.data.sampler import rows_of_step
from rlaif.io.rundir import RunDir
from rlaif.stages.run.run import open_run
from rlaif.stages.train import ppo

pytestmark = pytest.mark.slow

PER_ITERATION, SECOND = 2, 1


def file_with_odd_prompts(world: Path, root: Path) -> tuple[int, set[str], int]:
    """Copy the world's data; returns a seed whose second iteration asks for exactly the prompts that break, their ids
    (the file's first prompt is one of them), and how many prompts are usable before the run."""
    shutil.copytree(world / "data", root)
    rows = [json.loads(line) for line in (root / "prompts.jsonl").read_text().splitlines()]
    count = len(rows)
    seed = next(s for s in range(999) if 0 in rows_of_step(count, PER_ITERATION, SECOND, s, "ppo"))
    late = rows_of_step(count, PER_ITERATION, SECOND, seed, "ppo")
    for place in late:
        half_broken(root / f"half{place}")
        rows[place]["video"] = f"half{place}"
    never = [rows[1] | {"prompt_id": "mark", "question": "what is <|video_pad|> here ?"}]
    never += [rows[1] | {"prompt_id": "long", "question": "describe the video . " * 80}]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*never, *rows]))
    return seed, {rows[place]["prompt_id"] for place in late}, count


@pytest.fixture(scope="module")
def late(world, make_config, tmp_path_factory):
    """(folder of a run of three iterations that was resumed for a fourth, ids of the prompts that broke, prompts)."""
    folder = tmp_path_factory.mktemp("late")
    seed, broken, count = file_with_odd_prompts(world, folder / "data")
    overrides = [f"data.root={folder}/data", f"seed={seed}", f"ppo.prompts_per_iteration={PER_ITERATION}"]
    # checked before the run, both would be left out at once; so they break as files do that nobody had time to decode
    overrides += [
        "data.check_s=0",
        "ppo.minibatch_size=4",
        "ppo.advantage=leave_one_out",
        "ppo.save.keep=9",
        "data.eval=none.jsonl",
    ]
    config, longer = (make_config(folder, *overrides, f"ppo.iterations={number}") for number in (3, 4))
    with open_run(config) as run:
        ppo.train(config, run)
        ppo.train(longer, replace(run, config=longer), "resume")
    return folder / "runs" / "run", broken, count


def test_an_iteration_of_unusable_prompts_is_filled_with_others(late, metrics_of, samples_of):
    folder, broken, count = late
    rows = metrics_of(folder)
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4]
    assert [row["samples/failed_prompts"] for row in rows] == [0, 2, 0, 0]
    assert [row["samples/prompts_left_out"] for row in rows] == [0, 2, 2, 2]
    assert all(row["samples/trained"] == 4 for row in rows)
    failed = {row["prompt_id"] for row in samples_of(folder, 2) if "masked" in row["reward"]}
    assert failed == broken
    for iteration in (1, 2, 3, 4):
        answered = {row["prompt_id"] for row in samples_of(folder, iteration) if "masked" not in row["reward"]}
        assert len(answered) == 2 and not answered & (broken | {"mark", "long"})


def test_left_out_prompts_are_part_of_the_checkpoint(late):
    folder, broken, count = late
    checkpoints = Checkpoints(RunDir(folder.parent, folder.name).checkpoints("ppo"))
    for iteration in (2, 3, 4):
        deck = checkpoints.at(iteration).meta["deck"]
        assert len(deck["order"]) == count
        assert {name: since for name, (since, _) in deck["left_out"].items()} == dict.fromkeys(broken, 2)
    assert checkpoints.at(1).meta["deck"]["left_out"] == {}


def test_the_parity_gate_takes_the_first_prompt_that_can_be_answered(late):
    folder, broken, _ = late
    checkpoints = Checkpoints(RunDir(folder.parent, folder.name).checkpoints("ppo"))
    gates = [checkpoints.at(iteration).meta["gate"] for iteration in (1, 4)]
    assert gates[0] == gates[1] and gates[0]["prompt_id"] not in broken | {"mark", "long"}
