import json
import re
import statistics

import pytest
import torch

from rlaif.config.schema import Terms
from rlaif.errors import ContractError
from rlaif.objectives.advantages import gae
from rlaif.objectives.masked import Moments
from rlaif.objectives.rewards import RunningMoments, shaped_score, token_rewards, trainable
from rlaif.objectives.value import value_loss
from rlaif.records import Masked, Scored


def naive(score, kl, coef, lengths):
    rewards = [[0.0] * kl.shape[1] for _ in lengths]
    for b, n in enumerate(lengths):
        for t in range(n):
            rewards[b][t] = -coef * kl[b, t].item() + (score[b].item() if t == n - 1 else 0.0)
    return torch.tensor(rewards, dtype=torch.float64)


def test_token_rewards_match_a_loop_and_ignore_padding(ragged):
    batch = ragged()
    kl, score = batch.x(0, garbage=float("nan")), torch.arange(6.0, dtype=torch.float64)
    score[1] = float("nan")  # its row is empty
    rewards = token_rewards(score, kl, 0.3, batch.mask)
    assert torch.allclose(rewards, naive(score, kl, 0.3, batch.lengths))
    longer = token_rewards(score, batch.padded(kl), 0.3, batch.padded(batch.mask))
    assert torch.equal(longer[:, :6], rewards) and torch.all(longer[:, 6:] == 0)


def test_token_rewards_sum_to_score_minus_kl(ragged):
    batch = ragged((3, 1, 5))
    kl, score = batch.x(1), torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    total = token_rewards(score, kl, 0.1, batch.mask).sum(1)
    assert torch.allclose(total, score - 0.1 * kl.masked_fill(~batch.mask, 0).sum(1))


SEED_TERMS = Terms(no_eos=-8.0, length=-10.0)


def test_shaped_score_adds_terms_as_named_parts():
    cut = shaped_score(2.0, {"model": 2.0}, "length", 896, 896, SEED_TERMS)
    assert cut.parts == {"model": 2.0, "no_eos": -8.0, "length": -10.0} and cut.value == -16.0
    ended = shaped_score(2.0, {"model": 1.5, "bonus": 0.5}, "stop", 90, 900, SEED_TERMS)
    assert ended.parts == {"model": 1.5, "bonus": 0.5, "no_eos": 0.0, "length": -1.0}
    assert ended.value == pytest.approx(sum(ended.parts.values()))


def test_terms_of_weight_zero_add_no_part():
    plain = shaped_score(2.0, {"model": 2.0}, "length", 8, 8, Terms(no_eos=0.0, length=0.0))
    assert plain.value == 2.0 and plain.parts == {"model": 2.0}


def test_part_with_the_name_of_a_term_is_refused():
    with pytest.raises(ContractError, match="length in both"):
        shaped_score(1.0, {"length": 1.0}, "stop", 4, 8, SEED_TERMS)


HUGE = {
    "parts that add up to infinity": ({"a": 1e308, "b": 1e308}, "stop", (0.0, 0.0), 1.0, "sum of its parts is inf"),
    "a term that does": ({"a": -1.7e308}, "length", (-1e308, 0.0), 1.0, "sum of its parts is -inf"),
    "beyond float32": ({"a": 1e39}, "stop", (0.0, 0.0), 1.0, "the reward 1e.39 is beyond 1e.16"),
    "whose square is beyond float32": ({"a": -1e20}, "stop", (0.0, 0.0), 1.0, "the reward -1e.20 is beyond"),
    "scaled beyond": ({"a": 1e16}, "stop", (0.0, 0.0), 10.0, "times ppo.reward_scale 10 is beyond"),
    "large": ({"a": 1e15}, "stop", (0.0, 0.0), 10.0, None),
}


@pytest.mark.parametrize("name", HUGE)
def test_rewards_too_large_for_the_loss_are_masked_with_the_reason(name):
    parts, end, (no_eos, length), scale, reason = HUGE[name]
    terms = Terms(no_eos=no_eos, length=length)
    outcome = trainable(shaped_score(sum(parts.values()), parts, end, 4, 8, terms), scale)
    if reason is None:
        assert outcome == Scored(sum(parts.values()), parts)
    else:
        assert isinstance(outcome, Masked) and re.search(reason, outcome.reason)


def test_running_moments_equal_the_moments_of_all_batches(ragged):
    running, values = RunningMoments(), []
    for seed in range(5):
        batch = ragged((3, seed, 6))
        x = 10 * seed + batch.x(seed, scale=seed + 1)
        values += x[batch.mask].tolist()
        running.update(Moments.of(x, batch.mask))
    assert running.count == len(values)
    assert (running.mean, running.var) == pytest.approx((statistics.fmean(values), statistics.pvariance(values)))
    assert running.scale == pytest.approx(statistics.pstdev(values))


def test_scale_is_none_without_spread():
    running = RunningMoments()
    assert running.scale is None
    running.update(Moments())
    assert running.count == 0
    running.update(Moments.of(torch.full((1, 4), 2.0), torch.ones(1, 4)))
    assert running.scale is None and running.mean == 2.0


CONSTANT = {
    "39 tokens of 1.9": [[1.9] * 39],
    "a large negative score": [[-1000.1] * 50],
    "one-token answers of one score": [[0.3]] * 7,
    "several iterations": [[0.1] * 39, [0.1] * 20, [0.1] * 7],
    "more tokens than sums hold exactly": [[0.7] * 10_007],
}


@pytest.mark.parametrize("name", CONSTANT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scale_is_none_if_returns_differ_by_rounding(name, dtype):
    running, together = RunningMoments(), Moments()
    for batch in CONSTANT[name]:
        x = torch.tensor([batch], dtype=dtype)
        moments = Moments.of(x, torch.ones_like(x))
        running.update(moments)
        together += moments
    assert running.scale is None and together.scale is None


def test_small_spread_on_a_large_mean_has_a_scale():
    running = RunningMoments()
    running.update(Moments.of(torch.tensor([[1000.1, 1000.2, 1000.3]]), torch.ones(1, 3)))
    assert running.scale == pytest.approx(0.0817, abs=1e-4)


def test_equal_scores_leave_the_critic_unclipped():
    """Check two cases in which every return is the score, for any prediction of the critic: lambda 1, and one-token answers."""
    values = torch.randn(8, 39, generator=torch.Generator().manual_seed(0))
    for mask, lam in ((torch.ones(8, 39), 1.0), (torch.ones(8, 39) * (torch.arange(39) < 1), 0.95)):
        rewards = token_rewards(torch.full((8,), 1.9), torch.zeros(8, 39), 0.0, mask)
        _, returns = gae(rewards, values, mask, 1.0, lam)
        running = RunningMoments()
        running.update(Moments.of(returns, mask))
        assert running.scale is None
        now = torch.tensor([[0.5]], requires_grad=True)
        one = torch.ones(1, 1)
        value_loss(now, 0 * one, 1.9 * one, one, 1, value_clip=0.2, scale=running.scale)[0].backward()
        assert now.grad.item() == pytest.approx(-1.4)


def test_running_moments_are_restored_from_json():
    first = RunningMoments()
    first.update(Moments(3.0, 6.0, 20.0))
    second = RunningMoments()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for running in (first, second):
        running.update(Moments(2.0, 1.0, 1.0))
    assert first.state_dict() == second.state_dict()
