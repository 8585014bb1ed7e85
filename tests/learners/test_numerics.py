"""A gradient that is not finite changes nothing, is counted, and stops the run when it comes again and again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import LORA, NoiseFrames, cluster, model, plain_optim, responses, weights

from learners import losses
from learners.learner import Learner
from learners.spec import LearnerSpec, RoleSpec
from rlaif.config.schema import Ppo
from rlaif.errors import NumericsError


def steps(path, zero_stage, plan):
    """What each step of the plan reports, what it moved, and the error that ended it; `bad` poisons one sample of rank 1."""
    optim = plain_optim(max_skipped_steps=1)
    role = RoleSpec("critic", path, LORA, optim, 10, "value")
    spec = LearnerSpec((role,), model(), cluster(zero_stage), 512, 2**28, 150, seed=5)
    learner = Learner(spec, NoiseFrames(), torch.device("cpu"))
    critic, rank = learner.roles["critic"], dist.get_rank()
    items = [replace(item, name=f"p{i}/0") for i, item in enumerate(responses(learner.encoder("critic"), 4))][rank::2]
    reports = []
    for bad in plan:
        before, count = weights(critic), critic.steps
        given = [_poisoned(items[0]), *items[1:]] if bad and rank == 1 else items
        units = [(item,) for item in given]
        try:
            seen = learner.step("critic", units, "values", losses.critic(Ppo(), None), losses.tokens)
        except NumericsError as error:
            return reports, error.found
        after = weights(critic)
        moved = any(not np.array_equal(before[name], after[name]) for name in before)
        finite = all(np.isfinite(value).all() for value in after.values())
        reports.append(
            (
                seen["skipped_steps"][0],
                moved,
                critic.steps - count,
                finite,
                np.isfinite(seen.get("value_loss", (0,))[0]),
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
