"""PDS-DPO's rows: one image, `conversations` that end with the chosen answer and `rejected_conversations`."""

from __future__ import annotations

from rlaif.data import RowError
from rlaif.preferences.formats.base import Fields, Format
from rlaif.preferences.formats.turns import PLACEHOLDER, asked, question, read_turns, write_turns
from rlaif.preferences.formats.vlm_rlaif import build_pair, check_texts, read_media, write_media
from rlaif.preferences.record import Preference

CHOSEN, REJECTED = "conversations", "rejected_conversations"


def _pair(fields: Fields) -> Preference:
    if fields.get("id") is None:
        raise RowError("missing field", "id: Field required")
    chosen, rejected = (read_turns(fields, name, last="assistant") for name in (CHOSEN, REJECTED))
    if chosen[:-1] != rejected[:-1]:
        raise RowError("prompts differ", f"{CHOSEN} and {REJECTED} answer different questions")
    row = {"pair_id": str(fields["id"]), "chosen": chosen[-1][1], "rejected": rejected[-1][1]}
    return build_pair(row | question(chosen[:-1]) | read_media(fields))


def _pair_row(record: Preference, place: int) -> Fields:
    check_texts(record)
    media = write_media(record.video, record.frames, record.modality)
    turns = asked(record.question, record.messages)
    mark = f"{PLACEHOLDER} " if media else ""
    both = {
        name: write_turns((*turns, ("assistant", answer)), mark)
        for name, answer in ((CHOSEN, record.chosen), (REJECTED, record.rejected))
    }
    return {"id": record.pair_id, **media, **both}


PDS_DPO = Format(
    name="pds_dpo",
    kind="pairs",
    about="PDS-DPO pairs: image, conversations, rejected_conversations",
    recognise=lambda row: {CHOSEN, REJECTED} <= row.keys(),
    build=_pair,
    bare=_pair_row,
    key="pair_id",
    source_key="id",
)
