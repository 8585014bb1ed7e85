"""Environment variables of the actors of each role."""

from __future__ import annotations

import pytest

from actors import reward_pool, rollout
from actors.engine import EngineSpec
from actors.reward_pool import start_reward_pool
from cluster.env import actor_env
from learners import group
from learners.group import LearnerGroup
from rlaif.config.cluster import Cluster
from rlaif.config.schema import Model


class StartedError(Exception):
    """Carries the environment of an actor that would start now."""


class Remote:
    """Stands for Ray's `remote`: the options of the first actor end the test."""

    def options(self, runtime_env, **options):
        raise StartedError(runtime_env["env_vars"])


def start(role: str, dtype: str) -> None:
    """Start an actor of a role on a GPU, with a model of a dtype."""
    if role == "rollout":
        rollout.start_rollout(EngineSpec("model", dtype), None, "cuda")
    elif role == "reward":
        start_reward_pool([{}], 1, "cuda", timeout_s=1, loading_timeout_s=1, model=Model(dtype=dtype))
    else:
        spec = type("Spec", (), {"cluster": Cluster(), "model": Model(dtype=dtype)})
        LearnerGroup(spec, None, [{}], "cuda")


@pytest.mark.parametrize("role", ["rollout", "reward", "learner"])
@pytest.mark.parametrize(("dtype", "precision"), [("float32", "ieee"), ("bfloat16", None)])
def test_triton_multiplies_float32_exactly_in_every_role(monkeypatch, role, dtype, precision):
    monkeypatch.setattr("ray.remote", lambda actor: Remote())
    with pytest.raises(StartedError) as started:
        start(role, dtype)
    assert started.value.args[0].get("TRITON_F32_DEFAULT") == precision


def test_an_actor_without_a_model_sets_no_precision():
    assert "TRITON_F32_DEFAULT" not in actor_env(2, "cuda")
    assert reward_pool.ray is group.ray
