"""PDS-DPO's rows: one image (or video), `conversations` that end with the chosen answer and `rejected_conversations`."""

from __future__ import annotations

from rlaif.data.formats.base import Fields, Format
from rlaif.data.formats.identity import identity
from rlaif.data.formats.llava_turns import PLACEHOLDER, question_fields, read_turns, turns_before_answer, write_turns
from rlaif.data.formats.visual import MEDIA, came_with_video, named_files, read_media, stored
from rlaif.data.formats.vlm_rlaif import build_pair, check_texts, media_of
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import RowError

NAME = "pds_dpo"
CHOSEN, REJECTED = "conversations", "rejected_conversations"


def _pair(fields: Fields) -> PreferencePair:
    pair_id = identity(fields, "id")
    media = read_media(fields)
    *prompt, (_, answer) = read_turns(fields, CHOSEN, last="assistant", media=media)
    *other_prompt, (_, other_answer) = read_turns(fields, REJECTED, last="assistant", media=media)
    if prompt != other_prompt:
        raise RowError("prompts differ", f"{CHOSEN} and {REJECTED} answer different questions")
    row = {"pair_id": pair_id, "chosen": answer, "rejected": other_answer}
    row |= question_fields(tuple(prompt)) | media
    return build_pair(row | {"native": came_with_video(fields, NAME)})


def _pair_row(record: PreferencePair, place: int) -> Fields:
    check_texts(record)
    media = media_of(record, NAME)
    turns = turns_before_answer(record.question, record.messages)
    mark = f"{PLACEHOLDER} " if media else ""
    row: Fields = {"id": record.pair_id, **media}
    for name, answer in ((CHOSEN, record.chosen), (REJECTED, record.rejected)):
        row[name] = write_turns((*turns, ("assistant", answer)), mark)
    return row


PDS_DPO = Format(
    name=NAME,
    kind="pairs",
    about="PDS-DPO pairs: image, conversations, rejected_conversations",
    recognise=lambda row: {CHOSEN, REJECTED} <= row.keys(),
    build=_pair,
    bare=_pair_row,
    key="pair_id",
    uses=frozenset(("id", CHOSEN, REJECTED, *MEDIA)),
    source_key="id",
    prepare=stored,
    finish=named_files,
)
