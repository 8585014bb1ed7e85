"""PPO end to end: real Ray, vLLM and DeepSpeed, a model of a million parameters."""

from __future__ import annotations

import json

import bombs
import loopstate
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open

from rlaif.config.schema import Sampling
from rlaif.errors import ConfigError
from rlaif.models.vlm import load_vlm
from rlaif.stages.run import datasets
from rlaif.stages.run.run import open_run
from rlaif.stages.train import evaluate, ppo, reward
from rlaif.stages.train.experience import ExperienceMaker
from rlaif.stages.train.workers import learner_spec


@pytest.fixture(scope="module")
def held():
    """Everything the loop of `trained` held: tables of paths and values by the function that it called just then."""
    return {}


@pytest.fixture(scope="module")
def trained(held, make_config, tmp_path_factory):
    """Two iterations with a reward model, a critic that starts from it, and adapters; resumed for a third."""
    folder = tmp_path_factory.mktemp("trained")
    overrides = ["ppo.reward={run}/reward/export", "eval.checker=rlaif.worlds.shapes.checker:check"]
    overrides += ["ppo.eval_every=2", "ppo.kl.controller=adaptive", "rollout.vision=shared", "cluster.learner.actors=2"]
    config = make_config(folder, *overrides)
    longer = make_config(folder, *overrides, "ppo.iterations=3")
    with pytest.MonkeyPatch.context() as patch:
        held |= loopstate.watch(patch, (ExperienceMaker, "submit"), (ppo, "save_checkpoint"))
        with open_run(config) as run:
            reward.train(config, run)
            ppo.train(config, run)
            for part in ("", "checkpoints/000002", "checkpoints", "reward/export", "export"):
                bombs.plant(folder / "runs" / "run" / part, folder / "executed")
            run.config = run.topology.config = longer
            with pytest.raises(ConfigError, match="--resume"):
                ppo.train(longer, run)
            ppo.train(longer, run, "resume")
    return longer, folder / "runs" / "run"


def test_the_run_directory_holds_what_scripts_read(trained, metrics_of, samples_of):
    config, folder = trained
    rows = metrics_of(folder)
    assert [row["iteration"] for row in rows] == [1, 2, 3]  # the resumed run neither doubled nor skipped any
    for iteration in (1, 2, 3):
        samples = samples_of(folder, iteration)
        assert len({(row["prompt_id"], row["sample_index"]) for row in samples}) == 8
        assert {row["policy_version"] for row in samples} == {iteration - 1}
        assert all(np.isfinite(row["kl"]) and "score" in row["reward"] for row in samples)
    assert (folder / "config.yaml").is_file()
    assert json.loads((folder / "checkpoints" / "latest.json").read_text())
    names = [(row["policy"], row["decoding"]) for row in json.loads((folder / "eval" / "ppo.json").read_text())["rows"]]
    assert names == [("sft", "greedy"), ("sft", "sample"), ("rlaif", "greedy"), ("rlaif", "sample")]


def test_a_resumed_loop_holds_what_the_one_before_it_held(trained, held):
    """The learners' part of this is tests/learners/test_stateful.py; the bits of a whole run, test_resume.py (slow)."""
    began, _, resumed = held["submit"]
    left = held["save_checkpoint"][1]
    for table in (began, left, resumed):
        assert loopstate.unlisted(table) == []
    assert loopstate.unmoved(began, left) == [r"gate\.probes\."]  # sampled once, before the first iteration
    assert loopstate.lost(left, resumed) == []


def test_pickles_planted_in_the_run_directory_are_not_touched_by_a_resume(trained):
    folder = trained[1]
    assert (folder / "reward" / "export" / "adapter_model.bin").is_file() and (folder / "optimizer.pt").is_file()
    assert not (folder.parents[1] / "executed").exists()


def test_every_video_is_decoded_once(trained, metrics_of):
    first, second, third = metrics_of(trained[1])
    for row in (first, second, third):
        assert row["frames/decodes"] == row["frames/videos"] > 0
        assert row["frames/redecodes"] == 0
    assert second["frames/hits"] > first["frames/hits"]


def test_every_video_goes_through_the_frozen_tower_once_in_all_processes(trained, metrics_of):
    """Rollout engine, reward model, policy, reference and critic have the same one."""
    for row in metrics_of(trained[1]):
        assert row["vision/passes_per_key"] == 1.0 and row["vision/passes"] == row["vision/keys"] > 0
        assert row["vision/hits"] > 1.5 * row["vision/keys"]  # rollout, learners and reward model find each other's


def test_only_the_adapter_is_published(trained, metrics_of):
    _, folder = trained
    with safe_open(folder / "export" / "adapter_model.safetensors", "pt") as file:
        size = sum(file.get_tensor(name).nbytes for name in list(file.keys()))
    for row in metrics_of(folder):
        assert abs(row["publish/bytes"] - size) <= 0.02 * size


def test_the_critic_starts_from_the_reward_model_and_explains_something(trained, metrics_of):
    config, folder = trained
    start = {role.name: role.start for role in learner_spec(config).roles}
    assert start["critic"] == config.ppo.reward and start["policy"] is None
    assert all("critic/explained_variance" in row for row in metrics_of(folder))


def test_plain_peft_loads_the_export(trained, world):
    config, folder = trained
    base = load_vlm(config.ppo.policy, "float32")
    before = base.model.language_model.layers[0].self_attn.q_proj.weight.clone()
    merged = PeftModel.from_pretrained(base, str(folder / "export")).merge_and_unload()
    assert not torch.equal(merged.model.language_model.layers[0].self_attn.q_proj.weight, before)


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["{r: 4, alpha: 4}", "null"])
def test_the_engine_uses_the_new_policy(make_config, tmp_path, lora, metrics_of):
    """After updates and publishes, engine and learner agree on sampled tokens; adapters and full weights."""
    config = make_config(
        tmp_path, f"ppo.lora={lora}", "ppo.advantage=leave_one_out", "ppo.train_vision=" + str(lora == "null").lower()
    )
    with open_run(config) as run:
        ppo.train(config, run)
        prompts = datasets.load(run, config.data.prompts, "prompts")[:4]
        pool = run.topology.rollouts(config.ppo.policy, config.ppo.lora.r if config.ppo.lora else None)
        pool.submit("check", prompts, 1, 5, Sampling(max_tokens=12))
        samples = [sample for answers in pool.results("check") for sample in answers.samples]
        rows = [(s.prompt.video, s.prompt.question, s.response_ids) for s in samples]
        learner = run.topology._group.logprobs("policy", rows)
        reference = run.topology._group.logprobs("reference", rows)
    for sample, mine, old in zip(samples, learner, reference, strict=True):
        assert sample.policy_version == 2
        np.testing.assert_allclose(sample.logprobs, mine, atol=1e-4)
        assert np.abs(mine - old).max() > 1e-3  # the policy has moved, so a stale engine would be seen


def test_one_version_of_staleness_overlaps_rollout_and_update(make_config, tmp_path, metrics_of, samples_of):
    options = ["ppo.max_staleness=1", "ppo.iterations=4", "ppo.advantage=leave_one_out", "data.eval=none.jsonl"]
    config = make_config(tmp_path, *options)
    with open_run(config) as run:
        ppo.train(config, run)
    folder = tmp_path / "runs" / "run"
    versions = [{row["policy_version"] for row in samples_of(folder, i)} for i in (1, 2, 3, 4)]
    assert versions == [{0}, {0}, {1}, {2}]
    rows = metrics_of(folder)
    overlaps = [
        min(now["timeline/update_ended"], after["timeline/rollout_ended"])
        - max(now["timeline/update_began"], after["timeline/rollout_began"])
        for now, after in zip(rows, rows[1:], strict=False)
    ]
    assert max(overlaps) > 0
    assert rows[-1]["vision/passes_per_key"] >= 2.0  # the engine has frames, and runs its own tower


@pytest.mark.slow
def test_the_eval_command_publishes_the_export_and_its_adapter_makes_a_difference(trained):
    config, _ = trained
    with open_run(config) as run:
        rows = {(row["policy"], row["decoding"]): row for row in evaluate.evaluate(config, run)}
        assert run.topology.rollouts(config.ppo.policy, config.ppo.lora.r).fleet.version == 1
    assert rows.keys() == {(name, decoding) for name in ("sft", "rlaif") for decoding in ("greedy", "sample")}
    assert rows["sft", "sample"]["kl"] == pytest.approx(0, abs=1e-4)
    assert abs(rows["rlaif", "sample"]["kl"]) > 1e-3  # answers of the adapter, measured on the adapter
