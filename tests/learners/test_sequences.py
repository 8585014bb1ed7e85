"""Test that rows that cannot be used are left out by name, and that the others keep their order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ranks import NoiseFrames

from learners.losses import count_tokens
from learners.sequences import conversation_units, preference_units
from rlaif.config.schema import Reward
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import Conversation
from rlaif.models.encode import Encoder
from rlaif.models.reward_prompt import RewardPrompt

LONG = "a red circle moves left . " * 20


@pytest.fixture(scope="module")
def encoder(tiny) -> Encoder:
    return Encoder(tiny, NoiseFrames())


def talk(video, answer, question="what do you see ?") -> Conversation:
    return Conversation(video, video, (("user", question), ("assistant", answer)))


def pair(video, chosen, rejected) -> PreferencePair:
    return PreferencePair(video, "what do you see ?", chosen, rejected, video=video, captions=("a red circle",))


def test_prompts_that_are_trained_on_count_their_weight(encoder):
    rows = [talk("a", "red"), talk("b", "a blue circle")]
    plain, weighted = (conversation_units(encoder, rows, 4096, weight)[0] for weight in (0.0, 0.5))
    for (before,), (after,) in zip(plain, weighted, strict=True):
        prompt = before.start - after.start
        assert count_tokens((before,)) == len(before.mask)
        assert count_tokens((after,)) == len(before.mask) + 0.5 * prompt


def test_conversation_units_leave_out_broken_and_long_rows(encoder):
    bad = talk("clip3", "a", question="a <|video_pad|> b")
    rows = [
        talk("clip0", "a red circle"),
        talk("broken", "a"),
        talk("clip1", LONG),
        bad,
        talk("clip2", "a blue square"),
    ]
    units, skipped = conversation_units(encoder, rows, limit=64)
    assert [encoder.text(unit[0].ids[unit[0].start :]) for unit in units] == ["a red circle", "a blue square"]
    assert [reason.split(":")[0] for reason in skipped] == ["'broken' (broken)", "'clip1' (clip1)", "'clip3' (clip3)"]
    assert "garbage" in skipped[0] and "limit of 64" in skipped[1] and "placeholder" in skipped[2]


def test_a_row_of_exactly_the_limit_is_kept_whole(encoder):
    row = talk("clip0", "a red circle")
    ((item,),), _ = conversation_units(encoder, [row], limit=10**6)
    length = len(item.ids)
    ((again,),), _ = conversation_units(encoder, [row], limit=length)
    assert np.array_equal(again.ids, item.ids)
    assert conversation_units(encoder, [row], limit=length - 1)[0] == []


def test_pair_is_left_out_if_either_answer_is_too_long(encoder):
    prompt = RewardPrompt.of(Reward())
    rows = [pair("clip0", "a", "b"), pair("clip1", "a", LONG), pair("clip2", LONG, "a"), pair("broken", "a", "b")]
    units, skipped = preference_units(encoder, prompt, rows, limit=64)
    assert len(units) == 1
    assert [reason.split(":")[0] for reason in skipped] == ["'clip1' (clip1)", "'clip2' (clip2)", "'broken' (broken)"]
    chosen, rejected = units[0]
    assert np.array_equal(chosen.ids[: chosen.start], rejected.ids[: rejected.start])
    assert "context : a red circle" in encoder.text(chosen.ids[: chosen.start])
    assert encoder.text(chosen.ids[chosen.start :]) == "a"


def test_pair_extras_hold_sign_and_margin_by_dimension(encoder):
    rows = [
        replace(pair("clip0", "a", "b"), dimension="helpful", dimensions={"harmless": -1}, margin=0.5),
        pair("clip1", "a", "b"),
    ]
    units, _ = preference_units(encoder, RewardPrompt.of(Reward()), rows, 64, ("harmless", "helpful"))
    for first, second in units:
        assert first.extras == second.extras
    extras = []
    for first, _ in units:
        extras.append({name: float(value) for name, value in first.extras.items()})
    assert extras[0] == {"sign/harmless": -1, "sign/helpful": 1, "margin/harmless": 0, "margin/helpful": 0.5}
    assert extras[1] == dict.fromkeys(extras[0], 0.0)
    assert [unit[0].name for unit in units] == ["clip0", "clip1"]


def test_pair_of_videos_shows_each_side_its_own_video(encoder):
    """Check that each side shows its own video with the same question, and that a broken one leaves out the pair."""
    good = PreferencePair("r", "a red circle moves left", chosen_video="clip0", rejected_video="clip1")
    units, skipped = preference_units(
        encoder, RewardPrompt.of(Reward()), [good, replace(good, rejected_video="broken")], 10**6
    )
    ((chosen, rejected),) = units
    assert chosen.video.spec.hash != rejected.video.spec.hash and np.array_equal(chosen.ids, rejected.ids)
    assert len(skipped) == 1 and "garbage" in skipped[0]
