"""The text that a reward model reads, and the video that its captions come from."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from rlaif.config.schema import Reward
from rlaif.models.reward_prompt import RewardPrompt, contexts

CAPTIONS = ("a red circle moves left", "a blue square", "down")
SEED_FORM = {
    "captions_template": "context : {captions} . ",
    "prompt_template": "{context}{question}",
    "evaluation_turn": "{context}describe the answer to {question}",
}


def prompt(**changes) -> RewardPrompt:
    return RewardPrompt.of(Reward(**changes))


@pytest.mark.parametrize(
    ("budget", "count"),
    [(100, 3), (9, 3), (8, 2), (7, 1), (5, 1), (4, 0), (0, 0)],
)
def test_whole_captions_within_the_budget(qwen, budget, count):
    filled = prompt(max_caption_tokens=budget, captions_separator=" / ").fill_context(qwen, CAPTIONS)
    assert filled == (f"context : {' / '.join(CAPTIONS[:count])}\n" if count else "")


def test_a_caption_that_does_not_fit_ends_the_context(qwen):
    """Add captions in time order: a later, shorter caption does not replace one that is too long."""
    assert prompt(max_caption_tokens=4).fill_context(qwen, CAPTIONS) == ""


def test_context_is_empty_without_captions(qwen):
    assert prompt(context="none").fill_context(qwen, CAPTIONS) == ""
    assert prompt().fill_context(qwen, ()) == ""


def test_answer_is_scored_at_its_last_token(qwen):
    features = qwen.video("clip")
    item = prompt().encode(qwen, "what do you see ?", CAPTIONS, "a red circle", features)
    prefix = qwen.text(item.ids[: item.start])
    assert prefix.endswith("context : a red circle moves left a blue square down what do you see ? assistant")
    assert qwen.text(item.ids[item.start :]) == "a red circle"
    assert item.ids[-1] == qwen.eos_id and item.video is features


def test_evaluation_turn_is_scored_at_the_place_of_the_verdict(qwen):
    item = prompt(**SEED_FORM).encode(qwen, "what ?", CAPTIONS, "a red circle", qwen.video("clip"))
    text = qwen.text(item.ids[item.start :])
    assert text.startswith("a red circle") and text.endswith("assistant")
    assert "user context : a red circle moves left a blue square down . describe" in text and "what ?" in text
    start = qwen.tokens("<|im_start|>assistant\n")
    assert item.ids[-len(start) :].tolist() == start


def test_vlm_rlaif_preset_puts_the_context_into_the_evaluation_turn(qwen):
    """Expect question, answer, the evaluation turn with the captions in its first criterion, and the verdict's beginning."""
    form = RewardPrompt.of(Reward(preset="vlm_rlaif"))
    messages = []
    encoder = SimpleNamespace(
        tokens=lambda text: text.split(), conversation=lambda *arguments: messages.append(arguments) or "encoded"
    )
    features = object()
    assert form.encode(encoder, "what ?", CAPTIONS, "a circle", features) == "encoded"
    ((turns, video, verdict),) = messages
    assert [role for role, _ in turns] == ["user", "assistant", "user"] and video is features
    assert turns[0][1] == "what ?" and turns[1][1] == "a circle"
    first, second = turns[2][1].split("\n2.")
    assert first.splitlines()[1].startswith("1.") and "3." in second and "4." in second
    lines = first.splitlines()[-3:]
    assert [line.strip(" *") for line in lines] == list(CAPTIONS) and "{" not in turns[2][1]
    assert verdict == form.verdict and verdict.endswith(" is")
    without = replace(form, context="none")
    without.encode(encoder, "what ?", CAPTIONS, "a circle", features)
    assert not any(caption in messages[1][0][2][1] for caption in CAPTIONS)


def test_a_verdict_is_read_at_its_last_token(qwen):
    item = prompt(**SEED_FORM, verdict="and the video").encode(qwen, "what ?", (), "a red circle", qwen.video("clip"))
    assert qwen.text(item.ids[-4:]) == "assistant and the video" or qwen.text(item.ids[-3:]) == "and the video"
    assert item.ids[-1] == qwen.tokens("video")[0]


def test_cards_written_before_there_were_verdicts_load():
    form = vars(prompt())
    assert RewardPrompt(**{name: value for name, value in form.items() if name != "verdict"}) == prompt()


def test_slots_are_filled_once_and_braces_survive(qwen):
    filled = prompt(prompt_template="{context}{question} {other}")
    item = filled.encode(qwen, "what {context} {question} }{ {0} ?", ("a { down } {question}",), "a", None)
    expected = qwen.chat(
        [("user", "context : a { down } {question}\nwhat {context} {question} }{ {0} ? {other}")], False, True
    )
    assert item.ids[: item.start].tolist() == qwen.tokens(expected)


def test_shuffled_context_is_another_videos_and_stays_so():
    rows = [(f"v{number}", (f"caption {number}",)) for number in range(20)]
    by_row = dict(zip(rows, contexts("shuffled", rows, seed=1), strict=True))
    assert all(context != captions for (_, captions), context in by_row.items())
    assert len(set(by_row.values())) > 8
    again = [*reversed(rows), rows[0]]
    assert [by_row[row] for row in again] == contexts("shuffled", again, seed=1)
    assert list(by_row.values()) != contexts("shuffled", rows, seed=2)


def test_contexts_keeps_own_captions_and_shuffles_to_nothing_without_others():
    assert contexts("captions", [("a", ("x",)), ("a", ()), ("b", ("y",))], 0) == [("x",), (), ("y",)]
    assert contexts("shuffled", [("a", ("x",)), ("b", ())], 0) == [(), ("x",)]
