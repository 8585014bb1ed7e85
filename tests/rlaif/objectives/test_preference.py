import math

import pytest
import torch

from rlaif.objectives.metrics import mean_metrics, read_metrics
from rlaif.objectives.preference import bradley_terry, dpo, sequence_logprobs


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def pairs(n, seed=0):
    return torch.randn(2, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_bradley_terry_matches_the_safesora_vector():
    chosen, rejected = torch.tensor([1.2, 0.3]), torch.tensor([0.4, 0.9])
    loss, metrics = bradley_terry(chosen, rejected, "squared", 1e-3, 2)
    means = mean_metrics(read_metrics(metrics))
    assert means["preference_loss"] == pytest.approx(0.704294, abs=1e-6)
    assert means["centering"] == pytest.approx(0.000625)
    assert loss.item() == pytest.approx(0.704919, abs=1e-6)
    assert means["accuracy"] == 0.5 and means["score"] == pytest.approx(0.7) and means["margin"] == pytest.approx(0.1)


def test_vlm_rlaif_centering_is_the_absolute_mean_of_the_pair_sums():
    chosen, rejected = torch.tensor([-1.2, 0.3]), torch.tensor([-0.4, 0.1])
    loss, metrics = bradley_terry(chosen, rejected, "mean_abs", 1e-3, 2)
    plain, _ = bradley_terry(chosen, rejected, "none", 1e-3, 2)
    assert mean_metrics(read_metrics(metrics))["centering"] == pytest.approx(1e-3 * abs(-1.6 + 0.4) / 2)
    assert (loss - plain).item() == pytest.approx(0.6e-3, rel=1e-3)


def test_bradley_terry_is_binary_cross_entropy_of_the_score_difference():
    chosen, rejected = pairs(7)
    loss, metrics = bradley_terry(chosen, rejected, "none", 0.0, 7)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(chosen - rejected, torch.ones(7, dtype=torch.float64))
    assert torch.allclose(loss, bce)
    expected = sum(softplus(b - a) for a, b in zip(chosen.tolist(), rejected.tolist(), strict=True)) / 7
    assert loss.item() == pytest.approx(expected)
    assert mean_metrics(read_metrics(metrics))["accuracy"] == pytest.approx(sum((chosen > rejected).tolist()) / 7)


@pytest.mark.parametrize("seed", range(4))
def test_vlm_rlaif_loss_from_two_outputs_and_a_choice(seed):
    """Compare with BCE with logits of r2 - r1 against the choice, plus 1e-3 |mean(r1 + r2)|, whichever output is preferred."""
    r1, r2 = (10 * x - 3 for x in pairs(6, seed))
    choice = torch.randint(0, 2, (6,), generator=torch.Generator().manual_seed(seed)).tolist()
    each, sums = [], []
    for a, b, second in zip(r1.tolist(), r2.tolist(), choice, strict=True):
        p = 1 / (1 + math.exp(a - b))
        each.append(-math.log(p) if second else -math.log(1 - p))
        sums.append(a + b)
    expected = sum(each) / 6 + 1e-3 * abs(sum(sums) / 6)
    second_is_better = torch.tensor(choice, dtype=torch.bool)
    loss, _ = bradley_terry(
        torch.where(second_is_better, r2, r1), torch.where(second_is_better, r1, r2), "mean_abs", 1e-3, 6
    )
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("centering", ["none", "squared"])
def test_bradley_terry_micro_batches_sum_to_the_full_batch(centering):
    chosen, rejected = pairs(7)
    whole, metrics = bradley_terry(chosen, rejected, centering, 0.1, 7)
    cuts = [slice(0, 3), slice(3, 3), slice(3, 4), slice(4, 7)]
    parts = [bradley_terry(chosen[c], rejected[c], centering, 0.1, 7) for c in cuts]
    assert torch.allclose(sum(loss for loss, _ in parts), whole)
    assert mean_metrics(read_metrics(*(m for _, m in parts))) == pytest.approx(mean_metrics(read_metrics(metrics)))


def test_mean_abs_centering_is_each_micro_batchs_own_weighted_by_its_pairs():
    chosen, rejected = pairs(7)
    parts = [bradley_terry(chosen[c], rejected[c], "mean_abs", 0.1, 7)[1] for c in (slice(0, 3), slice(3, 7))]
    expected = sum(0.1 * abs((chosen + rejected)[c].mean().item()) * n for c, n in ((slice(0, 3), 3), (slice(3, 7), 4)))
    assert read_metrics(*parts)["centering"] == pytest.approx((expected, 7))


def test_tie_counts_as_wrong():
    assert read_metrics(bradley_terry(torch.ones(1), torch.ones(1), "none", 0.0, 1)[1])["accuracy"] == (0.0, 1.0)


@pytest.mark.parametrize("margin", [None, [0.0, 1.0, 0.3, 3.0]])
@pytest.mark.parametrize("centering", ["none", "mean_abs", "squared"])
def test_bradley_terry_gradients(centering, margin):
    chosen, rejected = (x.clone().requires_grad_() for x in pairs(4))
    expected = None if margin is None else torch.tensor(margin, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: bradley_terry(a, b, centering, 0.1, 4, expected)[0], (chosen, rejected)
    )


def test_required_margin_is_subtracted_from_the_difference():
    """Compute -log sigmoid(s_w - s_l - m) by hand, for the SafeSora scores with margins of Llama 2's first and third rating."""
    chosen, rejected = torch.tensor([1.2, 0.3]), torch.tensor([0.4, 0.9])
    loss, metrics = bradley_terry(chosen, rejected, "none", 0.0, 2, torch.tensor([1.0, 1 / 3]))
    expected = (softplus(-(1.2 - 0.4 - 1)) + softplus(-(0.3 - 0.9 - 1 / 3))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6) and loss.item() == pytest.approx(1.031552, abs=1e-6)
    means = mean_metrics(read_metrics(metrics))
    assert means["accuracy"] == 0.5 and means["margin"] == pytest.approx(0.1)
    plain, plain_metrics = bradley_terry(chosen, rejected, "none", 0.0, 2)
    same, zero_metrics = bradley_terry(chosen, rejected, "none", 0.0, 2, torch.zeros(2))
    assert torch.equal(plain, same) and plain_metrics == zero_metrics


# Vectors of the fine-grained DPO of RLHF-V: log-probs of one pair, reference log-probs, weights of corrected tokens.
CHOSEN, REF_CHOSEN, W_CHOSEN = [-0.5, -1.0, -0.2], [-0.6, -1.5, -0.2], [1.0, 5.0, 1.0]
REJECTED, REF_REJECTED, W_REJECTED = [-0.4, -0.9, -2.0], [-0.4, -0.7, -1.2], [1.0, 1.0, 5.0]


def published(beta, weighted, average):
    mask = torch.ones(1, 3)
    columns = [(CHOSEN, W_CHOSEN), (REJECTED, W_REJECTED), (REF_CHOSEN, W_CHOSEN), (REF_REJECTED, W_REJECTED)]
    scores = [
        sequence_logprobs(torch.tensor([x]), mask, torch.tensor([w]) if weighted else None, average) for x, w in columns
    ]
    loss, metrics = dpo(*scores, beta, "sigmoid", 1)
    return [s.item() for s in scores], loss.item(), mean_metrics(read_metrics(metrics))


def test_dpo_matches_published_vectors():
    scores, loss, metrics = published(0.5, weighted=True, average=True)
    assert scores == pytest.approx([-0.814286, -1.614286, -1.185714, -1.014286], abs=1e-6)
    assert loss == pytest.approx(0.479494, abs=1e-6)
    assert (metrics["reward_chosen"], metrics["reward_rejected"]) == pytest.approx((0.185714, -0.3), abs=1e-6)
    _, loss, metrics = published(0.5, weighted=True, average=False)
    assert loss == pytest.approx(0.0328285, abs=1e-6)
    assert (metrics["reward_chosen"], metrics["reward_rejected"]) == pytest.approx((1.3, -2.1), abs=1e-6)
    assert published(0.1, weighted=False, average=False)[1] == pytest.approx(0.616344, abs=1e-6)


def test_dpo_of_the_reference_itself():
    logp = pairs(3)
    loss, metrics = dpo(*logp, *logp, 0.1, "sigmoid", 3)
    assert loss.item() == pytest.approx(math.log(2)) and mean_metrics(read_metrics(metrics))["margin"] == 0
    assert dpo(*logp, *logp, 0.1, "hinge", 3)[0].item() == pytest.approx(1.0)


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge"])
def test_dpo_matches_a_loop_and_micro_batches_sum(loss_type):
    (a, b), (ref_a, ref_b) = 3 * pairs(9), 3 * pairs(9, seed=1)
    loss, metrics = dpo(a, b, ref_a, ref_b, 0.5, loss_type, 9)
    margins = [
        0.5 * ((w - rw) - (x - rx))
        for w, x, rw, rx in zip(*map(torch.Tensor.tolist, (a, b, ref_a, ref_b)), strict=True)
    ]
    each = [softplus(-m) if loss_type == "sigmoid" else max(0.0, 1 - m) for m in margins]
    assert loss.item() == pytest.approx(sum(each) / 9)
    assert mean_metrics(read_metrics(metrics))["accuracy"] == pytest.approx(sum(m > 0 for m in margins) / 9)
    parts = [dpo(a[c], b[c], ref_a[c], ref_b[c], 0.5, loss_type, 9) for c in (slice(0, 4), slice(4, 4), slice(4, 9))]
    assert torch.allclose(sum(x for x, _ in parts), loss)
    assert mean_metrics(read_metrics(*(m for _, m in parts))) == pytest.approx(mean_metrics(read_metrics(metrics)))
    leaves = (a.clone().requires_grad_(), b.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda x, y: dpo(x, y, ref_a, ref_b, 0.5, loss_type, 9)[0], leaves)


def test_dpo_reference_gets_no_gradient():
    leaves = [x.clone().requires_grad_() for x in (*pairs(3), *pairs(3, seed=1))]
    dpo(*leaves, 0.5, "sigmoid", 3)[0].backward()
    assert [x.grad is None for x in leaves] == [False, False, True, True]


@pytest.mark.parametrize("margin", [1e4, -1e4])
def test_extreme_margins_stay_finite(margin):
    score = torch.tensor([margin], requires_grad=True)
    zero = torch.zeros(1)
    for loss in (bradley_terry(score, zero, "none", 0.0, 1)[0], dpo(score, zero, zero, zero, 1.0, "sigmoid", 1)[0]):
        (gradient,) = torch.autograd.grad(loss, score)
        assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_bradley_terry_without_pairs_is_zero_with_zero_gradient():
    scores = torch.ones(2, requires_grad=True)
    for centering in ("none", "mean_abs", "squared"):
        loss, metrics = bradley_terry(scores[:0], scores[:0], centering, 1e-3, 4)
        (gradient,) = torch.autograd.grad(loss, scores)
        assert loss.item() == 0 and torch.equal(gradient, torch.zeros(2)) and mean_metrics(read_metrics(metrics)) == {}


@pytest.mark.parametrize("average", [True, False])
def test_sequence_logprobs_match_a_loop_and_ignore_padding(ragged, average):
    batch = ragged()
    logp, weights = batch.x(0, garbage=-math.inf), batch.x(1, garbage=math.nan).abs()
    expected = []
    for b, n in enumerate(batch.lengths):
        total = sum(logp[b, t].item() * weights[b, t].item() for t in range(n))
        expected.append(total / sum(weights[b, :n].tolist()) if average and n else total)
    assert sequence_logprobs(logp, batch.mask, weights, average).tolist() == pytest.approx(expected)
    longer = (batch.padded(logp), batch.padded(batch.mask), batch.padded(weights))
    assert sequence_logprobs(*longer, average).tolist() == pytest.approx(expected)
