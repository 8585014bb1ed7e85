"""The distribution of sequences: to ranks by length, to micro-batches by padded positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def deal(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Return the indices for each rank: longest first in snake order.

    So ranks get equal counts (within one) and similar work.
    """
    # snake order: 0 1 2 2 1 0 0 1 2 ...; each lap gives every rank one, and turns round so that no rank gets all the longest
    hands: list[list[int]] = [[] for _ in range(ranks)]
    for place, index in enumerate(_longest_first(lengths)):
        lap, seat = divmod(place, ranks)
        is_backwards = lap % 2 == 1
        hands[ranks - 1 - seat if is_backwards else seat].append(index)
    return list(map(sorted, hands))


def pack(lengths: Sequence[int], budget: int, waste: float = 1.15) -> list[list[int]]:
    """Return groups of indices, similar lengths together, each at most `budget` padded positions (a longer item goes alone).

    A group that fills an eighth of the budget is closed if its padded positions would exceed `waste` times its own ones.
    """
    groups: list[list[int]] = []
    real = 0
    for index in _longest_first(lengths):
        padded = budget + 1
        if groups:
            longest = lengths[groups[-1][0]]
            padded = longest * (len(groups[-1]) + 1)
        # below an eighth of the budget one more forward costs more than the padding
        is_wasteful = real >= budget // 8 and padded > waste * (real + lengths[index])
        if padded <= budget and not is_wasteful:
            groups[-1].append(index)
            real += lengths[index]
        else:
            groups.append([index])
            real = lengths[index]
    return groups


def split_to(groups: list[list[int]], count: int) -> list[list[int]]:
    """Return exactly `count` groups: the largest are halved until there are enough, and empty ones follow if all are single.

    Every rank must run the same number of forwards.
    """
    groups = list(map(list, groups))
    while len(groups) < count:
        sizes = list(map(len, groups))
        if max(sizes, default=0) < 2:
            groups.append([])
            continue
        largest = sizes.index(max(sizes))
        whole, middle = groups[largest], sizes[largest] // 2
        groups[largest : largest + 1] = [whole[:middle], whole[middle:]]
    return groups


def _longest_first(lengths: Sequence[int]) -> list[int]:
    """Return the indices by falling length; ties keep their order."""
    return sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


def chunks(items: Sequence[T], count: int) -> list[list[T]]:
    """Return `count` consecutive parts whose sizes differ by at most one."""
    size, extra = divmod(len(items), count)
    parts, start = [], 0
    for number in range(count):
        end = start + size + (number < extra)
        parts.append(list(items[start:end]))
        start = end
    return parts
