"""Test the preference loss by dimension: the sign swaps the answers, a head skips pairs not compared in its dimension."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from learners import losses
from learners.outputs import token_rows
from rlaif.config.schema import Ppo, Reward
from rlaif.objectives.metrics import mean_metrics, merge, read_metrics
from rlaif.objectives.preference import bradley_terry

TWO = Reward(dimensions=("helpful", "harmless"), centering="squared")
SCORES = torch.tensor([[1.2, 0.1], [0.3, -0.5], [0.0, 2.0], [0.4, 0.7], [0.9, -0.2], [1.0, 0.5]])
"""[chosen of three pairs; rejected of them], by dimension."""


def softplus(x):
    return math.log1p(math.exp(x))


def batch(**extras):
    """Return a batch with extras `sign_<dimension>` or `margin_<dimension>` of pairs, which both halves have."""
    doubled = {name.replace("_", "/", 1): torch.tensor([*values, *values]) for name, values in extras.items()}
    return SimpleNamespace(extras=doubled)


def step(config, scores, extras, denominator=3.0):
    result = losses.preference_objective(config).loss({"score": scores}, extras, denominator)
    return result.loss, read_metrics(result.metrics)


def test_a_single_head_is_bradley_terry_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    for centering in ("none", "mean_abs", "squared"):
        scores = torch.randn(14, generator=generator, requires_grad=True)
        again = scores.detach().clone().requires_grad_()
        config = Reward(centering=centering)
        loss, metrics = step(config, scores, batch(sign_overall=[1.0] * 7), 5.0)
        expected, expected_metrics = bradley_terry(*again.chunk(2), centering, config.centering_coef, 5.0)
        loss.backward()
        expected.backward()
        assert (
            torch.equal(loss, expected)
            and torch.equal(scores.grad, again.grad)
            and metrics == read_metrics(expected_metrics)
        )
        assert torch.equal(step(config, scores, batch(), 5.0)[0], loss)  # without extras


def test_each_head_learns_from_its_own_pairs():
    """Pair 0: both; pair 1: harmless prefers the rejected answer; pair 2: only helpful."""
    scores = SCORES.clone().requires_grad_()
    signs = batch(sign_helpful=[1.0, 1.0, 1.0], sign_harmless=[1.0, -1.0, 0.0])
    loss, metrics = step(TWO, scores, signs)
    helpful = sum(softplus(-d) for d in (1.2 - 0.4, 0.3 - 0.9, 0.0 - 1.0))
    harmless = softplus(-(0.1 - 0.7)) + softplus(-(-0.2 + 0.5))
    near = 1e-3 * (1.2**2 + 0.3**2 + 0.4**2 + 0.9**2 + 1.0 + 0.1**2 + 0.5**2 + 0.7**2 + 0.2**2) / 2
    assert loss.item() == pytest.approx((helpful + harmless + near) / 3, rel=1e-6)
    loss.backward()
    assert scores.grad[[2, 5], 1].tolist() == [0.0, 0.0] and scores.grad[[2, 5], 0].abs().min() > 0.1
    assert scores.grad[4, 1] < 0 < scores.grad[1, 1]  # the rejected answer's score rises
    means = mean_metrics(metrics)
    assert means["helpful_accuracy"] == pytest.approx(1 / 3) and means["harmless_accuracy"] == 0.5
    assert means["accuracy"] == pytest.approx(2 / 5)  # of all comparisons
    assert means["helpful_share"] == 1 and means["harmless_share"] == pytest.approx(2 / 3)
    assert means["preference_loss"] == pytest.approx((helpful + harmless) / 5)


def test_losses_of_micro_batches_sum_to_that_of_the_batch():
    signs = {"sign_helpful": [1.0, 0.0, 1.0], "sign_harmless": [0.0, -1.0, 0.0]}
    whole, metrics = step(TWO, SCORES, batch(**signs))
    parts = []
    for i in range(3):
        own_signs = {name: values[i : i + 1] for name, values in signs.items()}
        parts.append(step(TWO, SCORES[[i, i + 3]], batch(**own_signs)))
    assert torch.allclose(sum(loss for loss, _ in parts), whole)
    assert mean_metrics(merge(m for _, m in parts)) == pytest.approx(mean_metrics(metrics))


def test_margins_apply_to_their_dimension_and_only_if_configured():
    extras = batch(
        sign_helpful=[1.0] * 3, sign_harmless=[-1.0] * 3, margin_helpful=[1.0, 0.0, 2.0], margin_harmless=[0.0] * 3
    )
    plain, _ = step(TWO.model_copy(update={"centering": "none"}), SCORES, extras)
    config = TWO.model_copy(update={"centering": "none", "margin": "record", "margin_coef": 0.5})
    loss, metrics = step(config, SCORES, extras)
    gaps, margins = (0.8, -0.6, -1.0), (0.5, 0.0, 1.0)
    more = sum(softplus(m - gap) - softplus(-gap) for gap, m in zip(gaps, margins, strict=True))
    assert (loss - plain).item() == pytest.approx(more / 3, rel=1e-5)
    assert mean_metrics(metrics)["helpful_accuracy"] == pytest.approx(1 / 3)  # still of the scores themselves


META = torch.device("meta")


def on_meta(*shape, **options):
    return torch.ones(*shape, device=META, **options)


@pytest.mark.parametrize("loss_mean", ["tokens", "slots"])
def test_losses_and_their_metrics_never_wait_for_the_device(loss_mean):
    """Run the losses on the meta device, which has no numbers: reading one, or indexing by a mask, raises."""
    config = Ppo(loss_mean=loss_mean, sampling={"max_tokens": 5}, entropy_coef=0.1)
    width = 5 if loss_mean == "slots" else 3
    extras = {name: on_meta(2, width) for name in ("old_logprobs", "advantages", "importance", "values", "returns")}
    extras["after_video"] = on_meta(2)
    batch = SimpleNamespace(mask=on_meta(2, 3), valid=on_meta(2, 3), extras=extras)
    outputs = {name: on_meta(2, 3, requires_grad=True) for name in ("logprobs", "entropy", "values")}
    policy = losses.policy_objective(config, truncated_importance=True)
    for objective in (losses.SUPERVISED, policy, losses.critic_objective(config, 1.0)):
        result = objective.loss(outputs, batch, 6.0)
        result.loss.backward()
        assert result.loss.device == META
        for total, count in result.metrics.values():
            assert total.device == count.device == META
            assert total.dtype == count.dtype == torch.float64
    with pytest.raises((RuntimeError, NotImplementedError)):
        float(on_meta(1))


def test_policy_loss_reports_ratios_of_response_tokens_in_order():
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    logprobs = torch.tensor([[0.1, 0.2, 9.0], [0.3, 9.0, 9.0]])
    extras = {"old_logprobs": torch.zeros(2, 3), "advantages": mask, "after_video": torch.tensor([0.0, 1.0])}
    batch = SimpleNamespace(mask=mask, extras=extras)
    result = losses.policy_objective(Ppo()).loss({"logprobs": logprobs, "entropy": mask}, batch, 3.0)
    rows = token_rows([result.ratios, result.ratios])
    expected = [[math.exp(0.1), 0.0], [math.exp(0.2), 0.0], [math.exp(0.3), 1.0]]
    assert rows.tolist() == [pytest.approx(row) for row in expected * 2]
