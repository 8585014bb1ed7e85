"""Which frames captions cover, what is asked for them, and the narrative."""

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import ConfigError, ContractError, DataError
from rlaif.feedback.narrative import CaptionPlan, clips, narrative, request_text, summary_text, version

SHORT = CaptionPlan(
    prompt="{previous}{question}describe .", previous_slot="<{previous}> ", question_slot="[{question}] "
)


def test_fifty_frames_in_three_clips():
    """The best setting of VLM-RLAIF: 50 frames, three clips, at most 20 frames each: none is left out."""
    assert clips(50, CaptionPlan()) == [list(range(16)), list(range(16, 33)), list(range(33, 50))]


def test_a_long_clip_is_sampled_evenly_with_both_ends():
    assert clips(200, CaptionPlan(count=2, frames=5)) == [[0, 24, 49, 74, 99], [100, 124, 149, 174, 199]]
    assert clips(9, CaptionPlan(count=3, frames=1)) == [[1], [4], [7]]


def test_frames_leave_out_the_first_and_the_last():
    frame = CaptionPlan(unit="frame")
    assert clips(50, frame) == [[12], [24], [36]]
    assert clips(51, replace(frame, count=1)) == [[25]]
    assert clips(5, frame) == [[1], [2], [3]]


def test_too_few_frames_give_fewer_units():
    assert clips(4, CaptionPlan(unit="frame")) == [[0], [1], [3]]
    assert clips(2, CaptionPlan(unit="frame")) == [[0], [1]]
    assert clips(2, CaptionPlan()) == [[0], [1]]
    with pytest.raises(DataError, match="at least one frame"):
        clips(0, CaptionPlan())


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 30), st.integers(1, 30), st.sampled_from(["clip", "frame"]))
def test_units_are_in_time_order_and_never_overlap(total, count, frames, unit):
    plan = CaptionPlan(unit=unit, count=count, frames=frames)
    units = clips(total, plan)
    flat = [index for part in units for index in part]
    assert flat == sorted(set(flat)) and 0 <= flat[0] and flat[-1] < total
    assert len(units) == min(count, total)
    assert all(1 <= len(part) <= (frames if unit == "clip" else 1) for part in units)
    if unit == "clip" and frames >= total:
        assert flat == list(range(total))
    if unit == "frame" and total >= count + 2:
        assert 0 not in flat and total - 1 not in flat


def test_a_request_holds_what_its_plan_says():
    assert request_text(SHORT, "a cat", "what ?") == "describe ."
    assert request_text(replace(SHORT, dependent=True), "a cat", "what ?") == "<a cat> describe ."
    assert request_text(replace(SHORT, dependent=True), None, "what ?") == "describe ."
    assert request_text(replace(SHORT, conditioned=True), "a cat", "what ?") == "[what ?] describe ."
    both = replace(SHORT, dependent=True, conditioned=True)
    assert request_text(both, "{question}", "{previous}") == "<{question}> [{previous}] describe ."


def test_a_conditioned_plan_needs_a_question():
    with pytest.raises(ContractError, match="question"):
        request_text(replace(SHORT, conditioned=True), None, " ")


def test_the_narrative_is_the_captions_in_order():
    assert narrative(["a . ", " ", "b ."], CaptionPlan(separator=" / ")) == "a . / b ."
    assert narrative([], CaptionPlan()) == ""


def test_the_narrative_is_the_summary_where_asked():
    plan = CaptionPlan(aggregate="summarise", conditioned=True, summary_prompt="{question}sum up: {captions}")
    assert summary_text(["a", "b"], plan, "what ?") == "What will be asked about the video: what ?\nsum up: a b"
    assert narrative(["a", "b"], plan, " both ") == "both"
    with pytest.raises(ContractError, match="summary_text"):
        narrative(["a", "b"], plan)


FULL = CaptionPlan(dependent=True, conditioned=True, aggregate="summarise")
OTHER = {
    "unit": "frame", "count": 4, "frames": 8, "dependent": False, "conditioned": False, "aggregate": "concat",
    "separator": "\n", "prompt": "{previous}{question}?", "previous_slot": "{previous}.", "question_slot": "{question}.",
    "summary_prompt": "{captions}", "max_caption_tokens": 9, "max_tokens": 5, "temperature": 0.5,
}  # fmt: skip


def test_every_option_that_changes_what_is_asked_changes_the_version():
    assert OTHER.keys() == {field.name for field in fields(CaptionPlan)}
    versions = {name: version(replace(FULL, **{name: value})) for name, value in OTHER.items()}
    assert len({version(FULL), *versions.values()}) == len(OTHER) + 1
    assert version(FULL) == version(replace(FULL))


def test_options_without_effect_do_not():
    plain = CaptionPlan()
    for name in ("previous_slot", "question_slot", "summary_prompt", "separator", "max_caption_tokens"):
        assert version(replace(plain, **{name: OTHER[name]})) == version(plain)
    frame = CaptionPlan(unit="frame")
    assert version(replace(frame, frames=8)) == version(frame)


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"frames": 0},
        {"unit": "second"},
        {"aggregate": "sum"},
        {"dependent": True, "prompt": "describe ."},
        {"dependent": True, "previous_slot": "before"},
        {"conditioned": True, "prompt": "{previous} describe ."},
        {"aggregate": "summarise", "summary_prompt": "sum up"},
    ],
)
def test_a_plan_that_cannot_work_is_refused(wrong):
    with pytest.raises(ConfigError):
        CaptionPlan(**wrong)
