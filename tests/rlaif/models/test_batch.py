"""Padding on either side, and the values read from a padded batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlaif.models.batch import collate


@pytest.fixture(scope="module")
def items(qwen):
    """Return three sequences of different lengths; the second one without a video, the third without a response."""
    sequences = [
        qwen.conversation(
            [("user", "what ?"), ("assistant", "a red circle"), ("user", "and ?"), ("assistant", "a")], qwen.video("a")
        ),
        qwen.conversation([("user", "describe the video ."), ("assistant", "a blue square moves")], None),
        qwen.prompt_and_response("what do you see ?", [], qwen.video("b")),
    ]
    with_extras = []
    for k, item in enumerate(sequences):
        extras = {"returns": np.arange(len(item.mask), dtype=np.float32) + k, "score": float(k)}
        with_extras.append(replace(item, extras=extras))
    return with_extras


@pytest.mark.parametrize("side", ["right", "left"])
def test_responses_are_located_with_padding_on_either_side(items, side):
    batch = collate(items, pad_id=0, side=side)
    assert batch.ids.shape == batch.attention.shape == batch.positions.shape[1:]
    assert batch.ids.shape[1] == max(len(item.ids) for item in items)
    for row, item in enumerate(items):
        on = batch.attention[row].bool()
        assert batch.ids[row][on].tolist() == item.ids.tolist() and not batch.ids[row][~on].any()
        assert np.array_equal(batch.positions[:, row, on].numpy(), item.positions)
        count = len(item.mask)
        assert batch.targets[row, :count].tolist() == item.ids[item.start :].tolist()
        assert batch.valid[row].tolist() == [1.0] * count + [0.0] * (batch.valid.shape[1] - count)
        assert batch.mask[row, :count].tolist() == item.mask.tolist() and not batch.mask[row, count:].any()
        assert batch.extras["returns"][row, :count].tolist() == item.extras["returns"].tolist()
        assert not batch.extras["returns"][row, count:].any()
    pads = ~batch.attention.bool()
    first = pads[:, 0] if side == "left" else pads[:, -1]
    assert first.tolist() == [len(item.ids) < batch.ids.shape[1] for item in items]
    assert batch.extras["score"].tolist() == [0.0, 1.0, 2.0]
    assert batch.valid[0].sum() > batch.mask[0].sum() > 0  # later questions are valid, and not trained on


@pytest.mark.parametrize("side", ["right", "left"])
def test_last_is_the_index_of_each_sequences_last_token(items, side):
    batch = collate(items[:2], pad_id=0, side=side)
    assert [int(batch.ids[row, at]) for row, at in enumerate(batch.last)] == [int(item.ids[-1]) for item in items[:2]]


def test_videos_of_a_batch_are_concatenated(items, qwen):
    batch = collate(items, pad_id=0)
    assert batch.video["video_grid_thw"].shape == (2, 3)
    expected = np.concatenate([qwen.video(name).tensors["pixel_values_videos"] for name in "ab"])
    assert torch.equal(batch.video["pixel_values_videos"], torch.from_numpy(expected))
    assert collate(items[1:2], pad_id=0).video == {}
