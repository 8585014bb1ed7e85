"""A gradient that is not finite changes nothing, is counted, and stops the run when it comes again and again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import LORA, NoiseFrames, answer, cluster, model, plain_optim, responses, weights

from learners import losses
from learners.learner import Learner
from learners.ppo import train_on
from learners.ppo_state import PpoState
from learners.spec import LearnerSpec, RoleSpec
from rlaif.config.schema import Kl, Ppo
from rlaif.errors import NumericsError
from rlaif.records import Experience


def steps(path, zero_stage, plan):
    """Return the report and weight changes of each step of the plan, and the error that ends it; `bad` poisons one sample of rank 1."""
    optim = plain_optim(max_skipped_steps=1)
    role = RoleSpec("critic", path, LORA, optim, 10, "value")
    spec = LearnerSpec((role,), model(), cluster(zero_stage), 512, 2**28, 150, seed=5)
    learner = Learner(spec, NoiseFrames(), torch.device("cpu"))
    critic, rank = learner.roles["critic"], dist.get_rank()
    items = [replace(item, name=f"p{i}/0") for i, item in enumerate(responses(learner.encoder("critic"), 4))][rank::2]
    reports = []
    for bad in plan:
        before, count = weights(critic), critic.steps
        chosen_items = [_poisoned(items[0]), *items[1:]] if bad and rank == 1 else items
        units = [(item,) for item in chosen_items]
        try:
            metrics = learner.step("critic", units, losses.critic_objective(Ppo(), None)).metrics
        except NumericsError as error:
            return reports, error.found
        after = weights(critic)
        moved = any(not np.array_equal(before[name], after[name]) for name in before)
        finite = all(np.isfinite(value).all() for value in after.values())
        reports.append(
            (
                metrics["skipped_steps"][0],
                moved,
                critic.steps - count,
                finite,
                np.isfinite(metrics.get("value_loss", (0,))[0]),
            )
        )
    return reports, None


def _poisoned(item):
    returns = item.extras["returns"].copy()
    returns[0] = np.nan
    return replace(item, extras=item.extras | {"returns": returns})


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_step_without_a_finite_gradient_is_skipped_on_every_rank(two_ranks, tiny, zero_stage):
    for reports, error in two_ranks.run(
        steps, path=tiny, zero_stage=zero_stage, plan=[False, True, False, True, True, False]
    ):
        good, bad = (0.0, True, 1, True, True), (1.0, False, 0, True, True)
        assert reports == [good, bad, good, bad]
        assert "2 steps in a row" in error and "p1/0" in error and "p0/0" not in error


PPO = Ppo(prompts_per_iteration=2, samples_per_prompt=2, minibatch_size=4, kl=Kl(controller="adaptive", target=0.1))


def iterate(path, limit, poison):
    """Run a PPO iteration on four samples; the last one (of rank 1) may have a log-prob that is NaN.

    Returns the state afterwards, how many steps were skipped and each sample's report, or the error.
    """
    optim = plain_optim(lr=1e-3, max_skipped_steps=limit)
    roles = [RoleSpec("policy", path, LORA, optim, 10), RoleSpec("critic", path, LORA, optim, 10, "value")]
    spec = LearnerSpec((*roles, RoleSpec("reference", path)), model(), cluster(2), 512, 2**28, 1, seed=5)
    learner, state = Learner(spec, NoiseFrames(), torch.device("cpu")), PpoState.of(PPO)
    rng, samples = np.random.default_rng(0), []
    for number in range(4):
        ids = [*rng.integers(11, 30, rng.integers(3, 9)), learner.encoder("policy").eos_id]
        samples.append(answer(learner.encoder("policy"), number, ids, rng.normal(-3.5, 0.2, len(ids))))
    if poison:
        samples[3].logprobs[1] = np.nan
    rank = dist.get_rank()
    try:
        metrics, report = train_on(learner, state, Experience(tuple(samples[rank::2]), (1.0, -1.0)), PPO, seed=3)
    except NumericsError as error:
        return state.state_dict(), error.found, None
    return state.state_dict(), [metrics[f"{name}/skipped_steps"][0] for name in ("critic", "policy")], report


def test_a_sample_with_nan_spoils_neither_statistics_nor_the_other_samples(two_ranks, tiny):
    for (state, skipped, report), (clean, none, usual) in zip(
        two_ranks.run(iterate, path=tiny, limit=5, poison=True),
        two_ranks.run(iterate, path=tiny, limit=5, poison=False),
        strict=True,
    ):
        assert skipped == [1.0, 1.0] and none == [0.0, 0.0]
        assert np.isfinite([state["kl"]["value"], *state["returns"].values()]).all()
        assert 0 < state["returns"]["count"] < clean["returns"]["count"]  # its tokens are not counted
        assert state["kl"]["value"] != PPO.kl.coef
        for row, other in zip(report, usual, strict=True):
            bad = row["key"] == ("p1", 1)
            assert np.isnan(row["kl"]) == np.isnan(row["advantage_mean"]) == bad
            assert bad or row["kl"] == other["kl"]


def test_numerics_error_names_the_sample_with_nan(two_ranks, tiny):
    for _, message, _ in two_ranks.run(iterate, path=tiny, limit=0, poison=True):
        assert message.endswith("in the last one: p1/1")
