"""Answers as a fixed number of slots, compared with all of their padding written out."""

import pytest
import torch

from rlaif.config.schema import Ppo
from rlaif.errors import ContractError
from rlaif.objectives.slots import PpoSlots, ResponseSlots


@pytest.mark.parametrize(("length", "tokens"), [(3, 2), (7, 2), (8, 1), (9, 0)])
def test_padding_tokens_are_two_at_most(length, tokens):
    assert ResponseSlots(9).padding_tokens(length) == tokens


def test_answer_longer_than_its_slots_is_refused():
    with pytest.raises(ContractError, match="max_tokens"):
        ResponseSlots(9).padding_tokens(10)


def test_repeat_last_fills_later_slots_and_sums_their_gradients():
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 99.0], [6.0, 99.0, 99.0]], requires_grad=True)
    lengths = torch.tensor([3.0, 2.0, 1.0])
    out = ResponseSlots(5).repeat_last(x, lengths)
    expected = []
    for b in range(3):
        last = int(lengths[b]) - 1
        expected.append([x[b, min(t, last)].item() for t in range(5)])
    assert out.tolist() == expected
    (out * torch.arange(15.0).reshape(3, 5)).sum().backward()
    assert x.grad.tolist() == [[0, 1, 2 + 3 + 4], [5, 6 + 7 + 8 + 9, 0], [10 + 11 + 12 + 13 + 14, 0, 0]]


def test_repeat_last_cuts_entries_beyond_the_slots():
    x = torch.tensor([[1.0, 2.0, 7.0]])
    assert ResponseSlots(2).repeat_last(x, torch.tensor([2])).tolist() == [[1.0, 2.0]]


def test_fill_appends_zeros():
    assert ResponseSlots(4).fill(torch.tensor([[1.0, 2.0]])).tolist() == [[1.0, 2.0, 0.0, 0.0]]


def test_response_tokens_alone_change_nothing():
    slots = ResponseSlots()
    x, mask = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    assert slots.counted(mask) is mask
    assert slots.fill(x) is x
    assert slots.repeat_last(x, torch.tensor([1])) is x
    assert slots.padding_tokens(10**6) == 0
    assert slots.width(7) == 7


def test_all_slots_count_everywhere():
    slots = ResponseSlots(9)
    assert slots.counted(torch.tensor([[1.0, 0.0]])).tolist() == [[1.0, 1.0]]
    assert slots.width(7) == 9


@pytest.mark.parametrize(
    ("score_slot", "loss_mean", "experience", "rewards", "losses"),
    [
        ("last_token", "tokens", None, None, None),
        ("last_slot", "tokens", 9, 9, None),
        ("last_token", "slots", 9, None, 9),
        ("last_slot", "slots", 9, 9, 9),
    ],
)
def test_ppo_options_choose_the_slots_of_each_part(score_slot, loss_mean, experience, rewards, losses):
    config = Ppo(score_slot=score_slot, loss_mean=loss_mean, sampling={"max_tokens": 9})
    slots = PpoSlots.of(config)
    assert (slots.experience.total, slots.rewards.total, slots.losses.total) == (experience, rewards, losses)
