"""Advantages: with a critic (GAE) or without (leave one out)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from rlaif.objectives.masked import keep, wide


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16), per response token.

    delta_t = r_t + gamma V_{t+1} - V_t, A_t = delta_t + gamma lam A_{t+1}, return_t = A_t + V_t; V is 0 after the end,
    for an answer cut at the token limit too. All [B, T], right-padded; returns (advantages, returns), 0 on padding.
    """
    dtype = wide(rewards).dtype
    # in float64: in float32, A + V of equal scores differ by rounding, which the scale of returns would take for a spread
    rewards, values = keep(rewards.double(), mask), keep(values.double(), mask)
    ahead = values.new_zeros(len(values))
    following = torch.cat([values, ahead[:, None]], dim=1)[:, 1:]
    deltas = rewards + gamma * following - values
    advantages = torch.zeros_like(deltas)
    for t in reversed(range(deltas.shape[1])):
        ahead = deltas[:, t] + gamma * lam * ahead
        advantages[:, t] = ahead
    return advantages.to(dtype), (advantages + values).to(dtype)


def leave_one_out(scores: Tensor, prompt_ids: Sequence[Hashable]) -> tuple[Tensor, int]:
    """Each score minus the mean of the other scores of its prompt (Kool et al. 2019; RLOO, Ahmadian et al. 2024).

    scores [B]; prompt_ids [B] names each sample's group, in any order and of any size. Returns (advantages [B], number
    of groups of one sample): those have no baseline, so their advantage is 0.
    """
    numbers: dict[Hashable, int] = {}
    group = torch.tensor([numbers.setdefault(p, len(numbers)) for p in prompt_ids], dtype=torch.long)
    # in float64: in float32, equal scores differ from their mean by rounding, which whitening would make as large as a signal
    group, exact = group.to(scores.device), scores.double()
    zeros = exact.new_zeros(len(numbers))
    size = zeros.index_add(0, group, torch.ones_like(exact))[group]
    total = zeros.index_add(0, group, exact)[group]
    others = (total - exact) / (size - 1).clamp(min=1)
    advantages = torch.where(size > 1, exact - others, 0.0)
    return advantages.to(wide(scores).dtype), int((size == 1).sum())


def over_tokens(advantages: Tensor, mask: Tensor) -> Tensor:
    """One advantage per answer [B] given to each of its response tokens [B, T]."""
    return keep(advantages[:, None].expand(mask.shape), mask)
