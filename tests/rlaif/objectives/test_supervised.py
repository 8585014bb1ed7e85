import math

import pytest
import torch

from rlaif.objectives.logprobs import token_logprobs
from rlaif.objectives.metrics import means
from rlaif.objectives.supervised import sft_loss


def test_equals_torch_cross_entropy_and_micro_batches_sum(ragged):
    batch = ragged()
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 6, 9, generator=generator, requires_grad=True)
    targets = torch.randint(0, 9, (6, 6), generator=generator)
    logp = token_logprobs(logits, targets)
    loss, metrics = sft_loss(logp, batch.mask, 20)
    expected = torch.nn.functional.cross_entropy(logits[batch.mask], targets[batch.mask])
    assert torch.allclose(loss, expected) and means(metrics)["nll"] == pytest.approx(expected.item())
    parts = sum(sft_loss(logp[rows], batch.mask[rows], 20)[0] for rows in ([0, 1, 2], [3], [4, 5]))
    assert torch.allclose(parts, loss)
    gradients = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, parts, expected)]
    assert torch.allclose(gradients[0], gradients[1]) and torch.allclose(gradients[0], gradients[2], atol=1e-7)


def test_uniform_predictions_cost_log_v_and_padding_nothing(ragged):
    batch = ragged((2, 0, 1))
    logp = torch.full((3, 2), -math.log(7.0)).masked_fill(~batch.mask, -torch.inf)
    assert sft_loss(logp, batch.mask, 3)[0].item() == pytest.approx(math.log(7.0))
    assert sft_loss(logp[1:2], batch.mask[1:2], 3)[0].item() == 0
