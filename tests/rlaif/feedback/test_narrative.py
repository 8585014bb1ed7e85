"""Frames that captions cover, and the texts that request them."""

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.config.feedback import Caption
from rlaif.errors import ContractError, DataError
from rlaif.feedback.narrative import clips, prompt_version, request_text, summary_text

SHORT = Caption(prompt="{previous}{question}describe .", previous_slot="<{previous}> ", question_slot="[{question}] ")


def but(options: Caption, **changes) -> Caption:
    return Caption(**options.model_dump() | changes)


def test_three_clips_cover_all_fifty_frames():
    """With the best setting of VLM-RLAIF (three clips, at most 20 frames each) no frame is left out."""
    assert clips(50, Caption()) == [list(range(16)), list(range(16, 33)), list(range(33, 50))]


def test_a_long_clip_is_sampled_evenly_with_both_ends():
    assert clips(200, Caption(count=2, frames=5)) == [[0, 24, 49, 74, 99], [100, 124, 149, 174, 199]]
    assert clips(9, Caption(count=3, frames=1)) == [[1], [4], [7]]


def test_single_frames_exclude_the_first_and_the_last():
    frame = Caption(unit="frame")
    assert clips(50, frame) == [[12], [24], [36]]
    assert clips(51, but(frame, count=1)) == [[25]]
    assert clips(5, frame) == [[1], [2], [3]]


def test_too_few_frames_give_fewer_units():
    assert clips(4, Caption(unit="frame")) == [[0], [1], [3]]
    assert clips(2, Caption(unit="frame")) == [[0], [1]]
    assert clips(2, Caption()) == [[0], [1]]
    with pytest.raises(DataError, match="at least one frame"):
        clips(0, Caption())


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 30), st.integers(1, 30), st.sampled_from(["clip", "frame"]))
def test_units_are_in_time_order_and_never_overlap(total, count, frames, unit):
    options = Caption(unit=unit, count=count, frames=frames)
    units = clips(total, options)
    flat = list(chain.from_iterable(units))
    assert flat == sorted(set(flat)) and flat[0] >= 0 and flat[-1] < total
    assert len(units) == min(count, total)
    assert all(1 <= len(part) <= (frames if unit == "clip" else 1) for part in units)
    if unit == "clip" and frames >= total:
        assert flat == list(range(total))
    if unit == "frame" and total >= count + 2:
        assert 0 not in flat and total - 1 not in flat


def test_a_request_text_follows_the_options():
    assert request_text(SHORT, "a cat", "what ?") == "describe ."
    assert request_text(but(SHORT, dependent=True), "a cat", "what ?") == "<a cat> describe ."
    assert request_text(but(SHORT, dependent=True), None, "what ?") == "describe ."
    assert request_text(but(SHORT, conditioned=True), "a cat", "what ?") == "[what ?] describe ."
    both = but(SHORT, dependent=True, conditioned=True)
    assert request_text(both, "{question}", "{previous}") == "<{question}> [{previous}] describe ."


def test_conditioned_captions_need_a_question():
    with pytest.raises(ContractError, match="question"):
        request_text(but(SHORT, conditioned=True), None, " ")


def test_a_summary_text_holds_the_captions_in_order():
    options = Caption(aggregate="summarise", conditioned=True, summary_prompt="{question}sum up: {captions}")
    text = summary_text([" a . ", " ", "b ."], options, "what ?")
    assert text == "What will be asked about the video: what ?\nsum up: a . b ."
    assert summary_text([], but(options, conditioned=False)) == "sum up: "


FULL = Caption(dependent=True, conditioned=True, aggregate="summarise")
OTHER = {
    "unit": "frame", "count": 4, "frames": 8, "dependent": False, "conditioned": False, "aggregate": "concat",
    "prompt": "{previous}{question}?", "previous_slot": "{previous}.", "question_slot": "{question}.",
    "summary_prompt": "{captions}", "max_caption_tokens": 9, "max_tokens": 5, "temperature": 0.5,
}  # fmt: skip
ELSEWHERE = {"model": "hub/name", "of": ("few.jsonl",), "cut": "keep"}
"""The captioner's weights have a field of their own in a store; the other two change no caption."""


def test_every_option_that_changes_a_prompt_changes_the_version():
    assert OTHER.keys() | ELSEWHERE.keys() == Caption.model_fields.keys()
    versions = {name: prompt_version(but(FULL, **{name: value})) for name, value in OTHER.items()}
    assert len({prompt_version(FULL), *versions.values()}) == len(OTHER) + 1
    assert prompt_version(FULL) == prompt_version(but(FULL))


@pytest.mark.parametrize(
    ("options", "known"),
    [(Caption(), "00e24a9ccda15fb6"), (Caption(unit="frame"), "49cc791600d859c8"), (FULL, "ceff411f0617dea0")],
)
def test_versions_are_those_of_earlier_releases(options, known):
    """With other versions for the same options `rlaif caption` would refuse the files that it wrote before."""
    assert prompt_version(options) == known


def test_options_without_effect_do_not_change_the_version():
    plain = Caption()
    for name in ("previous_slot", "question_slot", "summary_prompt", "max_caption_tokens"):
        assert prompt_version(but(plain, **{name: OTHER[name]})) == prompt_version(plain)
    assert prompt_version(but(FULL, **ELSEWHERE)) == prompt_version(FULL)
    frame = Caption(unit="frame")
    assert prompt_version(but(frame, frames=8)) == prompt_version(frame)
