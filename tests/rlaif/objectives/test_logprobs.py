import pytest
import torch

from rlaif.errors import ContractError
from rlaif.objectives import logprobs
from rlaif.objectives.logprobs import token_logprobs, token_logprobs_entropy

B, T, V = 3, 5, 7
BLOCKS = [1, V, 2 * V, 3 * T * V, 1 << 20]
"""From one position at a time to everything at once."""


def random_logits(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(B, T, V, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(0, 5, (B, T), generator=generator)  # 5 and 6 may be banned


def expected_by_autograd(logits, targets, temperature=1.0, banned=()):
    ban = torch.zeros(V, dtype=torch.bool)
    ban[list(banned)] = True
    logp = (logits.double() / temperature).masked_fill(ban, -torch.inf).log_softmax(-1)
    allowed = logp[..., ~ban]
    return logp.gather(-1, targets[..., None]).squeeze(-1), -(allowed.exp() * allowed).sum(-1)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("temperature, banned", [(1.0, ()), (0.7, (5, 6)), (1.3, (6,))])
def test_values_and_gradients_equal_autograds(block, temperature, banned):
    logits, targets = random_logits()
    ours, reference = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    actual = token_logprobs_entropy(ours, targets, temperature, banned, block_elements=block)
    expected = expected_by_autograd(reference, targets, temperature, banned)
    for a, b in zip(actual, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    upstream = random_logits(seed=1)[0][..., :2].unbind(-1)
    torch.autograd.backward(actual, upstream)
    torch.autograd.backward(expected, upstream)
    assert torch.allclose(ours.grad, reference.grad, atol=1e-12)


@pytest.mark.parametrize("banned", [(), (5, 6)])
def test_gradients_by_finite_differences(banned):
    logits, targets = random_logits()
    leaf = logits[:2, :3].clone().requires_grad_()
    for function in (token_logprobs, token_logprobs_entropy):
        assert torch.autograd.gradcheck(
            lambda x, f=function: f(x, targets[:2, :3], 0.7, banned, block_elements=2 * V), leaf
        )


def test_banned_tokens_equal_a_smaller_vocabulary():
    logits, targets = random_logits()
    rest = token_logprobs(logits[..., :5].contiguous(), targets)
    assert torch.allclose(token_logprobs(logits, targets, banned=(5, 6)), rest)


def test_low_precision_logits_are_reduced_in_float32():
    logits, targets = random_logits(dtype=torch.bfloat16)
    leaf = logits.clone().requires_grad_()
    logp = token_logprobs(leaf, targets)
    logp.sum().backward()
    assert logp.dtype == torch.float32 and leaf.grad.dtype == torch.bfloat16
    assert torch.allclose(logp.double(), expected_by_autograd(logits, targets)[0], atol=1e-6)


def test_slices_of_logits_and_empty_batches():
    logits, targets = random_logits()
    leaf = logits.clone().requires_grad_()
    part = token_logprobs(leaf[:, 1:4], targets[:, 1:4], block_elements=2 * V)
    assert torch.equal(part, token_logprobs(logits, targets)[:, 1:4])
    part.sum().backward()
    assert torch.all(leaf.grad[:, 0] == 0) and torch.all(leaf.grad[:, 4] == 0) and leaf.grad[:, 1:4].abs().sum() > 0
    for shape in ((0, T), (B, 0)):
        assert token_logprobs(logits[: shape[0], : shape[1]], targets[: shape[0], : shape[1]]).shape == shape


def test_logits_are_not_changed():
    logits, targets = random_logits(dtype=torch.float32)
    before = logits.clone()
    token_logprobs(logits, targets, 1.0, banned=(5,))
    assert torch.equal(logits, before)


def test_extreme_logits_and_masked_banned_targets_make_no_nan():
    logits, targets = random_logits(dtype=torch.float32)
    logits[0, 0] = torch.tensor([1e4, -1e4, 0, 0, 0, 0, 0])
    logits[0, 1, 3] = -torch.inf
    targets[0, 0], targets[0, 1], targets[2, 4] = 1, 0, 6
    leaf = logits.requires_grad_()
    logp, entropy = token_logprobs_entropy(leaf, targets, banned=(6,))
    assert logp[2, 4] == -torch.inf
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[2, 4] = False
    (logp.masked_fill(~mask, 0).sum() + entropy.sum()).backward()
    assert torch.isfinite(logp[mask]).all() and torch.isfinite(entropy).all() and torch.isfinite(leaf.grad).all()


def test_values_of_a_uniform_distribution():
    logp, entropy = token_logprobs_entropy(torch.zeros(1, 1, 4), torch.zeros(1, 1, dtype=torch.long), banned=(3,))
    assert logp.exp().item() == pytest.approx(1 / 3) and entropy.exp().item() == pytest.approx(3.0)


def test_blocks_stay_within_the_limit_and_cover_every_position():
    for limit in BLOCKS:
        count = torch.zeros(B, T)
        for at in logprobs._blocks((B, T, V), limit):
            count[at] += 1
            assert count[at].numel() * V <= max(limit, V)
        assert torch.all(count == 1)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_above_zero(temperature):
    with pytest.raises(ContractError, match="temperature above 0"):
        token_logprobs(*random_logits(), temperature)
