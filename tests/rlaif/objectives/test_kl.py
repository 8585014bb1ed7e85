import math

import pytest
import torch

from rlaif.errors import ContractError
from rlaif.objectives.kl import AdaptiveController, FixedController, k1, k3, token_penalty


def test_estimators_match_values_by_hand():
    logp, ref = torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, -1.0]])
    assert k1(logp, ref).tolist() == [[0.5, -1.0]]
    expected = [math.exp(-0.5) - 1 + 0.5, math.exp(1.0) - 1 - 1.0]
    assert k3(logp, ref)[0].tolist() == pytest.approx(expected)


def test_estimators_are_unbiased_over_the_vocabulary():
    """Sum each estimator over every token with its probability: the result is KL(policy || reference) in closed form."""
    generator = torch.Generator().manual_seed(0)
    logp, ref = torch.randn(2, 50, 11, generator=generator, dtype=torch.float64).log_softmax(-1)
    exact = torch.nn.functional.kl_div(ref, logp, reduction="none", log_target=True).sum(-1)
    for estimator in (k1, k3):
        assert torch.allclose((logp.exp() * estimator(logp, ref)).sum(-1), exact)
    assert k3(logp, ref).min() >= 0


@pytest.mark.parametrize("estimator", ["k1", "k3"])
@pytest.mark.parametrize("clamp", [False, True])
def test_token_penalty_by_estimator_and_clamp(estimator, clamp):
    logp, ref = torch.tensor([[-1.0, -2.0, -0.5]]), torch.tensor([[-1.5, -1.0, -0.5]])
    expected = []
    for a, b in zip(logp[0].tolist(), ref[0].tolist(), strict=True):
        paid = a - b if estimator == "k1" else math.exp(b - a) - 1 - (b - a)
        expected.append(max(0.0, paid) if clamp else paid)
    assert token_penalty(logp, ref, estimator, clamp)[0].tolist() == pytest.approx(expected)
    assert token_penalty(logp, ref, "k1")[0].tolist() == [0.5, -1.0, 0.0]


def test_k3_is_finite_and_differentiable_for_large_ratios():
    logp = torch.tensor([-500.0, -1.0, -1.0], requires_grad=True)
    value = k3(logp, torch.tensor([-1.0, -500.0, -1.0]))
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(logp.grad).all() and value[2] == 0


def test_estimator_gradients_by_finite_differences():
    generator = torch.Generator().manual_seed(1)
    logp, ref = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    for estimator in (k1, k3):
        assert torch.autograd.gradcheck(lambda x, f=estimator: f(x, ref), logp.requires_grad_())


@pytest.mark.parametrize(
    "kl, factor",
    [(6.0, 1.0), (6.6, 1 + 0.1 * 0.0256), (60.0, 1 + 0.2 * 0.0256), (5.4, 1 - 0.1 * 0.0256), (0.0, 1 - 0.2 * 0.0256)],
)
def test_adaptive_controller_follows_the_paper(kl, factor):
    controller = AdaptiveController(0.05, target=6.0, horizon=10_000)
    controller.update(kl, n_samples=256)
    assert controller.value == pytest.approx(0.05 * factor)


def test_adaptive_controller_stays_positive_for_batches_beyond_the_horizon():
    controller = AdaptiveController(0.05, target=6.0, horizon=10)
    for _ in range(3):
        controller.update(0.0, n_samples=1000)
    assert controller.value == pytest.approx(0.05 * 0.8**3)


def test_adaptive_controller_holds_a_target():
    """Simulate a KL that falls as the coefficient rises: the coefficient settles at the target."""
    controller = AdaptiveController(0.01, target=2.0, horizon=1000)
    for _ in range(2000):
        controller.update(0.4 / controller.value, n_samples=100)
    assert 0.4 / controller.value == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("kl", [float("nan"), float("inf")])
def test_adaptive_controller_refuses_a_kl_that_is_not_finite(kl):
    with pytest.raises(ContractError, match="finite mean KL"):
        AdaptiveController(0.05, 6.0, 100).update(kl, 1)


def test_controllers_restore_their_state():
    first = AdaptiveController(0.05, 6.0, 100)
    first.update(9.0, 16)
    for second in (AdaptiveController(0.9, 6.0, 100), FixedController(0.9)):
        second.load_state_dict(first.state_dict())
        assert second.value == first.value
    fixed = FixedController(0.1)
    fixed.update(float("nan"), 3)
    assert fixed.state_dict() == {"value": 0.1}
