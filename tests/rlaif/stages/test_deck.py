"""Which prompts an iteration uses when some of them turn out to be unusable."""

from __future__ import annotations

import json

import pytest

from rlaif.records import Prompt
from rlaif.stages.train.deck import Deck

PROMPTS = [Prompt(f"p{number}", f"{number}.mp4", "what ?") for number in range(10)]


def ids(deck: Deck, *iterations: int) -> list[list[str]]:
    return [[prompt.prompt_id for prompt in deck.of(iteration)] for iteration in iterations]


@pytest.fixture
def deck() -> Deck:
    return Deck(PROMPTS, 4, seed=3)


def test_every_prompt_comes_once_before_any_repeats(deck):
    drawn = [name for names in ids(deck, 0, 1, 2, 3, 4) for name in names]
    assert sorted(drawn) == sorted([prompt.prompt_id for prompt in PROMPTS] * 2)


def test_leaving_a_prompt_out_changes_only_its_own_places(deck):
    before = ids(deck, *range(10))
    deck.leave_out("p4", since=3, reason="broken")
    after = ids(deck, *range(10))
    assert before[:3] == after[:3]
    for old, new in zip(before[3:], after[3:], strict=True):
        assert "p4" not in new and len(set(new)) == 4
        assert set(old) - {"p4"} <= set(new)


def test_substitutes_are_new_to_the_iteration_and_usable(deck):
    (asked,) = ids(deck, 2)
    deck.leave_out(asked[0], since=3, reason="broken")
    others = [prompt.prompt_id for prompt in deck.substitutes(2, asked, 3)]
    assert len(others) == 3 and not set(others) & set(asked)
    assert others == [prompt.prompt_id for prompt in deck.substitutes(2, asked, 3)]
    assert len(deck.substitutes(2, asked, 99)) == 6  # all that there are


def test_the_order_is_a_function_of_seed_iteration_and_state(deck):
    deck.leave_out("p4", since=3, reason="broken")
    state = json.loads(json.dumps(deck.state_dict()))
    resumed = Deck(PROMPTS, 4, seed=3)
    resumed.load_state_dict(state)
    assert ids(resumed, *range(10)) == ids(deck, *range(10))


def test_a_resume_without_some_prompts_keeps_the_order_of_the_others(deck):
    state = deck.state_dict()
    resumed = Deck([*PROMPTS[1:], Prompt("new", "n.mp4", "what ?")], 4, seed=3)
    resumed.load_state_dict(state)
    assert resumed.gone == ["p0"] and resumed.unknown == ["new"]
    resumed.leave_out("p0", since=4, reason="gone")
    for old, new, iteration in zip(ids(deck, *range(8)), ids(resumed, *range(8)), range(8), strict=True):
        if iteration < 4:  # had been asked for: what is left of it is asked again
            assert new == [name for name in old if name != "p0"]
        else:
            assert set(old) - {"p0"} <= set(new) and len(new) == 4


def test_fewer_prompts_than_places_leave_places_empty():
    deck = Deck(PROMPTS[:4], 4, seed=3)
    deck.leave_out("p1", since=1, reason="broken")
    assert sorted(ids(deck, 1)[0]) == ["p0", "p2", "p3"]
