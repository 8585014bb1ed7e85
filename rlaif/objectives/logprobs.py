"""Log-probs of given tokens from logits, as the rollout engine computes them, without a float32 copy of all logits.

Automatic differentiation would keep a float32 softmax of every position ([B, T, V], some 10 GB for 16k tokens of a 152k
vocabulary). Here each block is widened, reduced and dropped, in the forward and again in the backward pass; the one
large tensor that is made is the gradient, in the logits' own dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rlaif.errors import ContractError

BLOCK_ELEMENTS = 1 << 24
"""Logits widened at a time: 64 MiB of float32, and two or three such temporaries at once."""


def token_logprobs(
    logits: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    banned: Sequence[int] = (),
    *,
    block_elements: int = BLOCK_ELEMENTS,
) -> Tensor:
    """log softmax(logits / temperature)[target] in nats: [B, T, V], [B, T] -> [B, T] float32 (float64 from float64).

    banned: token ids that the engine may not sample; they count as logit -inf. A banned target gives -inf: mask it.
    """
    return _apply(logits, targets, temperature, banned, block_elements, entropy=False)[0]


def token_logprobs_entropy(
    logits: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    banned: Sequence[int] = (),
    *,
    block_elements: int = BLOCK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """`token_logprobs` and the entropy of each position's distribution, nats [B, T], both with gradient."""
    logp, entropy = _apply(logits, targets, temperature, banned, block_elements, entropy=True)
    return logp, entropy


def _apply(logits, targets, temperature, banned, block_elements, entropy):
    if not temperature > 0:
        raise ContractError(
            "a sampling temperature above 0", str(temperature), "train at the temperature that samples, or at 1"
        )
    banned = torch.as_tensor(list(banned), dtype=torch.long, device=logits.device)
    return _TokenLogprobs.apply(logits, targets, temperature, banned, block_elements, entropy)


class _TokenLogprobs(torch.autograd.Function):
    """With z = logits / temperature, p = softmax(z), H its entropy and y the target:
    d logp / dz = onehot(y) - p and dH / dz = -p (log p + H)."""

    @staticmethod
    def forward(ctx, logits, targets, temperature, banned, block_elements, with_entropy):
        shape, dtype = targets.shape, torch.promote_types(logits.dtype, torch.float32)
        logp, norm, entropy = (torch.empty(shape, dtype=dtype, device=logits.device) for _ in range(3))
        for at in _blocks(logits.shape, block_elements):
            z = _scaled(logits[at], temperature, banned)
            norm[at] = z.logsumexp(-1)
            logp[at] = z.gather(-1, targets[at][..., None]).squeeze(-1) - norm[at]
            if with_entropy:
                entropy[at] = torch.special.entr(z.sub_(norm[at][..., None]).exp_()).sum(-1)
        ctx.save_for_backward(logits, targets, banned, norm, entropy)
        ctx.temperature, ctx.block_elements = temperature, block_elements
        ctx.set_materialize_grads(False)  # an entropy that is only logged costs nothing in the backward pass
        return logp, entropy if with_entropy else None

    @staticmethod
    def backward(ctx, grad_logp, grad_entropy):
        logits, targets, banned, norm, entropy = ctx.saved_tensors
        grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        for at in _blocks(logits.shape, ctx.block_elements):
            p = _scaled(logits[at], ctx.temperature, banned).sub_(norm[at][..., None]).exp_()
            dz = torch.zeros_like(p)
            if grad_logp is not None:
                g = grad_logp[at][..., None]
                dz = (p * -g).scatter_add_(-1, targets[at][..., None], g)
            if grad_entropy is not None:
                dz += torch.special.entr(p).sub_(p.mul_(entropy[at][..., None])).mul_(grad_entropy[at][..., None])
            grad[at] = dz.div_(ctx.temperature)
        return grad, None, None, None, None, None


def _scaled(block: Tensor, temperature: float, banned: Tensor) -> Tensor:
    z = block.to(torch.promote_types(block.dtype, torch.float32), copy=True).div_(temperature)
    z[..., banned] = -torch.inf
    return z


def _blocks(shape: Sequence[int], limit: int) -> Iterator[tuple[slice, slice]]:
    """Slices of batch and time whose logits number at most `limit` (or one position). Slices are views: flattening a
    [:, start:end] slice of the logits first would copy them all."""
    batch, time, vocabulary = shape
    times = max(1, min(time, limit // vocabulary))
    rows = max(1, limit // (vocabulary * times))
    for b in range(0, batch, rows):
        for t in range(0, time, times):
            yield slice(b, b + rows), slice(t, t + times)
