import math

import pytest
import torch

from rlaif.objectives.logprobs import token_logprobs
from rlaif.objectives.metrics import mean_metrics, read_metrics
from rlaif.objectives.supervised import sft_loss


def test_equals_torch_cross_entropy_and_micro_batches_sum(ragged):
    batch = ragged()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 6, 9, generator=generator, requires_grad=True)
    targets = torch.randint(0, 9, (6, 6), generator=generator)
    logp = token_logprobs(logits, targets)
    loss, metrics = sft_loss(logp, batch.mask, 20)
    expected = torch.nn.functional.cross_entropy(logits[batch.mask], targets[batch.mask])
    assert torch.allclose(loss, expected) and mean_metrics(read_metrics(metrics))["nll"] == pytest.approx(
        expected.item()
    )
    parts = sum(sft_loss(logp[rows], batch.mask[rows], 20)[0] for rows in ([0, 1, 2], [3], [4, 5]))
    assert torch.allclose(parts, loss)
    gradients = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, parts, expected)]
    assert torch.allclose(gradients[0], gradients[1]) and torch.allclose(gradients[0], gradients[2], atol=1e-7)


def test_uniform_predictions_have_loss_log_v(ragged):
    batch = ragged((2, 0, 1))
    logp = torch.full((3, 2), -math.log(7.0)).masked_fill(~batch.mask, -torch.inf)
    assert sft_loss(logp, batch.mask, 3)[0].item() == pytest.approx(math.log(7.0))
    assert sft_loss(logp[1:2], batch.mask[1:2], 3)[0].item() == 0


def test_weights_apply_to_the_loss_and_nll_is_of_answers():
    logp = torch.tensor([[-1.0, -2.0, -4.0], [-3.0, -math.inf, 0.0]], requires_grad=True)
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    weight = torch.tensor([[0.5, 1.0, 0.25], [1.0, 0.0, 0.0]])
    loss, metrics = sft_loss(logp, mask, 2.75, weight)
    assert loss.item() == pytest.approx((0.5 + 2 + 1 + 3) / 2.75)
    assert read_metrics(metrics)["nll"] == (5.0, 2.0)
    loss.backward()
    assert torch.allclose(logp.grad, -weight / 2.75)


def test_weights_of_one_equal_no_weights():
    logp, mask = -torch.rand(2, 3), torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert sft_loss(logp, mask, 5.0, mask)[0].item() == pytest.approx(sft_loss(logp, mask, 5.0)[0].item())
