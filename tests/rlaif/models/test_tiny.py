import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from rlaif.models.tiny import SPECIAL, build_model, build_tiny, build_tokenizer

WORDS = [
    "describe",
    "the",
    "video",
    ".",
    "?",
    ":",
    "context",
    "there",
    "is",
    "one",
    "object",
    "a",
    "red",
    "circle",
    "moves",
    "left",
]
USER = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Describe the video .\n"}]}]
ANSWER = "there is one object . a red circle moves left ."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny"), WORDS, seed=1)


def test_tiny_model_loads_and_sees_a_video(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    assert model.dtype == torch.float32 and sum(p.numel() for p in model.parameters()) < 1.2e6
    frames = np.random.default_rng(0).integers(0, 255, (8, 56, 56, 3), dtype=np.uint8)
    text = processor.apply_chat_template(USER, add_generation_prompt=True)
    batch = processor(text=[text], videos=[frames], do_sample_frames=False, return_tensors="pt")
    assert batch["video_grid_thw"].tolist() == [[1, 8, 8]]
    assert (batch["input_ids"] == model.config.video_token_id).sum() == 16
    with torch.no_grad():
        logits = model(**batch).logits
        other = model(**{**batch, "pixel_values_videos": batch["pixel_values_videos"].flip(0)}).logits
    assert logits.isfinite().all() and not torch.allclose(logits[:, -1], other[:, -1], atol=1e-3)


def test_prompt_is_a_token_prefix_of_the_conversation(folder):
    tokenizer, processor = AutoTokenizer.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    prompt = processor.apply_chat_template(USER, add_generation_prompt=True)
    reply = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
    ids, all_ids = (tokenizer(text).input_ids for text in (prompt, processor.apply_chat_template([*USER, reply])))
    assert all_ids[: len(ids)] == ids
    assert all_ids[len(ids) :] == tokenizer(ANSWER).input_ids + [tokenizer.eos_token_id]
    plain = [{"role": "user", "content": "describe the video ."}]
    assert "describe the video ." in processor.apply_chat_template(plain)


def test_text_round_trip(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer(ANSWER).input_ids) == ANSWER
    assert tokenizer("A Red circle.").input_ids == tokenizer("a red circle .").input_ids
    assert tokenizer("zebra").input_ids == [tokenizer.unk_token_id]
    assert tokenizer.decode([*tokenizer("red").input_ids, tokenizer.eos_token_id], skip_special_tokens=True) == "red"
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|pad|>"


def test_equal_seeds_give_equal_weights():
    ids = {name: i for i, name in enumerate(SPECIAL)}
    first, again, other = (build_model(len(build_tokenizer(WORDS)), ids, seed, 256) for seed in (1, 1, 2))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
