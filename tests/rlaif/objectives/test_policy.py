import math

import numpy as np
import pytest
import torch

from rlaif.objectives.metrics import mean_metrics, read_metrics
from rlaif.objectives.policy import ppo_policy_loss, ratio_quantiles, ratios

CLIP, CAP, COEF = 0.2, 1.5, 0.01


def inputs(batch, garbage=float("nan")):
    """Return arguments by name, with ratios on both sides of the clip range."""
    old = batch.x(0, garbage=garbage)
    return {
        "logp": old + batch.x(1, 0.4, garbage),
        "old_logp": old,
        "advantages": batch.x(2, garbage=garbage),
        "mask": batch.mask,
        "importance": batch.x(3, 0.8, garbage).exp(),
        "entropy": batch.x(4, garbage=garbage).abs(),
    }


def loss_of(arguments, denominator, **options):
    options = {"clip": CLIP, "importance_cap": CAP, "entropy_coef": COEF} | options
    return ppo_policy_loss(**arguments, denominator=denominator, **options)


def naive(arguments, lengths):
    """Return the loss and its metrics, computed one token at a time."""
    rows = []
    for b, n in enumerate(lengths):
        for t in range(n):
            x = {name: value[b, t].item() for name, value in arguments.items()}
            difference = x["logp"] - x["old_logp"]
            rho, a = math.exp(difference), x["advantages"]
            bounded = min(max(rho, 1 - CLIP), 1 + CLIP)
            token = -min(rho * a, bounded * a) * min(x["importance"], CAP)
            active = (a > 0 and rho > 1 + CLIP) or (a < 0 and rho < 1 - CLIP)
            rows.append((token, active, math.exp(difference) - 1 - difference, -difference, rho, x["entropy"]))
    token, active, kl3, kl1, rho, entropy = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    metrics = {
        "policy_loss": token.mean(),
        "clip_fraction": active.mean(),
        "approx_kl": kl3.mean(),
        "approx_kl_k1": kl1.mean(),
        "ratio": rho.mean(),
        "ratio_min": rho.min(),
        "ratio_max": rho.max(),
        "entropy": entropy.mean(),
    }
    return token.mean() - COEF * entropy.mean(), metrics


@pytest.mark.parametrize("seed_lengths", [(4, 0, 1, 6, 3, 6), (1,), (5, 5)])
def test_loss_and_metrics_match_a_loop(ragged, seed_lengths):
    batch = ragged(seed_lengths)
    arguments = inputs(batch)
    loss, metrics = loss_of(arguments, sum(seed_lengths))
    expected, expected_metrics = naive(arguments, seed_lengths)
    assert loss.item() == pytest.approx(expected)
    actual = mean_metrics(read_metrics(metrics))
    assert {k: actual[k] for k in expected_metrics} == pytest.approx(expected_metrics)


@pytest.mark.parametrize(
    "advantage, ratio, loss, slope",
    [  # slope: d loss / d logp = -rho A inside the range, and if clipping would make the objective larger, else 0
        (2.0, 1.0, -2.0, -2.0),
        (2.0, 1.1, -2.2, -2.2),
        (2.0, 1.5, -2.4, 0.0),
        (2.0, 0.5, -1.0, -1.0),
        (-2.0, 1.5, 3.0, 3.0),
        (-2.0, 0.5, 1.6, 0.0),
    ],
)
def test_clipped_loss_and_gradient_by_hand(advantage, ratio, loss, slope):
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    value, metrics = ppo_policy_loss(
        logp, torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[advantage]]), torch.ones(1, 1), CLIP, 1
    )
    value.backward()
    assert value.item() == pytest.approx(loss) and logp.grad.item() == pytest.approx(slope)
    assert read_metrics(metrics)["clip_fraction"] == (float(slope == 0.0), 1.0)


def test_on_policy_gradient_is_the_policy_gradient(ragged):
    batch = ragged()
    logp, advantages = batch.x(0).requires_grad_(), batch.x(1)
    loss, metrics = ppo_policy_loss(logp, logp.detach(), advantages, batch.mask, CLIP, 20)
    loss.backward()
    assert torch.allclose(logp.grad, (-advantages / 20).masked_fill(~batch.mask, 0.0))
    actual = mean_metrics(read_metrics(metrics))
    assert actual["approx_kl"] == actual["approx_kl_k1"] == actual["clip_fraction"] == 0 and actual["ratio"] == 1


def test_micro_batches_sum_to_the_full_batch(ragged):
    batch = ragged()
    arguments = inputs(batch)
    leaf = arguments["logp"].clone().requires_grad_()
    whole, metrics = loss_of(arguments | {"logp": leaf}, 20)
    (gradient,) = torch.autograd.grad(whole, leaf)
    cuts = [[0], [1], [2, 5], [3, 4]]
    parts = []
    for rows in cuts:
        part = {name: value[rows] for name, value in (arguments | {"logp": leaf}).items()}
        parts.append(loss_of(part, 20))
    total = sum(loss for loss, _ in parts)
    assert torch.allclose(total, whole)
    assert torch.allclose(torch.autograd.grad(total, leaf)[0], gradient)
    assert mean_metrics(read_metrics(*(m for _, m in parts))) == pytest.approx(mean_metrics(read_metrics(metrics)))


def test_padding_changes_nothing(ragged):
    batch = ragged()
    arguments = inputs(batch)
    longer = {name: batch.padded(value) for name, value in arguments.items()}
    leaf = longer["logp"].clone().requires_grad_()
    loss, metrics = loss_of(longer | {"logp": leaf}, 20)
    expected, expected_metrics = loss_of(arguments, 20)
    assert torch.allclose(loss, expected) and mean_metrics(read_metrics(metrics)) == pytest.approx(
        mean_metrics(read_metrics(expected_metrics))
    )
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert torch.all(gradient[~longer["mask"]] == 0) and torch.isfinite(gradient).all()


def test_gradient_by_finite_differences(ragged):
    batch = ragged((3, 1, 4))
    arguments = inputs(batch, garbage=0.5)

    def scalar(logp, entropy):
        return loss_of(arguments | {"logp": logp, "entropy": entropy}, 8)[0]

    assert torch.autograd.gradcheck(scalar, (arguments["logp"].requires_grad_(), arguments["entropy"].requires_grad_()))


def test_importance_is_truncated_and_constant_to_the_gradient():
    logp = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([[0.5, 1.0, 9.0]], dtype=torch.float64, requires_grad=True)
    loss, metrics = ppo_policy_loss(
        logp, torch.zeros(1, 3), torch.ones(1, 3), torch.ones(1, 3), CLIP, 3, importance=weights, importance_cap=2.0
    )
    loss.backward()
    assert logp.grad[0].tolist() == pytest.approx([-0.5 / 3, -1 / 3, -2 / 3]) and weights.grad is None
    assert metrics["importance_capped"] == (1.0, 3.0) and metrics["importance"] == (10.5, 3.0)


def test_old_log_probs_and_advantages_are_constants(ragged):
    arguments = inputs(ragged())
    leaves = {name: arguments[name].clone().requires_grad_() for name in ("logp", "old_logp", "advantages")}
    loss_of(arguments | leaves, 20)[0].backward()
    assert leaves["logp"].grad is not None and leaves["old_logp"].grad is leaves["advantages"].grad is None


def test_an_entropy_without_coefficient_is_only_logged():
    entropy = torch.ones(1, 2, requires_grad=True)
    zero = torch.zeros(1, 2)
    loss, metrics = ppo_policy_loss(zero, zero, zero, torch.ones(1, 2), CLIP, 2, entropy=entropy)
    assert not loss.requires_grad and read_metrics(metrics)["entropy"] == (2.0, 2.0)


@pytest.mark.parametrize("gap", [100.0, -100.0, 1e4])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
def test_loss_is_finite_for_any_gap_between_policies(gap, advantage):
    logp = torch.full((1, 2), gap, requires_grad=True)
    loss, metrics = ppo_policy_loss(
        logp, torch.zeros(1, 2), torch.full((1, 2), advantage), torch.ones(1, 2), CLIP, 2,
        importance=ratios(logp, torch.zeros(1, 2), torch.ones(1, 2)),
    )  # fmt: skip
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logp.grad).all()
    assert all(math.isfinite(value) for value, _ in read_metrics(metrics).values())


def test_empty_micro_batch_has_zero_loss_and_gradient():
    logp = torch.full((2, 3), torch.nan, requires_grad=True)
    loss, metrics = ppo_policy_loss(logp, logp.detach(), logp.detach(), torch.zeros(2, 3), CLIP, 5)
    loss.backward()
    assert loss.item() == 0 and torch.equal(logp.grad, torch.zeros(2, 3)) and mean_metrics(read_metrics(metrics)) == {}


def test_ratio_quantiles_by_kind():
    ratio = torch.tensor([[1.0, 2.0, 3.0, 50.0], [10.0, 20.0, 99.0, 99.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    video = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]])
    actual = ratio_quantiles(ratio, mask, video, quantiles=(0.0, 0.5, 0.975))
    assert actual == pytest.approx(
        {"ratio_text_p0": 1.0, "ratio_text_p50": 2.0, "ratio_text_p97.5": 2.95,
         "ratio_video_p0": 10.0, "ratio_video_p50": 15.0, "ratio_video_p97.5": 19.75}
    )  # fmt: skip
    assert set(ratio_quantiles(ratio, mask, torch.zeros_like(mask), (0.5,))) == {"ratio_text_p50"}
    assert ratio_quantiles(ratio, torch.zeros_like(mask), video) == {}
