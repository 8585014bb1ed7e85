import pytest
import torch

from rlaif.objectives.advantages import gae, leave_one_out, over_tokens


def naive_gae(rewards, values, lengths, gamma, lam):
    """Compute the sum of the paper's eq. 16, not its recursion."""
    advantages = torch.zeros_like(rewards)
    for b, n in enumerate(lengths):
        v = [values[b, t].item() for t in range(n)] + [0.0]
        deltas = [rewards[b, t].item() + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            advantages[b, t] = sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t))
    return advantages


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (1.0, 1.0), (0.9, 0.5), (1.0, 0.0)])
def test_gae_matches_the_sum_and_ignores_padding(ragged, gamma, lam):
    batch = ragged()
    rewards, values = batch.x(0, garbage=float("nan")), batch.x(1, garbage=float("inf"))
    advantages, returns = gae(rewards, values, batch.mask, gamma, lam)
    assert torch.allclose(advantages, naive_gae(rewards, values, batch.lengths, gamma, lam))
    assert torch.allclose(returns, (advantages + values).masked_fill(~batch.mask, 0.0))
    longer, _ = gae(batch.padded(rewards), batch.padded(values), batch.padded(batch.mask), gamma, lam)
    assert torch.equal(longer[:, :6], advantages) and torch.all(longer[:, 6:] == 0)


def test_gae_with_lambda_one_is_reward_to_go_and_with_zero_the_one_step_error(ragged):
    batch = ragged((4,))
    rewards, values = batch.x(0), batch.x(1)
    _, returns = gae(rewards, values, batch.mask, 1.0, 1.0)
    assert torch.allclose(returns[0], rewards[0].flip(0).cumsum(0).flip(0))
    advantages, _ = gae(rewards, values, batch.mask, 1.0, 0.0)
    assert torch.allclose(advantages[0, :3], (rewards + values.roll(-1, 1) - values)[0, :3])
    assert advantages[0, 3] == rewards[0, 3] - values[0, 3]


def test_gae_of_a_perfect_critic_is_zero(ragged):
    batch = ragged()
    rewards = batch.x(0).masked_fill(~batch.mask, 0.0)
    values = rewards.flip(1).cumsum(1).flip(1)
    for lam in (0.0, 0.95, 1.0):
        assert gae(rewards, values, batch.mask, 1.0, lam)[0].abs().max() < 1e-12


def test_gae_of_one_token_and_of_none():
    advantages, returns = gae(torch.tensor([[3.0]]), torch.tensor([[1.0]]), torch.ones(1, 1), 1.0, 0.95)
    assert advantages.item() == 2.0 and returns.item() == 3.0
    advantages, returns = gae(torch.ones(2, 0), torch.ones(2, 0), torch.ones(2, 0), 1.0, 0.95)
    assert advantages.shape == returns.shape == (2, 0)


def test_leave_one_out_matches_a_loop_for_groups_of_any_size_and_order():
    ids = ["a", "b", "a", "c", "b", "a", "d", "b", "b"]
    scores = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = []
    for i, prompt in enumerate(ids):
        others = [scores[j].item() for j, p in enumerate(ids) if p == prompt and j != i]
        # A group of one has no baseline.
        baseline = sum(others) / len(others) if others else scores[i].item()
        expected.append(scores[i].item() - baseline)
    advantages, singles = leave_one_out(scores, ids)
    assert advantages.tolist() == pytest.approx(expected)
    assert singles == 2 and advantages[3] == advantages[6] == 0


def test_leave_one_out_sums_to_zero_in_each_group_and_equals_the_scaled_group_mean_baseline():
    scores = torch.tensor([1.0, 2.0, 6.0, -1.0])
    advantages, singles = leave_one_out(scores, ["p"] * 4)
    assert singles == 0 and advantages.sum().abs() < 1e-6
    assert torch.allclose(advantages, (scores - scores.mean()) * 4 / 3)


def test_leave_one_out_of_an_empty_batch():
    advantages, singles = leave_one_out(torch.zeros(0), [])
    assert advantages.shape == (0,) and singles == 0


def test_over_tokens_gives_each_token_its_answers_advantage(ragged):
    batch = ragged((2, 0, 3))
    spread = over_tokens(torch.tensor([1.0, torch.nan, -2.0]), batch.mask)
    assert spread.tolist() == [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [-2.0, -2.0, -2.0]]


def test_leave_one_out_of_equal_scores_is_exactly_zero():
    for score in (0.1, 1000.1, -8.3):
        advantages, _ = leave_one_out(torch.full((7,), score), ["a"] * 7)
        assert advantages.dtype == torch.float32 and torch.all(advantages == 0)
