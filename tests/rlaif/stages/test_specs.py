"""From the configuration to what the learners are told: how long a run is, and how heads start."""

from __future__ import annotations

import pytest

from rlaif.config.schema import Config, Ppo, Reward, Video
from rlaif.stages.train import supervised, workers
from rlaif.stages.train.reward import steps_of

SMALL = {
    "iterations": 7,
    "prompts_per_iteration": 8,
    "samples_per_prompt": 2,
    "minibatch_size": 4,
    "epochs": 3,
    "reward": {"path": "a:b"},
}


@pytest.mark.parametrize(("per", "total"), [("step", 7 * 3 * 4), ("iteration", 7)])
def test_the_learning_rate_schedule_counts_steps_or_iterations(per, total):
    config = Config(name="x", ppo=Ppo(**SMALL, schedule_per=per))
    trained = {role.name: role.total_steps for role in workers.learner_spec(config).roles if role.optim}
    assert trained == {"policy": total, "critic": total}


def test_only_roles_with_an_optimizer_train_vision():
    config = Config(name="x", ppo=Ppo(**SMALL, lora=None, train_vision=True))
    for role in workers.learner_spec(config).roles:
        assert (role.train_vision, role.train_projector) == (role.optim is not None, False)


@pytest.mark.parametrize(("pairs", "steps"), [(39_000, 2438), (32, 2), (33, 3), (3, 1)])
def test_reward_steps_follow_from_epochs_and_batch_size(pairs, steps):
    assert steps_of(Reward(preset="vlm_rlaif"), pairs) == steps
    assert steps_of(Reward(epochs=2, batch_size=16), pairs) == -(-2 * pairs // 16)
    assert steps_of(Reward(steps=5), pairs) == 5


@pytest.mark.parametrize("init", ["normal", "uniform"])
def test_the_reward_head_starts_as_configured(init):
    config = Config(name="x", reward=Reward(head_init=init))
    (role,) = supervised.learner_spec(config, config.reward, "reward", "reward").roles
    assert (role.head, role.head_init) == ("reward", init)
    (role,) = supervised.learner_spec(config, config.sft, "policy").roles
    assert role.head == "none"


def test_learner_specs_of_every_stage_have_the_video_options():
    """Their exports carry it."""
    config = Config(name="x", ppo=Ppo(**SMALL), video=Video(num_frames=5, height=28))
    specs = [
        supervised.learner_spec(config, config.sft, "policy"),
        supervised.learner_spec(config, config.reward, "reward", "reward"),
        workers.learner_spec(config),
    ]
    assert [spec.video for spec in specs] == [config.video] * 3
