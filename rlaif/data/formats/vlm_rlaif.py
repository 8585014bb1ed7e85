"""VLM-RLAIF's rows: reward-model pairs, prompts of its PPO stage, and fine-tuning conversations (research notes, 2.1).

A video is `images`, a list of frame paths; `image` is a single picture. Conversations of LLaVA's kind that name a video
file in `video` are read too (formats/visual.py). A placeholder is taken out of the text: media come first in our prompts.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rlaif.data.formats.base import Fields, Format, native_of
from rlaif.data.formats.identity import identity, whole_id
from rlaif.data.formats.llava_turns import (
    PLACEHOLDER,
    as_messages,
    question_fields,
    read_turns,
    turns_before_answer,
    write_turns,
)
from rlaif.data.formats.visual import MEDIA, above, came_with_video, named_files, read_media, stored, write_media
from rlaif.data.preference import SIDES, PreferencePair
from rlaif.data.rows import Conversation, ConversationRow, PromptRow, RowError, build_row, excerpt
from rlaif.data.strict_json import whole
from rlaif.data.texts import check_used, frames_of
from rlaif.records import Prompt

MARK = f"{PLACEHOLDER}\n"
OUTPUTS = ("output_1", "output_2")
RM_NAME, RL_NAME, SFT_NAME = "vlm_rlaif_rm", "vlm_rlaif_rl", "vlm_rlaif_sft"


def _mark(media: Fields) -> str:
    return MARK if media else ""


# -- pairs for the reward model


def _pair(fields: Fields) -> PreferencePair:
    choice = choice_of(fields, "preference", (1, 2))
    answers = [_output(fields, name) for name in OUTPUTS]
    media = read_media(fields)
    # the last answer of the conversation is one of the two outputs, or empty
    turns = read_turns(fields, "conversations", last="assistant", media=media)[:-1]
    row = {
        "pair_id": identity(fields, "id", _name(fields, turns, answers)),
        "chosen": answers[choice - 1],
        "rejected": answers[2 - choice],
    }
    # an order that says nothing new is not stored
    order = [{"candidate": "rejected"}, {"candidate": "chosen"}] if choice == 2 else []
    row |= {"candidates": order, **question_fields(turns), **media}
    return build_pair(row | {"native": came_with_video(fields, RM_NAME)})


def _name(fields: Fields, turns: Any, answers: list[str]) -> str:
    """Return the name of a pair without `id`, made from its content."""
    present = [fields[name] for name in ("images", "image", "videos", "video") if fields.get(name)]
    media = present[0] if present else None
    content = json.dumps([media, turns, answers])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def build_pair(row: Fields) -> PreferencePair:
    """Return a record of a published dataset, in which an empty answer is a failed generation rather than a bad one."""
    record = PreferencePair.from_row(row)
    if not record.rejected and not record.rejected_video:
        raise RowError("empty answer", "rejected is empty")
    return record


def choice_of(fields: Fields, name: str, choices: tuple) -> Any:
    """Return the value of a preference field. Raise RowError if nothing, or something else, was chosen."""
    if name not in fields:
        raise RowError("missing field", f"{name}: Field required")
    value = whole(fields[name])
    if value is None:
        raise RowError("no preference", f"{name} is null")
    if value not in choices or isinstance(value, bool | float):
        first, second = choices
        raise RowError("choice is neither", f"{name} is {excerpt(repr(value))}, neither {first!r} nor {second!r}")
    return value


def chosen_first(record: PreferencePair) -> bool:
    """Return whether the source listed the chosen answer first."""
    for candidate in record.candidates:
        if candidate.get("candidate") in SIDES:
            return candidate["candidate"] == SIDES[0]
    return True


def check_texts(record: PreferencePair) -> None:
    """Raise RowError for a record whose candidates are videos."""
    if record.chosen_video:
        raise RowError("candidates are videos", "these rows hold two texts")


def media_of(record: Any, name: str) -> Fields:
    """Return the media fields of a record's row in the format `name`."""
    frames = frames_of(record)
    if isinstance(record, PreferencePair):
        modality = record.modality
    else:
        modality = record.extra.get("modality", "video" if record.video or frames else "text")
    from_video = "video" in native_of(record).get(name, {})
    return write_media(record.video, frames, modality, from_video)


def _pair_row(record: PreferencePair, place: int) -> Fields:
    check_texts(record)
    media = media_of(record, RM_NAME)
    turns = write_turns(turns_before_answer(record.question, record.messages), _mark(media))
    is_first = chosen_first(record)
    answers = (record.chosen, record.rejected) if is_first else (record.rejected, record.chosen)
    row: Fields = {"id": record.pair_id, "conversations": [*turns, {"from": "gpt", "value": ""}]}
    for name, answer in zip(OUTPUTS, answers, strict=True):
        row[name] = {"value": answer}
    row["preference"] = 1 if is_first else 2
    return row | media


def _output(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if value is None:
        raise RowError("missing field", f"{name}: Field required")
    answer = value.get("value") if isinstance(value, dict) else None
    if not isinstance(answer, str):
        raise RowError("wrong type", f"{name}.value: not a text")
    check_used(value, ("from", "value"), name)
    return answer


# -- prompts and conversations


def _about(media: Fields) -> Fields:
    """Return the media fields of a row of ours, which names one video.

    Frames in several folders have the folder above these, until `rlaif data convert --media` joins them.
    """
    if media["modality"] == "text":
        return {}
    video = media["video"] or above(media.get("frames", ()))
    if not video:
        raise RowError("no video", "frames with nothing above them all")
    row: Fields = {"video": video}
    if media.get("frames"):
        row["frames"] = media["frames"]
    if media["modality"] == "image":
        row["modality"] = "image"
    return row


def _native(fields: Fields, name: str) -> Fields:
    native = came_with_video(fields, name)
    return {"native": native} if native else {}


def _prompt(fields: Fields) -> Prompt:
    name = identity(fields, "uid")
    media = read_media(fields)
    messages = read_turns(fields, "conversations", last="assistant", media=media)
    # later turns are kept in `native`: the published trainer reads the first two
    if len(messages) < 2 or messages[0][0] != "user":
        raise RowError("turns out of order", f"roles are {[role for role, _ in messages]}")
    if media["modality"] == "text":
        raise RowError("no video", f"none of {', '.join(MEDIA)}: a prompt is about one")
    row = {"prompt_id": name, "question": messages[0][1], **_about(media), **_native(fields, RL_NAME)}
    if messages[1][1]:
        row["answer"] = messages[1][1]
    return build_row(PromptRow, row)


def _prompt_row(record: Prompt, place: int) -> Fields:
    media = media_of(record, RL_NAME)
    messages = (("user", record.question), ("assistant", record.answer or ""))
    turns = write_turns(messages, _mark(media))
    return {"uid": whole_id(record.prompt_id), "conversations": turns} | media


def _conversation(fields: Fields) -> Conversation:
    name = identity(fields, "id")
    media = read_media(fields)
    messages = read_turns(fields, "conversations", last="assistant", media=media)
    row = {"id": name, "messages": as_messages(messages)}
    return build_row(ConversationRow, row | _about(media) | _native(fields, SFT_NAME))


def _conversation_row(record: Conversation, place: int) -> Fields:
    media = media_of(record, SFT_NAME)
    return {"id": record.id, "conversations": write_turns(record.messages, _mark(media))} | media


RM = Format(
    name=RM_NAME,
    kind="pairs",
    about="VLM-RLAIF reward-model pairs: conversations, output_1, output_2, preference",
    recognise=lambda row: {"conversations", *OUTPUTS, "preference"} <= row.keys(),
    build=_pair,
    bare=_pair_row,
    key="pair_id",
    uses=frozenset(("id", "conversations", *OUTPUTS, "preference", *MEDIA)),
    source_key="id",
    prepare=stored,
    finish=named_files,
)
RL = Format(
    name=RL_NAME,
    kind="prompts",
    about="VLM-RLAIF PPO prompts: conversations, images, uid",
    recognise=lambda row: {"conversations", "uid"} <= row.keys(),
    build=_prompt,
    bare=_prompt_row,
    key="prompt_id",
    uses=frozenset(("uid", "conversations", *MEDIA)),
    source_key="uid",
    prepare=stored,
    finish=named_files,
)
SFT = Format(
    name=SFT_NAME,
    kind="conversations",
    about="LLaVA and VLM-RLAIF fine-tuning conversations: id, conversations, images or video",
    recognise=lambda row: {"conversations", "id"} <= row.keys() and "rejected_conversations" not in row,
    build=_conversation,
    bare=_conversation_row,
    key="id",
    uses=frozenset(("id", "conversations", *MEDIA)),
    prepare=stored,
    finish=named_files,
)
