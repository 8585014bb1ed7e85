"""The arithmetic of VLM-RLAIF, the system before this one, from the functions of this project.

There, every mean runs over the whole padded length, the score is on the last slot, and the penalty is a clamped k1: that
is a mask of ones, and a denominator of batch times length. Each quirk is recomputed here with plain loops.
"""

import math

import pytest
import torch

from rlaif.objectives.advantages import gae
from rlaif.objectives.kl import k1
from rlaif.objectives.masked import Moments, whiten
from rlaif.objectives.policy import ppo_policy_loss
from rlaif.objectives.rewards import token_rewards
from rlaif.objectives.value import value_loss

BETA, SCALE, CLIP = 0.1, 10.0, 0.2


@pytest.fixture
def rollout(ragged):
    """Return log-probs, reference log-probs and values that are 0 on padding, scores of three answers, and a mask of ones."""
    batch = ragged((5, 2, 6), width=6)
    zeroed = [batch.x(seed, garbage=0.0) for seed in range(3)]
    return *zeroed, torch.tensor([1.0, -7.0, 0.5], dtype=torch.float64), torch.ones(3, 6)


def padded_rewards(rollout):
    logp, ref, _, score, ones = rollout
    return SCALE * token_rewards(score, k1(logp, ref).clamp(min=0), BETA, ones)


def test_reward_lands_on_the_last_slot_with_a_clamped_penalty_times_ten(rollout):
    logp, ref, _, score, _ = rollout
    rewards = padded_rewards(rollout)
    for b in range(3):
        for t in range(6):
            expected = -BETA * max(0.0, (logp - ref)[b, t].item()) + (score[b].item() if t == 5 else 0.0)
            assert rewards[b, t].item() == pytest.approx(SCALE * expected)


def test_returns_are_rewards_to_go_and_advantages_are_whitened_with_their_padding(rollout):
    rewards, values, ones = padded_rewards(rollout), rollout[2], rollout[4]
    advantages, returns = gae(rewards, values, ones, gamma=1.0, lam=1.0)
    assert returns[1, 3].item() == pytest.approx(SCALE * -7.0)  # a padded slot still sees the score
    moments = Moments.of(advantages, ones)
    assert moments.count == 18
    white = whiten(advantages, ones, moments.mean, moments.var)
    expected = (advantages - advantages.mean()) / (advantages.var(unbiased=False) + 1e-8).sqrt()
    assert torch.allclose(white, expected)


def test_losses_are_means_over_the_padded_length(rollout):
    logp, _, values, _, ones = rollout
    lengths = (5, 2, 6)
    old = logp - 0.3 * torch.sign(logp)  # equal on padding: both are 0 there
    advantages, returns = values + 0.5, values - 2.0
    policy, _ = ppo_policy_loss(logp, old, advantages, ones, CLIP, ones.numel())
    value, _ = value_loss(values, values + 1.0, returns, ones, ones.numel(), value_clip=CLIP, scale=1.0)
    policies, squares = [], []
    for b in range(3):
        for t in range(6):
            rho = math.exp((logp - old)[b, t].item()) if t < lengths[b] else 1.0
            a, v, r = (x[b, t].item() for x in (advantages, values, returns))
            policies.append(max(-a * rho, -a * min(max(rho, 1 - CLIP), 1 + CLIP)))
            clipped = min(max(v, v + 1 - CLIP), v + 1 + CLIP)
            squares.append(0.5 * max((v - r) ** 2, (clipped - r) ** 2))
    assert policy.item() == pytest.approx(sum(policies) / 18)
    assert 0.1 * value.item() == pytest.approx(0.1 * sum(squares) / 18)
