"""Answers as a fixed number of slots: the padded form in which older systems shape rewards and take means.

An answer of n tokens fills slots 0..n-1 of `total`. The policy has nothing to say about the others: log-prob 0 under
every weights. The critic predicts there too. The value of slot t is read one position before it, so slot n's at the
last token and every later one's at a padding position; nothing attends to padding, which shares the last token's
position, so all padding positions of an answer hold the same value: two padding tokens stand for any number of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlaif.errors import ContractError


def padding_tokens(length: int, total: int) -> int:
    """How many padding tokens behind an answer of `length` tokens make all of its `total` slots' values known: 0 to 2."""
    if length > total:
        raise ContractError(
            f"answers of at most {total} tokens (ppo.sampling.max_tokens)", f"{length}", "Raise that option"
        )
    return min(total - length, 2)


def spread(x: Tensor, lengths: Tensor, total: int) -> Tensor:
    """Slot t of row b is x[b, t], and what stands last, x[b, lengths[b] - 1], from there on. [B, W] -> [B, total].

    lengths [B]: entries of each row that count, its padding tokens included. Gradients add up in the entry repeated.
    """
    slot = torch.arange(total, device=x.device).expand(len(x), total)
    return x.gather(1, torch.minimum(slot, lengths.long()[:, None] - 1))


def filled(x: Tensor, total: int) -> Tensor:
    """Zeros up to `total` slots: [B, T] -> [B, total]."""
    return pad(x, (0, total - x.shape[1]))
