"""Advantages of response tokens: with a critic (GAE) or without one (leave one out)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from rlaif.objectives.masked import wide, zero_outside


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Return generalised advantage estimates and returns (Schulman et al. 2016, eq. 16), each [B, T], 0 on padding.

    rewards, values and mask are [B, T], right-padded. The value after the last token is 0, also for an answer that was
    cut at the token limit.
    """
    dtype = wide(rewards).dtype
    # In float32, A + V of equal scores differ by rounding, and the scale of returns would take that for a spread.
    rewards = zero_outside(rewards.double(), mask)
    values = zero_outside(values.double(), mask)
    after_end = values.new_zeros(len(values), 1)
    next_values = torch.cat([values, after_end], dim=1)[:, 1:]
    # delta_t = r_t + gamma V_{t+1} - V_t
    deltas = rewards + gamma * next_values - values
    advantages = torch.zeros_like(deltas)
    advantage = values.new_zeros(len(values))
    for t in reversed(range(deltas.shape[1])):
        # A_t = delta_t + gamma lam A_{t+1}
        advantage = deltas[:, t] + gamma * lam * advantage
        advantages[:, t] = advantage
    # R_t = A_t + V_t
    returns = advantages + values
    return advantages.to(dtype), returns.to(dtype)


def leave_one_out(scores: Tensor, prompt_ids: Sequence[Hashable]) -> tuple[Tensor, int]:
    """Return each score minus the mean of the other scores of its prompt, and how many prompts have one sample only.

    This is the baseline of Kool et al. (2019) and of RLOO (Ahmadian et al. 2024). scores [B]; prompt_ids [B] names each
    sample's group, in any order and of any size; the advantages are [B]. A group of one sample has no baseline, so its
    advantage is 0.
    """
    group = _group_numbers(prompt_ids).to(scores.device)
    # In float32, equal scores differ from their mean by rounding, which whitening would make as large as a signal.
    exact = scores.double()
    zeros = exact.new_zeros(len(set(prompt_ids)))
    size = zeros.index_add(0, group, torch.ones_like(exact))[group]
    total = zeros.index_add(0, group, exact)[group]
    # The baseline of sample i is (sum_j s_j - s_i) / (n - 1); the clamp avoids 0 / 0 in a group of one.
    baseline = (total - exact) / (size - 1).clamp(min=1)
    advantages = torch.where(size > 1, exact - baseline, 0.0)
    singles = int((size == 1).sum())
    return advantages.to(wide(scores).dtype), singles


def _group_numbers(names: Sequence[Hashable]) -> Tensor:
    """Return the number of each name's group [B] int64, counted from 0 in the order of first occurrence."""
    numbers: dict[Hashable, int] = {}
    rows = []
    for name in names:
        number = numbers.setdefault(name, len(numbers))
        rows.append(number)
    return torch.tensor(rows, dtype=torch.long)


def over_tokens(advantages: Tensor, mask: Tensor) -> Tensor:
    """Return one advantage per answer [B] as [B, T]: each response token gets it, padding gets 0."""
    return zero_outside(advantages[:, None].expand(mask.shape), mask)
