"""VLM-RLAIF's rows: reward-model pairs, prompts of its PPO stage, and fine-tuning conversations (research notes, 2.1).

A video is `images`, a list of frame paths; `image` is a single picture. `<image>` stands once in the first human turn
and is moved to its very start.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Sequence
from typing import Any

from rlaif.data import Conversation, ConversationRow, PromptRow, RowError, build_row
from rlaif.preferences.formats.base import Fields, Format
from rlaif.preferences.formats.turns import PLACEHOLDER, asked, question, read_turns, write_turns
from rlaif.preferences.record import SIDES, Preference
from rlaif.records import Prompt

MARK = f"{PLACEHOLDER}\n"
OUTPUTS = ("output_1", "output_2")


# -- frames


def read_media(fields: Fields) -> dict[str, Any]:
    """`video` (the folder that holds all frames, if there is one), `frames` and `modality`."""
    images, image = fields.get("images"), fields.get("image")
    if images:
        if not isinstance(images, list) or not all(isinstance(path, str) and path for path in images):
            raise RowError("wrong type", "images: not a list of paths")
        folders = {path.rpartition("/")[0] for path in images}
        video = (posixpath.dirname(images[0]) or ".") if len(folders) == 1 else None
        return {"video": video, "frames": images, "modality": "video"}
    if image:
        if not isinstance(image, str):
            raise RowError("wrong type", f"image: a {type(image).__name__} instead of a path")
        return {"video": image, "modality": "image"}
    return {"modality": "text"}


def write_media(video: str | None, frames: Any, modality: str) -> Fields:
    """The inverse of `read_media`. Raises RowError for a video whose frames nobody listed."""
    if modality == "text":
        return {}
    if modality == "image" and video:
        return {"image": video}
    if not frames:
        raise RowError("no frame list", f"video {video!r}: these rows list every frame's path in `images`")
    return {"images": list(frames)}


def _mark(media: Fields) -> str:
    return MARK if media else ""


# -- pairs for the reward model


def _pair(fields: Fields) -> Preference:
    choice = choice_of(fields, "preference", (1, 2))
    answers = [_output(fields, name) for name in OUTPUTS]
    turns = read_turns(fields, "conversations", last="assistant")[:-1]  # the last answer is replaced by the outputs
    text = json.dumps([fields.get("images") or fields.get("image"), turns, answers])
    row = {
        "pair_id": str(fields.get("id") or hashlib.sha256(text.encode()).hexdigest()[:16]),
        "chosen": answers[choice - 1],
        "rejected": answers[2 - choice],
    }
    order = [{"candidate": "rejected"}, {"candidate": "chosen"}] if choice == 2 else []
    return build_pair(row | {"candidates": order} | question(turns) | read_media(fields))


def build_pair(row: Fields) -> Preference:
    """A record of a published dataset, where an empty answer is a failed generation rather than a bad one."""
    record = Preference.from_row(row)
    if not record.rejected and not record.rejected_video:
        raise RowError("empty answer", "rejected is empty")
    return record


def choice_of(fields: Fields, name: str, choices: tuple) -> Any:
    """The value of a preference field. Raises RowError where nothing, or something else, was chosen."""
    if name not in fields:
        raise RowError("missing field", f"{name}: Field required")
    value = fields[name]
    if value is None:
        raise RowError("no preference", f"{name} is null")
    if value not in choices or isinstance(value, bool | float):
        raise RowError("choice is neither", f"{name} is {value!r}, neither {choices[0]!r} nor {choices[1]!r}")
    return value


def chosen_first(record: Preference) -> bool:
    """Whether the source listed the chosen answer first."""
    names = [candidate.get("candidate") for candidate in record.candidates]
    return next((name for name in names if name in SIDES), SIDES[0]) == SIDES[0]


def check_texts(record: Preference) -> None:
    if record.chosen_video:
        raise RowError("candidates are videos", "these rows hold two texts")


def _pair_row(record: Preference, place: int) -> Fields:
    check_texts(record)
    media = write_media(record.video, record.frames, record.modality)
    turns = write_turns(asked(record.question, record.messages), _mark(media))
    first = chosen_first(record)
    answers = (record.chosen, record.rejected) if first else (record.rejected, record.chosen)
    outputs = {name: {"value": answer} for name, answer in zip(OUTPUTS, answers, strict=True)}
    row = {"id": record.pair_id, "conversations": [*turns, {"from": "gpt", "value": ""}], **outputs}
    return row | {"preference": 1 if first else 2} | media


def _output(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if value is None:
        raise RowError("missing field", f"{name}: Field required")
    answer = value.get("value") if isinstance(value, dict) else None
    if not isinstance(answer, str):
        raise RowError("wrong type", f"{name}.value: not a text")
    return answer


# -- prompts and conversations


def _video(media: Fields) -> Fields:
    """For rows of ours, which name one video each: of frames in several folders the folder above, until they are gathered."""
    media = {"video": _above(media.get("frames", ())), **{name: value for name, value in media.items() if value}}
    if not media["video"]:
        raise RowError("no video", "neither images nor image, or frames with nothing above them all")
    return {name: value for name, value in media.items() if (name, value) != ("modality", "video")}


def _above(frames: Sequence[str]) -> str | None:
    if not frames or len({posixpath.isabs(path) for path in frames}) > 1:
        return None
    return posixpath.commonpath(frames) or "."


def _prompt(fields: Fields) -> Prompt:
    if fields.get("uid") is None:
        raise RowError("missing field", "uid: Field required")
    messages = read_turns(fields, "conversations", last="assistant")
    if len(messages) < 2 or messages[0][0] != "user":
        raise RowError("turns out of order", f"roles are {[role for role, _ in messages]}")
    row = {"prompt_id": str(fields["uid"]), "question": messages[0][1]}
    row |= {"answer": messages[1][1] or None} | _video(read_media(fields))
    return build_row(PromptRow, {name: value for name, value in row.items() if value is not None})


def _prompt_row(record: Prompt, place: int) -> Fields:
    media = write_media(record.video, record.extra.get("frames"), record.extra.get("modality", "video"))
    turns = write_turns((("user", record.question), ("assistant", record.answer or "")), _mark(media))
    return {"uid": record.prompt_id, "conversations": turns} | media


def _conversation(fields: Fields) -> Conversation:
    if fields.get("id") is None:
        raise RowError("missing field", "id: Field required")
    messages = read_turns(fields, "conversations", last="assistant")
    row = {"id": str(fields["id"]), "messages": [{"role": role, "content": text} for role, text in messages]}
    return build_row(ConversationRow, row | _video(read_media(fields)))


def _conversation_row(record: Conversation, place: int) -> Fields:
    media = write_media(record.video, record.extra.get("frames"), record.extra.get("modality", "video"))
    return {"id": record.id, "conversations": write_turns(record.messages, _mark(media))} | media


RM = Format(
    name="vlm_rlaif_rm",
    kind="pairs",
    about="VLM-RLAIF reward-model pairs: conversations, output_1, output_2, preference",
    recognise=lambda row: {"conversations", *OUTPUTS, "preference"} <= row.keys(),
    build=_pair,
    bare=_pair_row,
    key="pair_id",
    source_key="id",
)
RL = Format(
    name="vlm_rlaif_rl",
    kind="prompts",
    about="VLM-RLAIF PPO prompts: conversations, images, uid",
    recognise=lambda row: {"conversations", "uid"} <= row.keys(),
    build=_prompt,
    bare=_prompt_row,
    key="prompt_id",
    source_key="uid",
)
SFT = Format(
    name="vlm_rlaif_sft",
    kind="conversations",
    about="VLM-RLAIF fine-tuning conversations: id, conversations, images",
    recognise=lambda row: {"conversations", "id"} <= row.keys() and "rejected_conversations" not in row,
    build=_conversation,
    bare=_conversation_row,
    key="id",
)
