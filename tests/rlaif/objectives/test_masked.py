import statistics
from dataclasses import astuple

import pytest
import torch

from rlaif.errors import ContractError
from rlaif.objectives.masked import Moments, masked_mean, masked_sum, masked_var, per_unit, whiten
from rlaif.objectives.metrics import extremes, mean_metrics, merge, read_metrics, totals


def response_values(x, batch):
    """Return the values on response tokens, in a list."""
    values = []
    for row, length in zip(x, batch.lengths, strict=True):
        values += row[:length].tolist()
    return values


def test_reductions_match_a_loop_for_any_padding(ragged):
    batch = ragged()
    for garbage in (0.0, 7.0, float("inf"), float("nan")):
        x = batch.x(0, garbage=garbage)
        flat = response_values(x, batch)
        assert masked_sum(x, batch.mask).item() == pytest.approx(sum(flat))
        assert masked_mean(x, batch.mask.float()).item() == pytest.approx(statistics.fmean(flat))
        assert masked_var(x, batch.mask).item() == pytest.approx(statistics.pvariance(flat))


def test_masked_slots_get_zero_gradient(ragged):
    batch = ragged()
    x = batch.x(0, garbage=float("nan")).requires_grad_()
    for total in (masked_sum(x, batch.mask), masked_var(x, batch.mask), whiten(x, batch.mask, 0.5, 2.0).sum()):
        (gradient,) = torch.autograd.grad(total, x)
        assert torch.all(gradient[~batch.mask] == 0) and torch.all(gradient[batch.mask] != 0)


def test_an_empty_mask_gives_zeros():
    x, mask = torch.full((2, 3), torch.nan), torch.zeros(2, 3)
    assert masked_mean(torch.ones(1, 2), torch.tensor([[1, 0]])) == 1
    assert masked_mean(x, mask) == masked_var(x, mask) == 0
    nothing = Moments.of(x, mask)
    assert nothing == Moments() and nothing.mean == nothing.var == 0.0
    assert torch.equal(whiten(x, mask, nothing.mean, nothing.var), torch.zeros(2, 3))


def test_half_precision_is_summed_in_float32():
    x = torch.ones(1, 4096, dtype=torch.bfloat16) * 1.0078125
    assert masked_sum(x, torch.ones(1, 4096)).item() == pytest.approx(4096 * 1.0078125)


def test_moments_of_parts_add_up(ragged):
    batch = ragged()
    x = 3 + batch.x(1)
    flat = response_values(x, batch)
    parts = [Moments.of(x[i : i + 2], batch.mask[i : i + 2]) for i in range(0, 6, 2)]
    total = sum(parts, Moments())
    assert astuple(total) == pytest.approx(astuple(Moments.of(x, batch.mask)))
    assert (total.mean, total.var) == pytest.approx((statistics.fmean(flat), statistics.pvariance(flat)))


def test_moments_keep_a_small_spread_on_a_large_mean():
    x = 1e4 + torch.tensor([[-0.01, 0.01]], dtype=torch.float64)
    assert Moments.of(x, torch.ones(1, 2)).var == pytest.approx(1e-4, rel=1e-3)
    constant = Moments.of(torch.full((1, 3), 0.1), torch.ones(1, 3))
    assert constant.var == pytest.approx(0.0, abs=1e-15) and constant.var >= 0


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitened_values_have_unit_variance_and_the_expected_mean(ragged, shift_mean):
    batch = ragged()
    x = 5 + 3 * batch.x(2)
    moments = Moments.of(x, batch.mask)
    after = whiten(x, batch.mask, moments.mean, moments.var, shift_mean)
    result = Moments.of(after, batch.mask)
    assert result.var == pytest.approx(1.0, abs=1e-6)
    assert result.mean == pytest.approx(0.0 if shift_mean else moments.mean)
    assert torch.all(after[~batch.mask] == 0)


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("eps_on", ["variance", "deviation"])
@pytest.mark.parametrize("spread", [1e-6, 1e-4, 3.0])
def test_whitening_by_hand(spread, eps_on, shift_mean):
    x = torch.tensor([[-spread, spread, 0.5 * spread]], dtype=torch.float64) + 0.25
    values, ones = x[0].tolist(), torch.ones(1, 3)
    moments = Moments.of(x, ones)
    mean, var = statistics.fmean(values), statistics.pvariance(values)
    divisor = (var + 1e-8) ** 0.5 if eps_on == "variance" else var**0.5 + 1e-8
    expected = [(value - mean) / divisor + (0.0 if shift_mean else mean) for value in values]
    actual = whiten(x, ones, moments.mean, moments.var, shift_mean, eps_on=eps_on)
    assert actual[0].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("eps_on", ["variance", "deviation"])
@pytest.mark.parametrize("value", [0.1, 1000.1, -1e6])
def test_constants_whiten_to_zero_by_either_rule(value, eps_on):
    x = torch.full((3, 13), value)
    moments = Moments.of(x, torch.ones_like(x))
    actual = whiten(x, torch.ones_like(x), moments.mean, moments.var, eps_on=eps_on)
    assert actual.abs().max() < 1e-3


def test_one_token_and_constant_values_whiten_to_zero():
    for x in (torch.tensor([[2.5]]), torch.full((2, 3), 2.5)):
        moments = Moments.of(x, torch.ones_like(x))
        assert torch.allclose(whiten(x, torch.ones_like(x), moments.mean, moments.var), torch.zeros_like(x))


@pytest.mark.parametrize("denominator", [0, -1, float("nan")])
def test_a_step_without_units_is_refused(denominator):
    with pytest.raises(ContractError, match="positive number of tokens"):
        per_unit(torch.tensor(1.0), denominator)


def test_metrics_of_micro_batches_merge_to_those_of_the_batch(ragged):
    batch = ragged()
    x = batch.x(3, garbage=float("nan"))

    def measure(rows):
        mask = batch.mask[rows]
        return totals(mask, a=x[rows], positive=x[rows] > 0) | extremes("a", x[rows], mask)

    whole = read_metrics(measure(slice(0, 6)))
    merged = read_metrics(*(measure(slice(i, i + 1)) for i in range(6)))
    assert merged.keys() == whole.keys() and all(merged[k] == pytest.approx(whole[k]) for k in whole)
    flat = response_values(x, batch)
    positive = sum(v > 0 for v in flat) / len(flat)
    expected = {"a": statistics.fmean(flat), "positive": positive, "a_min": min(flat), "a_max": max(flat)}
    assert mean_metrics(merged) == pytest.approx(expected)


def test_nan_in_one_micro_batch_survives_the_merge():
    ones, nan = torch.ones(1, 1), torch.tensor([[torch.nan]])
    for parts in ((ones, nan), (nan, ones), (ones, nan, ones)):
        merged = mean_metrics(read_metrics(*(totals(ones, a=x) | extremes("a", x, ones) for x in parts)))
        assert merged.keys() == {"a", "a_min", "a_max"} and all(value != value for value in merged.values())


def test_metrics_without_a_count_have_no_mean():
    mask = torch.zeros(1, 2)
    empty = read_metrics(totals(mask, a=torch.ones(1, 2)) | extremes("a", torch.ones(1, 2), mask))
    assert mean_metrics(empty) == {}
    assert mean_metrics(merge([empty, {"a": (3.0, 2.0)}])) == {"a": 1.5}
