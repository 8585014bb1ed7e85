import statistics

import pytest
import torch

from rlaif.objectives.metrics import mean_metrics, read_metrics
from rlaif.objectives.value import critic_errors, explained_variance, value_loss

CLIP, SCALE = 0.2, 2.5


def inputs(batch, garbage=float("nan")):
    old = batch.x(0, garbage=garbage)
    return {"values": old + batch.x(1, garbage=garbage), "old_values": old,
            "returns": batch.x(2, 3.0, garbage), "mask": batch.mask}  # fmt: skip


def naive(arguments, lengths, limit):
    tokens = []
    for b, n in enumerate(lengths):
        for t in range(n):
            v, old, r = (arguments[name][b, t].item() for name in ("values", "old_values", "returns"))
            losses = [(v - r) ** 2]
            if limit is not None:
                losses.append((min(max(v, old - limit), old + limit) - r) ** 2)
            tokens.append((0.5 * max(losses), losses[-1] > losses[0]))
    return tokens


@pytest.mark.parametrize("value_clip, scale", [(CLIP, SCALE), (None, SCALE), (CLIP, None)])
def test_loss_matches_a_loop(ragged, value_clip, scale):
    batch = ragged()
    arguments = inputs(batch)
    loss, metrics = value_loss(**arguments, denominator=20, value_clip=value_clip, scale=scale)
    tokens = naive(arguments, batch.lengths, None if None in (value_clip, scale) else value_clip * scale)
    assert loss.item() == pytest.approx(sum(t for t, _ in tokens) / 20)
    actual = mean_metrics(read_metrics(metrics))
    assert actual["value_loss"] == pytest.approx(statistics.fmean(t for t, _ in tokens))
    assert actual["value_clip_fraction"] == pytest.approx(statistics.fmean(c for _, c in tokens))


def test_clip_range_by_hand():
    one = torch.ones(1, 1)
    values = torch.tensor([[3.0]], requires_grad=True)
    loss, _ = value_loss(values, 0 * one, 4 * one, one, 1, value_clip=0.5, scale=2.0)
    loss.backward()
    assert loss.item() == 0.5 * (4 - 1) ** 2 and values.grad.item() == 0  # moved beyond 0.5 * 2 from the old value
    wrong_way = torch.tensor([[-3.0]], requires_grad=True)
    loss, _ = value_loss(wrong_way, 0 * one, 4 * one, one, 1, value_clip=0.5, scale=2.0)
    loss.backward()
    assert loss.item() == 0.5 * 7**2 and wrong_way.grad.item() == -7  # the clip never protects a worse value


def test_micro_batches_sum_to_the_full_batch_and_padding_changes_nothing(ragged):
    batch = ragged()
    arguments = inputs(batch)
    options = {"denominator": 20, "value_clip": CLIP, "scale": SCALE}
    whole, metrics = value_loss(**arguments, **options)
    parts = []
    for rows in ([0, 1], [2], [3, 4, 5]):
        part = {name: value[rows] for name, value in arguments.items()}
        parts.append(value_loss(**part, **options))
    assert torch.allclose(sum(loss for loss, _ in parts), whole)
    merged = read_metrics(*(m for _, m in parts))
    assert mean_metrics(merged) == pytest.approx(mean_metrics(read_metrics(metrics)))
    assert explained_variance(merged) == pytest.approx(explained_variance(read_metrics(metrics)))
    longer = {name: batch.padded(x) for name, x in arguments.items()}
    leaf = longer["values"].clone().requires_grad_()
    loss, _ = value_loss(**longer | {"values": leaf}, **options)
    assert torch.allclose(loss, whole)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert torch.all(gradient[~longer["mask"]] == 0) and torch.isfinite(gradient).all()


CLIPPED = {
    "rounding alone": (0.1, -1.7, 0.0, 100.0, 0.0),
    "just inside the range": (0.5, 0.0, 1.9, 0.5000001, 0.0),
    "outside, towards the return": (3.0, 0.0, 4.0, 1.0, 1.0),
    "outside, away from the return": (-3.0, 0.0, 4.0, 1.0, 0.0),
}


@pytest.mark.parametrize("name", CLIPPED)
def test_only_values_outside_the_range_count_as_clipped(name):
    value, old, goal, limit, fraction = CLIPPED[name]
    one = torch.ones(1, 1)
    loss, metrics = value_loss(value * one, old * one, goal * one, one, 1, value_clip=limit, scale=1.0)
    assert mean_metrics(read_metrics(metrics))["value_clip_fraction"] == fraction
    if not fraction:
        assert loss.item() == (0.5 * (value * one - goal * one) ** 2).item()


def test_rounding_never_counts_as_clipping():
    old, change = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    _, metrics = value_loss(old + change, 1000 + 0 * old, old, torch.ones(64, 64), 1, value_clip=1e6, scale=1.0)
    assert mean_metrics(read_metrics(metrics))["value_clip_fraction"] == 0


@pytest.mark.parametrize("scale", [SCALE, None])
def test_gradient_by_finite_differences(ragged, scale):
    arguments = inputs(ragged((3, 1, 4)), garbage=0.5)
    assert torch.autograd.gradcheck(
        lambda v: value_loss(**arguments | {"values": v}, denominator=8, value_clip=CLIP, scale=scale)[0],
        arguments["values"].requires_grad_(),
    )


def test_explained_variance(ragged):
    batch = ragged()
    returns, old = batch.x(0), batch.x(1)

    def explained(old_values):
        fitted = returns - 0.01  # what the update made of the critic must not count
        return explained_variance(value_loss(fitted, old_values, returns, batch.mask, 20)[1])

    r, e = returns[batch.mask].tolist(), (returns - old)[batch.mask].tolist()
    assert explained(old) == pytest.approx(1 - statistics.pvariance(e) / statistics.pvariance(r))
    assert explained(returns) == pytest.approx(1.0)
    assert explained(returns + 3) == pytest.approx(1.0)  # a constant offset explains all of the variance
    assert explained(torch.zeros_like(returns)) == pytest.approx(0.0)


def test_explained_variance_of_constant_returns_is_none():
    one = torch.ones(1, 1)
    assert explained_variance(read_metrics(value_loss(one, one, 2 * one, one, 1)[1])) is None
    assert explained_variance(read_metrics(value_loss(one, one, 2 * one, 0 * one, 1)[1])) is None


def test_critic_errors_of_critic_and_batch_mean(ragged):
    batch = ragged()
    returns, old = 1000 + batch.x(0), 1000.5 + batch.x(1)
    whole = read_metrics(value_loss(returns, old, returns, batch.mask, 20)[1])
    parts = read_metrics(
        *(
            value_loss(returns[i : i + 2], old[i : i + 2], returns[i : i + 2], batch.mask[i : i + 2], 20)[1]
            for i in (0, 2, 4)
        )
    )
    r, e = returns[batch.mask].tolist(), (returns - old)[batch.mask].tolist()
    expected = {"error_rms": statistics.fmean(x * x for x in e) ** 0.5, "mean_baseline_rms": statistics.pstdev(r)}
    assert critic_errors(whole) == pytest.approx(expected) and critic_errors(parts) == pytest.approx(expected)
    mean = torch.full_like(returns, statistics.fmean(r))
    actual = critic_errors(read_metrics(value_loss(returns, mean, returns, batch.mask, 20)[1]))
    assert actual["error_rms"] == pytest.approx(actual["mean_baseline_rms"])  # the baseline is as good as itself
    assert critic_errors(read_metrics(value_loss(returns, mean, returns, 0 * batch.mask, 20)[1])) == {}


EXPLAINED = {
    "a small spread on a large mean": ([1000.1, 1000.2, 1000.3], [1000.15, 1000.15, 1000.3], 0.74985),
    "the same, far from the values": ([1000.1, 1000.2, 1000.3], [-0.05, 0.0, 0.05], 0.74997),
    "constant returns whose squares round": ([0.1] * 3, [0.0, 0.5, 1.0], None),
    "many constant returns": ([1.9] * 39, [0.1 * i for i in range(39)], None),
    "a large constant": ([1e6 + 0.1] * 7, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], None),
    "returns one rounding apart": ([1000.0, 1000.0 + 2.0**-14] * 2, [0.0] * 4, None),
    "returns of NaN": ([1.0, float("nan")], [0.0, 0.0], None),
    "values of NaN": ([1.0, 2.0], [0.0, float("nan")], None),
}


@pytest.mark.parametrize("name", EXPLAINED)
@pytest.mark.parametrize("parts", [1, 3])
def test_explained_variance_survives_float32_inputs(name, parts):
    returns, values, expected = EXPLAINED[name]
    returns, values = torch.tensor([returns]), torch.tensor([values])
    metrics = read_metrics(
        *(
            value_loss(v, v, r, torch.ones_like(r), 1)[1]
            for r, v in zip(returns.chunk(parts, 1), values.chunk(parts, 1), strict=True)
        )
    )
    assert explained_variance(metrics) == (expected and pytest.approx(expected, abs=2e-5))
