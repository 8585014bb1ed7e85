"""Rows of every format of preferences, after their published schemas: some written by hand, and strategies for more."""

from __future__ import annotations

import io
import json
from itertools import chain

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from rlaif.data.formats.safesora_items import HARM_LABELS
from rlaif.data.misread import media_marks

FRAMES = [f"anet_50frames/v_1/{number:04d}.jpg" for number in range(3)]


def picture(seed: int, kind: str = "PNG") -> bytes:
    """Return a small image file."""
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


PICTURES = [picture(0), picture(1, "JPEG"), picture(2)]


def human(text: str) -> dict:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict:
    return {"from": "gpt", "value": text}


def labels(*true: str) -> dict:
    return {name: name in true for name in HARM_LABELS}


def safesora_video(name: str, prompt: str = "p7", **more) -> dict:
    return {
        "prompt_id": prompt,
        "prompt_text": "a dog chases a kite",
        "prompt_type": "safety_neutral",
        "video_id": name,
        "video_text": "a brown dog runs after a red kite on a beach",
        "video_path": f"/data/videos/{prompt}/{name}.mp4",
        "is_safe": True,
        "generated_from": "model-a",
    } | more


SAFESORA = {
    "pair_id": "q1",
    "prompt_id": "p7",
    "prompt_text": "a dog chases a kite",
    "prompt_type": "safety_neutral",
    "video_0": safesora_video("v0"),
    "video_1": safesora_video("v1", is_safe=False, generated_from="model-b"),
    "helpfulness": "video_1",
    "harmlessness": "video_0",
    "sub_preferences": {
        "instruction_following": "video_1",
        "correctness": "video_0",
        "informativeness": "video_1",
        "aesthetics": "video_1",
    },
}
_SUB = {name: choice for name, choice in SAFESORA["sub_preferences"].items() if name != "informativeness"}
SCORED = {
    "scores": [{"value": 0.5, "from": "rm-a"}, {"value": -1, "from": "rm-b", "step": 3}],
    "metrics": {"psnr": 31.25},
}
TEXT = {"question": "What is on the table?", "chosen": "A red cup.", "rejected": "A red cup and a knife."}
SPLIT = {"model": "model-a", "type": "question answering"}
RLHF_V = {
    "ds_name": "corrections",
    "image": {"bytes": PICTURES[0], "path": "table.png"},
    "text": json.dumps(TEXT),
    "origin_dataset": "pictures",
    "origin_split": json.dumps(SPLIT),
    "idx": 4,
    "image_path": "pictures/table.png",
}
RLAIF_V = {name: value for name, value in RLHF_V.items() if name != "text"} | TEXT | {"idx": "4"}
LOGPS = [-9.5, -1.9, [-1.5, -8.0], -12.25, -2.45, [-4.25, -8.0]]

EXAMPLES: dict[str, list[dict]] = {
    "rlaif": [
        {"pair_id": "a", "video": "v.mp4", "question": "what?", "captions": ["x"], "chosen": "a cat", "rejected": ""},
        {
            "pair_id": "b",
            "prompt_id": "p",
            "question": "and then?",
            "messages": [
                {"role": "user", "content": "what?"},
                {"role": "assistant", "content": "a cat"},
                {"role": "user", "content": "and then?"},
            ],
            "chosen": "it sleeps",
            "rejected": "it barks",
            "rejected_spans": [{"start": 3, "end": 8, "type": "action", "source": "human"}],
            "dimensions": {"overall": 1, "style": -1},
            "margin": 0.5,
            "scores": [{"value": 2, "from": "rm", "candidate": "chosen"}],
            "judge": {"model": "j", "logprobs": {"chosen": [-0.25], "rejected": [-1.5]}},
            "provenance": {"seed": 3, "temperature": 0.75},
            "ref_logps": {"chosen": {"sum": -1.5}, "rejected": {"sum": -2.5}},
            "note": {"of": ["ours"]},
        },
    ],
    "vlm_rlaif_rm": [
        {
            "conversations": [human("<image>\nWhat happens?"), gpt("something")],
            "output_1": {"from": "llava", "value": "A man runs."},
            "output_2": {"from": "llava", "value": "A man sits."},
            "preference": 2,
            "images": FRAMES,
        },
        {
            "id": "r2",
            "conversations": [human("<image> What happens?"), gpt("He runs."), human("Why?"), gpt("")],
            "output_1": {"value": "He is late."},
            "output_2": {"value": "He swims."},
            "preference": 1,
            "images": [*FRAMES, "elsewhere/0.jpg"],
            "src_data": "anet",
        },
        {
            "conversations": [human("What is <image> this?"), gpt("a cat")],
            "output_1": {"value": "a cat"},
            "output_2": {"value": "a dog"},
            "preference": 1,
            "image": "coco/1.jpg",
        },
        {
            "conversations": [human("Is water wet?"), gpt("yes")],
            "output_1": {"value": "Yes."},
            "output_2": {"value": "No."},
            "preference": 1,
        },
    ],
    "vlm_rlaif_rl": [
        {
            "uid": 12,
            "conversations": [human("<image>\nWhat happens?"), gpt("A man runs."), human("Why?"), gpt("Late.")],
            "images": FRAMES,
            "caption_type": 3,
            "length_bonus": 0.5,
        },
        {"uid": 13, "conversations": [human("<image>\nWho?"), gpt("")], "image": "one.jpg"},
    ],
    "vlm_rlaif_sft": [
        {
            "id": "s1",
            "src_data": "webvid",
            "conversations": [human("<image>\nWhat?"), gpt("A cat."), human("Where?"), gpt("At home.")],
            "images": FRAMES,
        },
        {"id": "s1", "conversations": [human("Name it.\n<image>"), gpt("A cat.")], "images": FRAMES[:1]},
    ],
    "safesora": [
        SAFESORA,
        SAFESORA
        | {
            "pair_id": 17,
            "prompt_id": 7,
            "helpfulness": "video_0",
            "sub_preferences": _SUB | {"information": "video_0"},
            "video_0": safesora_video("v2", **SCORED) | {"video_path": None},
            "video_1": safesora_video("v3", **SCORED, video_labels=labels("hate")),
            "scores": [{"value": 1.5, "from": "pair-rm"}],
            "split": "train",
        },
    ],
    "safesora_videos": [
        safesora_video("v0", prompt_labels=labels(), video_labels=labels()),
        safesora_video("v1", is_safe=False, prompt_labels=labels(), video_labels=labels("crime", "hate"), **SCORED),
    ],
    "safesora_prompts": [
        {"prompt_id": "p7", "prompt_text": "a dog", "prompt_type": "safety_neutral", "prompt_labels": labels()},
        {
            "prompt_id": 8,
            "prompt_text": "a fight",
            "prompt_type": "safety_critical",
            "prompt_labels": labels("violence"),
        },
    ],
    "rlhf_v": [
        RLHF_V,
        RLHF_V | {"idx": 5, "text": json.dumps(TEXT | {"logps": LOGPS}), "image": {"bytes": PICTURES[1], "path": None}},
        RLHF_V
        | {
            "idx": 6,
            "text": '{"rejected":"n\u00e9","chosen": "\u00e9", "question":"q", "more": 1}',
            "origin_split": "x",
        },
        RLHF_V | {"idx": 7, "image": {"bytes": None, "path": "table.png"}},
        RLHF_V | {"idx": 8, "image": None, "origin_split": None},
    ],
    "rlaif_v": [
        RLAIF_V,
        RLAIF_V | {"chosen": "A cup."},
        RLAIF_V
        | {"idx": "5", "logps": json.dumps(LOGPS), "origin_split": '{"model": null, "type": "x", "judge": "y"}'},
    ],
    "pds_dpo": [
        {
            "id": "art-1",
            "image": "images/art-1.jpg",
            "conversations": [human("<image> What is drawn?"), gpt("A boat.")],
            "rejected_conversations": [human("<image> What is drawn?"), gpt("A boat and a whale.")],
        },
        {
            "id": "art-1",
            "image": "images/art-2.jpg",
            "conversations": [human("Colour?\n<image>"), gpt("Red."), human("Sure?"), gpt("Yes.")],
            "rejected_conversations": [human("<image>Colour?"), gpt("Red."), human("Sure?"), gpt("No.")],
        },
    ],
}

# -- strategies

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=12)
word = text.filter(lambda value: value.strip() and not media_marks(value) and not value.startswith("data:"))
file = word.filter(lambda name: not {"", ".", ".."} & {*name.split("/")})  # no folder that is there on any machine
value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
extra = st.dictionaries(st.sampled_from(["src_data", "x", "note", "hallucination"]), value, max_size=2)
# A byte order mark or a zero-width space beside a placeholder is part of the space around it, not a question.
visible = word.map(lambda value: value.strip().strip("\u200b\ufeff").strip())
visible = visible.filter(lambda value: value and not value.startswith("data:"))
answers = st.lists(word, min_size=2, max_size=2, unique=True)
frames = st.lists(st.sampled_from([*FRAMES, "b/1.png", "1.jpg"]), min_size=1, max_size=4)
score = st.fixed_dictionaries({"value": st.floats(-5, 5) | st.integers(-5, 5), "from": word}, optional={"x": value})
harm = st.fixed_dictionaries({name: st.booleans() for name in HARM_LABELS})
maybe = st.none() | text


@st.composite
def question(draw) -> str:
    mark = draw(st.sampled_from(["<image>\n{}", "<image> {}", "{}<image>", "{}", " {} \n<image>", "<image>{}"]))
    return mark.format(draw(visible))


@st.composite
def turns(draw, answer=text, most: int = 2) -> list[dict]:
    rounds = draw(st.integers(1, most))
    both = [[human(draw(question())), gpt(draw(word if n < rounds - 1 else answer))] for n in range(rounds)]
    return [turn | draw(st.sampled_from([{}, {"x": 1}])) for turn in chain.from_iterable(both)]


@st.composite
def vlm_rlaif_rm(draw) -> dict:
    first, second = draw(answers)
    row = {"conversations": draw(turns()), "preference": draw(st.sampled_from([1, 2]))}
    row |= {"output_1": draw(extra) | {"value": first}, "output_2": {"value": second}}
    media = draw(st.fixed_dictionaries({"images": frames}) | st.fixed_dictionaries({"image": file}) | st.just({}))
    if not media:
        row["conversations"] = [turn | {"value": turn["value"].replace("<image>", "")} for turn in row["conversations"]]
    return draw(extra) | row | media | draw(st.sampled_from([{}, {"id": "r"}, {"id": 5}]))


@st.composite
def vlm_rlaif_rl(draw) -> dict:
    row = {"uid": draw(st.integers(0, 9)), "conversations": draw(turns()), "images": [draw(word) + "/1.jpg"] * 2}
    return draw(extra) | row


@st.composite
def vlm_rlaif_sft(draw) -> dict:
    row = {"id": draw(word | st.integers(0, 9)), "conversations": draw(turns(word, 3)), "images": FRAMES}
    return draw(extra) | row


@st.composite
def pds_dpo(draw) -> dict:
    chosen, rejected = draw(answers)
    earlier = draw(turns(word, 2))[:-1]
    row = {"conversations": [*earlier, gpt(chosen)], "rejected_conversations": [*earlier, gpt(rejected)]}
    return draw(extra) | row | {"id": draw(word), "image": draw(file)}


@st.composite
def safesora_item(draw, name: str) -> dict:
    required = {"video_id": st.just(name), "prompt_id": word | st.integers(0, 9), "prompt_text": word}
    optional = {
        "prompt_type": st.sampled_from(["safety_neutral", "safety_critical", None]),
        "prompt_labels": harm | st.none(),
        "video_text": maybe,
        "video_path": st.just(f"videos/p/{name}.mp4") | st.none() | st.just(name),
        "is_safe": st.booleans() | st.none(),
        "video_labels": harm | st.none(),
        "generated_from": maybe,
        "scores": st.lists(score, max_size=2),
        "metrics": st.dictionaries(word, st.floats(0, 9), max_size=2),
        "x": value,
    }
    return draw(st.fixed_dictionaries(required, optional=optional))


@st.composite
def safesora(draw) -> dict:
    slot = st.sampled_from(["video_0", "video_1"])
    sub = {name: draw(slot) for name in ("instruction_following", "correctness", "informativeness", "aesthetics")}
    if draw(st.booleans()):
        sub["information"] = sub.pop("informativeness")
    row = {"pair_id": draw(word | st.integers(0, 99)), "prompt_id": draw(word), "prompt_text": draw(word)}
    row |= {"video_0": draw(safesora_item("a")), "video_1": draw(safesora_item("b")), "sub_preferences": sub}
    row |= {"helpfulness": draw(slot), "harmlessness": draw(slot)}
    optional = {"prompt_type": st.just("safety_critical") | st.none(), "scores": st.lists(score, max_size=2)}
    return draw(extra) | row | draw(st.fixed_dictionaries({}, optional=optional))


@st.composite
def open_pair(draw, in_text: bool) -> dict:
    chosen, rejected = draw(answers)
    texts = {"question": draw(word), "chosen": chosen, "rejected": rejected}
    split = draw(st.just(json.dumps(SPLIT)) | value.map(json.dumps) | maybe)
    shared = {"origin_dataset": draw(maybe), "origin_split": split, "image_path": draw(maybe)}
    image = {"bytes": draw(st.sampled_from(PICTURES)), "path": draw(maybe)}
    row = {"ds_name": draw(word), "image": image, **shared}
    idx = draw(st.integers(0, 10**6))
    if not in_text:
        return row | texts | {"idx": str(idx)}
    if draw(st.booleans()):
        texts |= {"logps": draw(st.just(LOGPS) | value)}
    dumped = json.dumps(draw(extra) | texts, ensure_ascii=draw(st.booleans()), indent=draw(st.sampled_from([None, 1])))
    return row | {"text": dumped, "idx": idx}


@st.composite
def own(draw) -> dict:
    chosen, rejected = draw(answers)
    row = {"pair_id": draw(word), "question": draw(word), "chosen": chosen, "rejected": rejected}
    span = {"start": 0, "end": len(chosen), "source": draw(word)}
    filled = st.dictionaries(word, value, min_size=1, max_size=2)
    optional = {
        "prompt_id": word,
        "video": word,
        "frames": frames,
        "captions": st.lists(text, min_size=1, max_size=2),
        "chosen_spans": st.just([span]),
        "dimensions": st.just({"overall": 1}) | st.just({"style": -1, "grounding": 1}),
        "margin": st.floats(-9, 9),
        "scores": st.lists(score, min_size=1, max_size=2),
        "judge": filled,
        "candidates": st.lists(filled, min_size=1, max_size=2),
        "provenance": filled,
        "safety": filled,
        "ref_logps": filled,
        "native": st.just({"safesora": {"x": {"is": None}}}),
        "unknown": value.filter(lambda item: item is not None),
    }
    return row | draw(st.fixed_dictionaries({}, optional=optional))


STRATEGIES = {
    "rlaif": own(),
    "vlm_rlaif_rm": vlm_rlaif_rm(),
    "vlm_rlaif_rl": vlm_rlaif_rl(),
    "vlm_rlaif_sft": vlm_rlaif_sft(),
    "safesora": safesora(),
    "safesora_videos": safesora_item("a"),
    "safesora_prompts": st.fixed_dictionaries(
        {"prompt_id": word | st.integers(0, 9), "prompt_text": word},
        optional={"prompt_type": st.just("safety_critical"), "prompt_labels": harm, "x": value},
    ),
    "rlhf_v": open_pair(True),
    "rlaif_v": open_pair(False),
    "pds_dpo": pds_dpo(),
}
