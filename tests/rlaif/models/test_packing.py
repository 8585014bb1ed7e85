"""Dealing sequences to ranks and packing them into micro-batches."""

from __future__ import annotations

from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.models.packing import chunks, deal, pack, split_to

unhurried = settings(deadline=None)
LENGTHS = st.lists(st.integers(1, 500), max_size=40)


def flat(groups) -> list[int]:
    return sorted(chain.from_iterable(groups))


@unhurried
@given(LENGTHS, st.integers(1, 6))
def test_deal_gives_every_index_to_one_rank_in_equal_counts(lengths, ranks):
    hands = deal(lengths, ranks)
    assert len(hands) == ranks and flat(hands) == list(range(len(lengths)))
    counts = [len(hand) for hand in hands]
    assert max(counts) - min(counts) <= 1
    assert all(hand == sorted(hand) for hand in hands)
    if lengths:
        work = []
        for hand in hands:
            work.append(sum(lengths[i] for i in hand))
        assert max(work) - min(work) <= max(lengths)


def test_deal_is_in_snake_order():
    assert deal([1, 8, 2, 7, 3, 6, 4, 5], 2) == [[0, 1, 6, 7], [2, 3, 4, 5]]  # 18 positions each


@unhurried
@given(LENGTHS, st.integers(1, 800))
def test_pack_keeps_the_budget_of_padded_positions(lengths, budget):
    groups = pack(lengths, budget)
    assert flat(groups) == list(range(len(lengths))) and all(groups)
    for group in groups:
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= budget
    for group, after in zip(groups, groups[1:], strict=False):  # none could have taken the next item within both limits
        padded, real = max(lengths[i] for i in group) * (len(group) + 1), sum(lengths[i] for i in group)
        assert padded > budget or (real >= budget // 8 and padded > 1.15 * (real + lengths[after[0]]))


def test_pack_accepts_padding_only_while_a_group_is_small():
    mixed = [100, 100, 90, 40, 40, 40]
    assert pack(mixed, 100_000) == [[0, 1, 2, 3, 4, 5]]  # too few positions to be worth another forward
    assert pack(mixed, 2_000) == [[0, 1, 2], [3, 4, 5]]
    assert pack(mixed, 2_000, waste=2.0) == [[0, 1, 2, 3, 4, 5]]


@unhurried
@given(LENGTHS, st.integers(1, 800), st.integers(0, 60))
def test_split_to_keeps_every_index_and_returns_the_requested_count(lengths, budget, count):
    groups = pack(lengths, budget)
    split = split_to(groups, max(count, len(groups)))
    assert len(split) == max(count, len(groups)) and flat(split) == flat(groups)
    for part in split:  # each is a part of one group, so it is still within the budget
        assert any(set(part) <= set(group) for group in groups) or not part
    if len(split) <= len(lengths):
        assert all(split)


def test_split_to_does_not_change_its_argument():
    groups = [[0, 1], [2]]
    assert split_to(groups, 4) == [[0], [1], [2], []] and groups == [[0, 1], [2]]


@unhurried
@given(st.lists(st.integers(), max_size=30), st.integers(1, 8))
def test_chunks_are_consecutive_and_of_equal_size(items, count):
    parts = chunks(items, count)
    assert len(parts) == count and sum(parts, []) == items
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
