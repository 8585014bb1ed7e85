"""Log-probs of given tokens from logits, as the rollout engine computes them, without a float32 copy of all logits.

Automatic differentiation would keep a float32 softmax of every position ([B, T, V], some 10 GB for 16k tokens of a 152k
vocabulary). Here each block is widened, reduced and dropped, in the forward and again in the backward pass; the only
large tensor is the gradient, in the logits' own dtype.
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
    """Return log softmax(logits / temperature)[target] in nats: [B, T, V], [B, T] -> [B, T] float32 (float64 from float64).

    banned: token ids that the engine may not sample; they count as logit -inf. A banned target gives -inf: mask it.
    Raises ContractError unless the temperature is above 0.
    """
    logp, _ = _apply(logits, targets, temperature, banned, block_elements, entropy=False)
    return logp


def token_logprobs_entropy(
    logits: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    banned: Sequence[int] = (),
    *,
    block_elements: int = BLOCK_ELEMENTS,
) -> tuple[Tensor, Tensor]:
    """Return `token_logprobs` and the entropy of each position's distribution, nats [B, T], both with gradient."""
    return _apply(logits, targets, temperature, banned, block_elements, entropy=True)


def _apply(logits, targets, temperature, banned, block_elements, entropy):
    if not temperature > 0:
        raise ContractError(
            "a sampling temperature above 0",
            str(temperature),
            "Train at the temperature that samples (`ppo.sampling.temperature`), or at 1.",
        )
    banned_ids = torch.as_tensor(list(banned), dtype=torch.long, device=logits.device)
    return _TokenLogprobs.apply(logits, targets, temperature, banned_ids, block_elements, entropy)


class _TokenLogprobs(torch.autograd.Function):
    """Log-prob and entropy block by block, with z = logits / temperature, p = softmax(z), H its entropy and y the target."""

    @staticmethod
    def forward(ctx, logits, targets, temperature, banned, block_elements, with_entropy):
        dtype = torch.promote_types(logits.dtype, torch.float32)
        logp = torch.empty(targets.shape, dtype=dtype, device=logits.device)
        norm = torch.empty_like(logp)
        entropy = torch.empty_like(logp)
        for at in _blocks(logits.shape, block_elements):
            z = _scaled(logits[at], temperature, banned)
            norm[at] = z.logsumexp(-1)
            # log p_y = z_y - logsumexp(z)
            logp[at] = z.gather(-1, targets[at][..., None]).squeeze(-1) - norm[at]
            if with_entropy:
                p = z.sub_(norm[at][..., None]).exp_()
                # `entr` is -p log p, and 0 for p = 0: a banned token has no share in the entropy
                entropy[at] = torch.special.entr(p).sum(-1)
        ctx.save_for_backward(logits, targets, banned, norm, entropy)
        ctx.temperature, ctx.block_elements = temperature, block_elements
        # An entropy that is only logged has no gradient: None instead of zeros saves its part of the backward pass.
        ctx.set_materialize_grads(False)
        return logp, entropy if with_entropy else None

    @staticmethod
    def backward(ctx, grad_logp, grad_entropy):
        logits, targets, banned, norm, entropy = ctx.saved_tensors
        grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        for at in _blocks(logits.shape, ctx.block_elements):
            p = _scaled(logits[at], ctx.temperature, banned).sub_(norm[at][..., None]).exp_()
            dz = torch.zeros_like(p)
            if grad_logp is not None:
                # d logp / dz = onehot(y) - p
                g = grad_logp[at][..., None]
                dz = (p * -g).scatter_add_(-1, targets[at][..., None], g)
            if grad_entropy is not None:
                # dH / dz = -p (log p + H) = entr(p) - p H
                entropy_slope = torch.special.entr(p).sub_(p.mul_(entropy[at][..., None]))
                dz += entropy_slope.mul_(grad_entropy[at][..., None])
            # dz / dlogits = 1 / temperature
            grad[at] = dz.div_(ctx.temperature)
        return grad, None, None, None, None, None


def _scaled(block: Tensor, temperature: float, banned: Tensor) -> Tensor:
    """Return a float32 (or float64) copy of the block divided by the temperature, with -inf at banned ids."""
    z = block.to(torch.promote_types(block.dtype, torch.float32), copy=True).div_(temperature)
    z[..., banned] = -torch.inf
    return z


def _blocks(shape: Sequence[int], limit: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of batch and time with at most `limit` logits each (but at least one position)."""
    # Slices are views: flattening a [:, start:end] slice of the logits first would copy them all.
    batch, time, vocabulary = shape
    times = max(1, min(time, limit // vocabulary))
    rows = max(1, limit // (vocabulary * times))
    for b in range(0, batch, rows):
        for t in range(0, time, times):
            yield slice(b, b + rows), slice(t, t + times)
