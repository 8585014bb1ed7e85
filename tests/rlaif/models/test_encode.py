"""Ids, masks and features from text and frames, for each family: the same as those of the model's own processor."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from transformers.video_utils import VideoMetadata

from rlaif.errors import ConfigError, ContractError
from rlaif.models.encode import Encoder
from rlaif.models.turns import text_until_reply
from rlaif.models.vocabulary import token_ids

QUESTION, ANSWER = "what do you see ?", "a red circle moves left ."
TALK = [("user", QUESTION), ("assistant", ANSWER), ("user", "describe the video"), ("assistant", "a blue square")]


def by_processor(encoder, text, video="clip") -> list[int]:
    """Return the ids of a whole text as the model's own processor writes them, the video included."""
    spec = encoder.frames.spec(video)
    output = encoder.processor(
        text=[text],
        videos=[np.array(encoder.frames.get(video, spec))],
        video_metadata=[VideoMetadata(**spec.metadata())],
        do_sample_frames=False,
        return_tensors="pt",
    )
    return np.asarray(output["input_ids"][0]).tolist()


def answer_tokens(encoder) -> list[int]:
    """Return the tokens of TALK's answers, each with its end."""
    tokens = []
    for _, text in TALK[1::2]:
        tokens += [*encoder.tokens(text), encoder.eos_id]
    return tokens


def prompt_text(encoder, question=QUESTION) -> str:
    content = [{"type": "video"}, {"type": "text", "text": question}]
    return encoder.processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


def test_prompt_ids_equal_the_processors(encoder):
    features = encoder.video("clip")
    prompt = encoder.prompt_and_response(QUESTION, [], features)
    assert prompt.ids.tolist() == by_processor(encoder, prompt_text(encoder))
    assert prompt.start == len(prompt.ids)
    assert features.visual_tokens == int((prompt.ids == encoder.visual_id).sum()) > 8
    unexpanded = encoder.unexpanded(QUESTION)
    assert [unexpanded[at] for at in encoder.marks(unexpanded)] == [encoder.placeholder_id]
    assert len(unexpanded) == len(prompt.ids) - len(features.expansion) + 1


def test_begin_of_sequence_is_added_if_the_tokenizer_adds_one(qwen, llava):
    assert llava.unexpanded(QUESTION)[0] == llava.tokenizer.bos_token_id
    assert llava.tokenizer.bos_token_id not in llava.unexpanded(QUESTION)[1:]
    assert qwen.unexpanded(QUESTION) == qwen.tokenizer(prompt_text(qwen))["input_ids"]


def test_begin_of_sequence_is_not_doubled(llava):
    assert llava.opening("<s> what")[:2] == [llava.tokenizer.bos_token_id, *llava.tokens("what")]


def test_training_ids_of_a_conversation_equal_those_of_sampling(encoder):
    features = encoder.video("clip")
    answer = [*encoder.tokens(ANSWER), encoder.eos_id]
    sampled = encoder.prompt_and_response(QUESTION, answer, features)
    written = encoder.conversation(TALK[:2], features)
    assert np.array_equal(sampled.ids, written.ids) and sampled.start == written.start
    assert np.array_equal(sampled.positions, written.positions)
    assert written.mask.tolist() == sampled.mask.tolist() == [1.0] * len(answer)


def test_only_answers_and_their_end_tokens_are_trained_on(encoder):
    whole = encoder.conversation(TALK, encoder.video("clip"))
    response = whole.ids[whole.start :]
    assert len(whole.mask) == len(response)
    trained = [int(token) for token, flag in zip(response, whole.mask, strict=True) if flag]
    expected = answer_tokens(encoder)
    assert trained == expected
    untrained = encoder.text([int(token) for token, flag in zip(response, whole.mask, strict=True) if not flag])
    assert "describe the video" in untrained and "blue" not in untrained


@pytest.mark.parametrize("video", ["clip", None])
def test_prompt_weight_trains_on_everything_after_the_video(encoder, video):
    features = encoder.video(video) if video else None
    plain, whole = encoder.conversation(TALK, features), encoder.conversation(TALK, features, prompt_weight=0.25)
    assert np.array_equal(whole.ids, plain.ids) and np.array_equal(whole.positions, plain.positions)
    weight, count = whole.extras["weight"], len(whole.ids) - whole.start
    assert len(weight) == len(whole.mask) == count and whole.mask.all()
    assert set(weight.tolist()) == {0.25, 1.0}
    shift = plain.start - whole.start
    assert shift >= len(encoder.tokens(TALK[0][1])) and (weight[:shift] == 0.25).all()
    assert np.array_equal(weight[shift:] == 1, plain.mask == 1)
    assert not set(whole.ids[whole.start :].tolist()) & set(encoder.banned_ids)


def test_ids_of_a_conversation_are_those_of_the_whole_text(qwen):
    whole = qwen.conversation(TALK, qwen.video("clip"))
    turns = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in TALK]
    turns[0]["content"].insert(0, {"type": "video"})
    text = qwen.processor.apply_chat_template(turns, tokenize=False)
    assert whole.ids.tolist() == by_processor(qwen, text.rstrip("\n"))


def test_the_video_belongs_to_the_first_user_turn(qwen):
    text = qwen.chat([("system", "see"), *TALK])
    assert text.index("<|video_pad|>") > text.index("user\n") and text.count("<|video_pad|>") == 1
    assert qwen.conversation([("system", "see"), *TALK], qwen.video("clip")).video is not None


def test_last_user_turn_is_read_at_the_place_of_its_answer(encoder):
    with_question = encoder.conversation([*TALK, ("user", "you see ?")], encoder.video("clip"))
    plain = encoder.conversation(TALK, encoder.video("clip"))
    assert np.array_equal(with_question.ids[: len(plain.ids)], plain.ids)
    tail = with_question.ids[len(plain.ids) :].tolist()
    assert encoder.text(tail).endswith(("assistant", "assistant :")) and "you see ?" in encoder.text(tail)
    assert not with_question.mask[len(plain.mask) :].any()


def test_the_beginning_of_a_reply_is_read_at_its_last_token(encoder):
    messages = [*TALK, ("user", "you see ?")]
    with_question = encoder.conversation(messages, encoder.video("clip"))
    begun = encoder.conversation(messages, encoder.video("clip"), "a red circle and")
    whole = encoder.conversation([*messages, ("assistant", "a red circle and")], encoder.video("clip"))
    assert (
        np.array_equal(begun.ids[: len(with_question.ids)], with_question.ids)
        and len(begun.ids) == len(with_question.ids) + 4
    )
    assert np.array_equal(begun.ids, whole.ids[:-1]) and whole.ids[-1] == encoder.eos_id
    assert encoder.text(begun.ids[-1:]) == "and" and not begun.mask[len(with_question.mask) :].any()


def test_a_template_that_changes_a_reply_cannot_begin_one(qwen, monkeypatch):
    monkeypatch.setattr(qwen, "chat", lambda messages, video: "|".join(text.strip() for _, text in messages))
    assert text_until_reply(qwen, [("user", "what ?")], False, "and") == "what ?|and"
    with pytest.raises(ConfigError, match="reward.verdict"):
        text_until_reply(qwen, [("user", "what ?")], False, "and ")


def test_token_ids_of_a_text_start_with_the_token_that_includes_a_space(qwen, monkeypatch):
    assert token_ids(qwen.tokenizer, 7) == [7] and token_ids(qwen.tokenizer, "?") == qwen.tokens("?")
    for mark in ("▁", "Ġ"):
        vocabulary = {f"{mark}?": 1577, "?": 29973, "??": 8773, f"{mark}??": 9, "a": 3}
        monkeypatch.setattr(qwen, "tokenizer", SimpleNamespace(get_vocab=lambda words=vocabulary: words))
        assert token_ids(qwen.tokenizer, "?") == [1577, 29973] and token_ids(qwen.tokenizer, "a") == [3]
        with pytest.raises(ConfigError, match="truncate_at"):
            token_ids(qwen.tokenizer, "never")


def test_conversation_without_a_video_has_no_visual_tokens(encoder):
    plain = encoder.conversation(TALK, None)
    assert plain.video is None and encoder.visual_id not in plain.ids
    assert np.array_equal(plain.positions, np.broadcast_to(np.arange(len(plain.ids)), plain.positions.shape))


@pytest.mark.parametrize("where", ["question", "later question", "answer"])
def test_media_tokens_in_a_text_are_an_error(encoder, where):
    mark, features = encoder.family.placeholder, encoder.video("clip")
    at = {"question": 0, "answer": 1, "later question": 2}[where]
    talk = [(role, f"a {mark} b" if index == at else text) for index, (role, text) in enumerate(TALK)]
    with pytest.raises(ContractError, match="placeholder"):
        encoder.conversation(talk, features)
    if where == "question":
        with pytest.raises(ContractError, match="2"):
            encoder.prompt_and_response(talk[0][1], [], features)


def test_a_visual_token_in_a_question_is_no_placeholder_and_an_error(path_of, noise):
    """InternVL's visual positions have another token than its placeholder."""
    encoder = Encoder(path_of("internvl"), noise())
    assert len(encoder.marks(encoder.unexpanded("a <IMG_CONTEXT> b"))) == 2
    with pytest.raises(ContractError, match="placeholder"):
        encoder.prompt_and_response("a <IMG_CONTEXT> b", [], encoder.video("clip"))


def test_template_without_end_of_answer_gets_the_eos_token(llava_path, noise):
    """Use a template like LLaVA's own: a space follows each text, and no token marks the end of an answer."""
    encoder = Encoder(llava_path, noise())
    encoder.processor.chat_template = (
        "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'] + ' : ' }}{% endif %}"
        "{% for part in message['content'] %}{% if part['type'] == 'video' %}{{ '<video>\n' }}{% endif %}{% endfor %}"
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant :' }}{% endif %}"
    )
    whole = encoder.conversation(TALK, encoder.video("clip"))
    response = whole.ids[whole.start :]
    trained = [int(token) for token, flag in zip(response, whole.mask, strict=True) if flag]
    assert trained == answer_tokens(encoder)


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}{{ message['role'] }} {% for part in message['content'] %}{{ part['text'] }}{% endfor %} <|im_start|>"
        "{% endfor %}{{ 'assistant ' if add_generation_prompt else '' }}",  # ends answers with another special token
        "{{ messages | length }} {% for message in messages %}{{ message['role'] }} <|im_end|>{% endfor %}",  # rewrites its beginning
    ],
)
def test_a_template_that_training_cannot_follow_is_an_error(qwen_path, template):
    encoder = Encoder(qwen_path)
    encoder.processor.chat_template = template
    with pytest.raises(ConfigError, match="template"):
        encoder.conversation(TALK, None)


def test_a_conversation_without_an_answer_is_an_error(qwen):
    with pytest.raises(ConfigError, match="assistant"):
        qwen.conversation([("user", QUESTION)], None)


def test_videos_are_processed_once_and_within_the_budget(qwen_path, noise):
    class Counting(noise):
        calls = 0

        def get(self, video, spec):
            self.calls += 1
            return super().get(video, spec)

    frames = Counting()
    encoder = Encoder(qwen_path, frames)
    size = encoder.video("a").nbytes
    assert size > 8 * 56 * 56 and encoder.video("a") is encoder.video("a") and frames.calls == 1

    frames = Counting()
    small = Encoder(qwen_path, frames, cache_bytes=2 * size)
    for video in ("a", "b", "a", "c", "a", "b"):  # c evicts b, the least recently used; then b evicts c
        small.video(video)
    assert frames.calls == 4
    tight = Encoder(qwen_path, Counting(), cache_bytes=1)
    assert tight.video("a") is tight.video("a")  # the newest stays, however large


def test_times_are_rounded_to_the_models_dtype(qwen_path, noise):
    """Sample 8 frames of a clip at 20/3 frames a second: 2.4 s a grid step is 2.40625 in bfloat16."""
    frames = noise(fps=10.0)
    exact, half = (Encoder(qwen_path, frames, dtype=dtype).video("a") for dtype in ("float32", "bfloat16"))
    assert exact.tensors["second_per_grid_ts"].tolist() == pytest.approx([2.4], abs=1e-6)
    assert exact.tensors["second_per_grid_ts"].dtype == np.float32
    assert half.tensors["second_per_grid_ts"].tolist() == [2.40625]
    assert np.array_equal(exact.tensors["pixel_values_videos"], half.tensors["pixel_values_videos"])
