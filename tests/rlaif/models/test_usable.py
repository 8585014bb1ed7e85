"""Rows that a model can never use are recognised by its tokenizer and processor alone, for every family."""

from __future__ import annotations

import pytest

from rlaif.config.schema import Reward
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import Conversation, RowError
from rlaif.errors import ContractError
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.models.usable import Reader, Room
from rlaif.records import Prompt

WIDE = [Room(2000, "data.max_prompt_tokens")]


@pytest.fixture
def reader(encoder) -> Reader:
    return Reader(encoder, encoder.frames.spec, "the model")


def refusal(check) -> str:
    with pytest.raises(RowError) as caught:
        check()
    return f"{caught.value.reason}: {caught.value.detail}"


def test_a_black_video_takes_as_many_tokens_as_the_real_one(encoder):
    for video in "ab":
        real, blank = encoder.video(video), encoder.videos.blank(encoder.frames.spec(video))
        assert blank.visual_tokens == real.visual_tokens
        turns = [("user", "what do you see ?"), ("assistant", "a red circle")]
        assert encoder.conversation(turns, blank).ids.tolist() == encoder.conversation(turns, real).ids.tolist()


def test_a_prompt_fits_up_to_the_last_position(encoder, reader):
    prompt = Prompt("p", "a", "what do you see ?")
    length = len(encoder.expand(encoder.unexpanded(prompt.question), encoder.video("a")))
    assert reader.prompt(prompt, [Room(length, "data.max_prompt_tokens")]) is None
    rooms = [*WIDE, Room(length - 1, "rollout.max_model_len")]
    expected = f"too long: {length} positions with its video, over {length - 1} (rollout.max_model_len)"
    assert refusal(lambda: reader.prompt(prompt, rooms)) == expected


def test_every_media_token_of_the_family_is_refused_in_every_text(encoder, reader):
    form = RewardPrompt.of(Reward())
    for mark in encoder.tokenizer.convert_ids_to_tokens(list(encoder.banned_ids)):
        text = f"what is {mark} here ?"
        pair = {"video": "a", "question": "what ?", "captions": (), "chosen": "a red circle", "rejected": "a"}
        turns = [("system", "see"), ("user", "what ?"), ("assistant", "a")]
        checks = {"question": lambda text=text: reader.prompt(Prompt("p", "a", text), WIDE)}
        for place, (role, _) in enumerate(turns):
            changed = tuple((r, text if at == place else old) for at, (r, old) in enumerate(turns))
            checks[role] = lambda changed=changed: reader.conversation(Conversation("c", "a", changed), WIDE)
        for name in ("question", "chosen", "rejected", "captions"):
            fields = pair | {name: (text,) if name == "captions" else text}
            checks[f"pair {name}"] = lambda fields=fields: reader.pair(PreferencePair("1", **fields), form, WIDE)
        for name, check in checks.items():
            assert f"holds {mark!r}" in refusal(check), name


def test_answer_with_an_end_token_is_refused_for_training(encoder, reader):
    form = RewardPrompt.of(Reward())
    cut = f"a red {encoder.eos} circle"
    for turns in (("a", cut), (cut, "a")):
        messages = []
        for answer in turns:
            messages += [("user", "what ?"), ("assistant", answer)]
        row = Conversation("c", "a", tuple(messages))
        assert refusal(lambda row=row: reader.conversation(row, WIDE)).startswith("answer cut: an answer holds")
    for chosen, rejected in ((cut, "a"), ("a", cut)):
        pair = PreferencePair("1", "what ?", chosen, rejected, video="a")
        assert refusal(lambda pair=pair: reader.pair(pair, form, WIDE)).startswith("answer cut: ")


def test_answer_with_the_eos_token_cannot_be_encoded(encoder):
    """Raise an error also for texts that were not checked in a file, such as sampled ones."""
    for turns in (["a red {} circle"], ["a red {}"], ["a {} red", "a circle"]):
        messages = []
        for text in turns:
            messages += [("user", "what ?"), ("assistant", text.format(encoder.eos))]
        with pytest.raises(ContractError, match="no end of a turn inside an answer"):
            encoder.conversation(messages, None)


def test_a_question_with_a_structural_token_is_accepted_with_a_remark(encoder, reader):
    remark = reader.prompt(Prompt("p", "a", f"describe {encoder.eos} the video"), WIDE)
    assert f"question holds {encoder.eos!r}" in remark


@pytest.mark.parametrize(
    ("chosen", "rejected"), [("a red qwerty", "a red asdfgh"), ("a  red circle", "a red circle"), ("   ", "")]
)
def test_a_pair_of_texts_with_equal_tokens_is_refused(encoder, reader, chosen, rejected):
    form = RewardPrompt.of(Reward())
    pair = PreferencePair("1", "what ?", chosen, rejected, video="a")
    assert refusal(lambda: reader.pair(pair, form, WIDE)).startswith("chosen equals rejected: both read the same")
    other = PreferencePair("1", "what ?", chosen, rejected, chosen_video="a", rejected_video="b")
    assert reader.pair(other, form, WIDE) is None


@pytest.mark.parametrize(
    "question", ["describe {context} {question} {0} {} {{ }}", "{{ 7*7 }} {% raw %} x", "décris 🎬 日本語 \x00", "   "]
)
def test_unusual_questions_are_usable(reader, question):
    assert reader.prompt(Prompt("p", "a", question), WIDE) is None
    assert reader.prompt(Prompt("p", "", question), WIDE) is None
