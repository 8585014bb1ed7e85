"""Answers as a fixed number of slots, against the same thing with all of its padding written out."""

import pytest
import torch

from rlaif.errors import ContractError
from rlaif.objectives.slots import filled, padding_tokens, spread


@pytest.mark.parametrize(("length", "tokens"), [(3, 2), (7, 2), (8, 1), (9, 0)])
def test_two_padding_tokens_stand_for_any_number(length, tokens):
    assert padding_tokens(length, 9) == tokens


def test_an_answer_longer_than_its_slots_is_refused():
    with pytest.raises(ContractError, match="max_tokens"):
        padding_tokens(10, 9)


def test_the_last_entry_fills_the_rest_and_gathers_its_gradients():
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 99.0], [6.0, 99.0, 99.0]], requires_grad=True)
    lengths = torch.tensor([3.0, 2.0, 1.0])
    out = spread(x, lengths, 5)
    wanted = [[x[b, min(t, int(lengths[b]) - 1)].item() for t in range(5)] for b in range(3)]
    assert out.tolist() == wanted
    (out * torch.arange(15.0).reshape(3, 5)).sum().backward()
    assert x.grad.tolist() == [[0, 1, 2 + 3 + 4], [5, 6 + 7 + 8 + 9, 0], [10 + 11 + 12 + 13 + 14, 0, 0]]


def test_spreading_to_fewer_slots_cuts_garbage_off():
    assert spread(torch.tensor([[1.0, 2.0, 7.0]]), torch.tensor([2]), 2).tolist() == [[1.0, 2.0]]


def test_zeros_up_to_the_slots():
    assert filled(torch.tensor([[1.0, 2.0]]), 4).tolist() == [[1.0, 2.0, 0.0, 0.0]]
