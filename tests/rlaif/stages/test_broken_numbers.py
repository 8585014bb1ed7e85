"""Numbers that are not finite, through the real loop: masked or skipped, counted, and named when the run stops."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from cluster.checkpoint import Checkpoints
from rlaif.data.sampler import rows_of_step
from rlaif.errors import NumericsError, RlaifError
from rlaif.io.rundir import RunDir
from rlaif.stages.run.run import Run, open_run
from rlaif.stages.train import ppo


@pytest.fixture(scope="module")
def train(make_config, tmp_path_factory):
    """train(name, *overrides, start=) -> the run's directory; all runs share one cluster and one rollout engine."""
    folder = tmp_path_factory.mktemp("numbers")
    with open_run(make_config(folder)) as shared:

        def train(name: str, *overrides: str, start="new") -> RunDir:
            config = make_config(folder, f"name={name}", "data.eval=none.jsonl", *overrides)
            directory = RunDir(config.storage, name)
            directory.prepare()
            ppo.train(config, Run(config, directory, shared.session, shared.topology), start)
            return directory

        train.directory = lambda name: RunDir(folder / "runs", name)
        yield train


NAN = ["ppo.reward={path: 'tests.support.faulty_rewards:nan_at_first'}", "ppo.iterations=1"]


def test_a_reward_that_is_nan_masks_its_sample_and_no_other(train, metrics_of, samples_of):
    folder = train("masked", *NAN, "ppo.max_reward_failures=0.5").path
    rows = samples_of(folder, 1)
    assert len(rows) == 8
    for row in rows:
        if row["sample_index"] == 0:
            assert row["reward"] == {"masked": "part 'score' is nan"} and row["kl"] is None
        else:
            assert row["reward"] == {"value": 1.0, "score": 1.0} and row["kl"] is not None
    (metrics,) = metrics_of(folder)
    assert metrics["samples/masked"] == metrics["samples/trained"] == 4
    assert metrics["ledger/masked"] == metrics["ledger/trained"] == 4 and metrics["ledger/open"] == 0
    assert metrics["reward/mean"] == 1.0 and "tracking/nonfinite" not in metrics


def test_more_rewards_that_are_nan_than_allowed_stop_the_run_and_name_the_samples(train):
    with pytest.raises(RlaifError, match="first reason: part 'score' is nan") as caught:
        train("too many", *NAN, "ppo.max_reward_failures=0.4")
    assert "at most 40%" in caught.value.expected and "ppo.max_reward_failures" in caught.value.fix
    prompts = {part.strip() for part in caught.value.found.split(":")[1].split(";")[0].split(",")}
    assert len(prompts) == 4 and all(name.endswith("/0") for name in prompts)
    assert "4 of 8 in iteration 1" in caught.value.found
    assert not train.directory("too many").metrics.exists()


INFINITE = ["ppo.reward={path: 'tests.support.faulty_rewards:infinite_sum_at_first'}", "ppo.iterations=1"]


@pytest.mark.slow
def test_finite_parts_with_an_infinite_sum_mask_their_sample(train, metrics_of, samples_of):
    folder = train("infinite", *INFINITE, "ppo.max_reward_failures=0.5").path
    masked = [row["reward"] for row in samples_of(folder, 1) if row["sample_index"] == 0]
    assert masked == [{"masked": "the sum of its parts is inf ('a' 1e+308, 'b' 1e+308)"}] * 4
    (metrics,) = metrics_of(folder)
    assert metrics["samples/masked"] == 4 and metrics["critic/skipped_steps"] == metrics["policy/skipped_steps"] == 0
    with pytest.raises(RlaifError, match="first reason: the sum of its parts is inf"):
        train("too infinite", *INFINITE, "ppo.max_reward_failures=0.4")


@pytest.mark.slow
def test_a_reward_function_that_never_returns_masks_that_prompt_and_no_other(
    train, world, tmp_path, metrics_of, samples_of
):
    prompts = [json.loads(line) for line in (world / "data" / "prompts.jsonl").read_text().splitlines()][:4]
    prompts[1]["hangs"] = True
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    hangs = ["ppo.reward={path: 'tests.support.faulty_rewards:hangs_if_marked'}", "ppo.reward_timeout_s=5"]
    files = [f"data.prompts={tmp_path}/prompts.jsonl"]
    folder = train("hangs", *hangs, *files, "ppo.iterations=1", "ppo.max_reward_failures=0.25").path
    rows = samples_of(folder, 1)
    assert len(rows) == 8
    for row in rows:
        if row["prompt_id"] == prompts[1]["prompt_id"]:
            assert (
                "did not score a batch within 5 s" in row["reward"]["masked"] and "2 times" in row["reward"]["masked"]
            )
        else:
            assert row["reward"] == {"value": 1.0, "score": 1.0}
    (metrics,) = metrics_of(folder)
    assert metrics["samples/masked"] == 2 and metrics["ledger/masked"] == 2 and metrics["ledger/open"] == 0


def test_a_reward_function_that_raises_stops_the_run_with_its_error(train):
    with pytest.raises(RlaifError, match="(?s)without a reward.*first reason: builtins:divmod: TypeError"):
        train("raises", "ppo.reward={path: 'builtins:divmod'}", "ppo.advantage=leave_one_out")


EXPLODES = ["ppo.critic_optim.lr=1.0e+30", "ppo.critic_optim.max_skipped_steps=1", "ppo.iterations=5"]


@pytest.mark.slow
def test_a_learning_rate_that_makes_the_loss_infinite_is_counted_then_stops_the_run(train, metrics_of, world):
    with pytest.raises(NumericsError, match="2 steps in a row") as caught:
        train("explodes", *EXPLODES)
    folder = train.directory("explodes").path
    # the first step is finite and throws the critic far away; the second is skipped and counted; the third is too many
    rows = metrics_of(folder)
    assert [row["critic/skipped_steps"] for row in rows] == [0.0, 1.0]
    assert [row["policy/skipped_steps"] for row in rows] == [0.0, 0.0]
    assert "role 'critic'" in caught.value.expected and "--resume" in caught.value.fix
    # the samples are those of the iteration that failed, not of one before it
    prompts = [json.loads(line)["prompt_id"] for line in (world / "data" / "prompts.jsonl").read_text().splitlines()]
    third = rows_of_step(len(prompts), 4, 2, 0, "ppo")
    named = caught.value.found.split("in the last one: ")[1].split(", ")
    assert sorted(named) == sorted(f"{prompts[i]}/{index}" for i in third for index in (0, 1))

    checkpoints = Checkpoints(train.directory("explodes").checkpoints("ppo"))
    newest = checkpoints.latest()
    assert newest.iteration == 2 and newest.passed_over == ()
    before, after = (load_file(checkpoints.load(checkpoints.at(i)) / "critic.safetensors") for i in (1, 2))
    assert before.keys() == after.keys()
    assert all(np.isfinite(after[name]).all() and np.array_equal(before[name], after[name]) for name in after)

    # it loads, and remembers that a step has been skipped already
    with pytest.raises(NumericsError, match="2 steps in a row"):
        train("explodes", *EXPLODES, start="resume")
    assert [row["iteration"] for row in metrics_of(folder)] == [1, 2]


@pytest.mark.slow
def test_a_policy_thrown_away_by_its_learning_rate(train, metrics_of, samples_of):
    """The rollout engine answers with such weights too: no crash, but log-probs that are NaN. Last here: NaN stays in its
    key-value cache, whatever is published afterwards."""
    with pytest.raises(NumericsError, match="role 'policy'"):
        train("thrown away", "ppo.optim.lr=1.0e+30", "ppo.optim.max_skipped_steps=1", "ppo.iterations=5")
    folder = train.directory("thrown away").path
    first, second = metrics_of(folder)
    assert first["policy/skipped_steps"] == first["critic/skipped_steps"] == 0.0
    assert second["policy/skipped_steps"] == second["critic/skipped_steps"] == 1.0
    assert second["kl/response"] is None and second["tracking/nonfinite"] > 0
    assert all(row["kl"] is None for row in samples_of(folder, 2))
