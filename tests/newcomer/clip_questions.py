"""Questions about clips: `id`, `clip` (a path) and `ask` (the question)."""

from __future__ import annotations

from rlaif.data.formats.base import Fields, Format
from rlaif.data.rows import PromptRow, RowError, build_row
from rlaif.records import Prompt

OURS = {"id": "prompt_id", "clip": "video", "ask": "question"}
"""Our name of each field."""


def _prompt(fields: Fields) -> Prompt:
    row = {}
    for name, our_name in OURS.items():
        if name not in fields:
            raise RowError("missing field", f"{name}: Field required")
        row[our_name] = fields[name]
    return build_row(PromptRow, row)


def _prompt_row(record: Prompt, place: int) -> Fields:
    return {"id": record.prompt_id, "clip": record.video, "ask": record.question}


CLIP_QUESTIONS = Format(
    name="clip_questions",
    kind="prompts",
    about="questions about clips: id, clip, ask",
    recognise=lambda row: {"clip", "ask"} <= row.keys(),
    build=_prompt,
    bare=_prompt_row,
    key="prompt_id",
    uses=frozenset(OURS),
    source_key="id",
)
