"""Which rows a step uses."""

from __future__ import annotations

import pytest

from rlaif.data.sampler import rows_of_step


def steps(rows, batch, count, *seed) -> list[int]:
    return [row for step in range(count) for row in rows_of_step(rows, batch, step, *seed)]


@pytest.mark.parametrize(("rows", "batch"), [(12, 4), (10, 4), (7, 3), (3, 8), (1, 2)])
def test_each_epoch_is_a_permutation(rows, batch):
    """Also where a step begins in one epoch and ends in the next, or spans several."""
    drawn = steps(rows, batch, 3 * rows, 0, "sft")
    epochs = [drawn[start : start + rows] for start in range(0, len(drawn) - rows + 1, rows)]
    assert len(epochs) == 3 * batch and all(sorted(epoch) == list(range(rows)) for epoch in epochs)


@pytest.mark.parametrize(("rows", "batch"), [(10, 4), (7, 3), (5, 4), (9, 8), (8, 8), (50, 32)])
def test_no_row_twice_in_a_batch(rows, batch):
    for step in [*range(3 * rows), 10**5]:
        assert len(set(rows_of_step(rows, batch, step, 0))) == batch


def test_epochs_differ():
    drawn = steps(20, 20, 4, 0)
    assert len({tuple(drawn[start : start + 20]) for start in range(0, 80, 20)}) == 4


def test_a_step_needs_none_of_the_steps_before_it():
    whole = [rows_of_step(10, 4, step, 3, "ppo") for step in range(30)]
    backwards = [rows_of_step(10, 4, step, 3, "ppo") for step in reversed(range(30))]
    assert whole == backwards[::-1]
    assert all(isinstance(row, int) for step in whole for row in step)


def test_every_part_of_the_seed_counts():
    orders = {tuple(rows_of_step(50, 50, 0, *seed)) for seed in [(0, "sft"), (1, "sft"), (0, "reward"), (0,), ()]}
    assert len(orders) == 5


@pytest.mark.parametrize(
    ("batch", "seed", "complete"), [(4, 3, True), (5, 3, False), (4, 4, False)], ids=["same", "batch size", "seed"]
)
def test_resume_repeats_and_skips_nothing_with_the_same_batch_size_and_seed_alone(batch, seed, complete):
    """Two steps before the stop, the others after it, with the options changed or not."""
    before = steps(12, 4, 2, 3, "ppo")
    after = [row for step in range(2, 12 // batch + 1) for row in rows_of_step(12, batch, step, seed, "ppo")]
    assert (sorted((before + after)[:12]) == list(range(12))) is complete
