"""Which sequences go together: to ranks by length, to micro-batches by padded positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def deal(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices for each rank: longest first in snake order, so that ranks get equal counts (within one) and similar work."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    hands: list[list[int]] = [[] for _ in range(ranks)]
    for place, index in enumerate(order):
        lap, seat = divmod(place, ranks)
        hands[seat if lap % 2 == 0 else ranks - 1 - seat].append(index)
    return [sorted(hand) for hand in hands]


def pack(lengths: Sequence[int], budget: int, waste: float = 1.15) -> list[list[int]]:
    """Groups of indices, similar lengths together, each at most `budget` padded positions (a longer item goes alone).

    A group that fills an eighth of the budget is closed where its padded positions would exceed `waste` times the others:
    below that, one more forward costs more than the padding.
    """
    groups: list[list[int]] = []
    real = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        padded = lengths[groups[-1][0]] * (len(groups[-1]) + 1) if groups else budget + 1
        wasteful = real >= budget // 8 and padded > waste * (real + lengths[index])
        if padded <= budget and not wasteful:
            groups[-1].append(index)
            real += lengths[index]
        else:
            groups.append([index])
            real = lengths[index]
    return groups


def split_to(groups: list[list[int]], count: int) -> list[list[int]]:
    """Exactly `count` groups (every rank must run the same number of forwards): the largest are halved, then empty ones follow."""
    groups = [list(group) for group in groups]
    while len(groups) < count:
        largest = max(range(len(groups)), key=lambda i: len(groups[i])) if groups else None
        if largest is None or len(groups[largest]) < 2:
            groups.append([])
            continue
        whole = groups[largest]
        groups[largest : largest + 1] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    return groups


def chunks(items: Sequence[T], count: int) -> list[list[T]]:
    """`count` consecutive parts whose sizes differ by at most one."""
    size, extra = divmod(len(items), count)
    ends = [0]
    for part in range(count):
        ends.append(ends[-1] + size + (part < extra))
    return [list(items[a:b]) for a, b in zip(ends[:-1], ends[1:], strict=True)]
