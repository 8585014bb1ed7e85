"""The one table of formats, by name. Importing it imports all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rlaif.data.formats import own, pds_dpo, rlhf_v, safesora, safesora_items, vlm_rlaif
from rlaif.data.formats.base import Fields, Format
from rlaif.data.rows import excerpt
from rlaif.errors import DataError

FORMATS: dict[str, Format] = {
    item.name: item
    for item in (
        safesora.PAIRS,
        rlhf_v.RLHF_V,
        rlhf_v.RLAIF_V,
        vlm_rlaif.RM,
        vlm_rlaif.RL,
        pds_dpo.PDS_DPO,
        vlm_rlaif.SFT,
        own.PAIRS,
        own.PROMPTS,
        own.SFT,
        safesora_items.VIDEOS,
        safesora_items.PROMPTS,
    )
}
"""In the order in which a row is recognised."""


def named(name: str) -> Format:
    """Return the format called `name`. Raise DataError that lists the formats there are."""
    if name not in FORMATS:
        raise DataError(f"a format: {', '.join(FORMATS)}", repr(name), "choose one of these")
    return FORMATS[name]


def detect(rows: Iterable[Fields]) -> Format:
    """Return the format that most of the rows look like; ties go to the format that was met first.

    Raise DataError that lists the formats there are if no row looks like any.
    """
    votes: Counter[str] = Counter()
    longest: Fields = {}
    for fields in rows:
        name = _recognised(fields)
        if name is not None:
            votes[name] += 1
        longest = fields if len(fields) > len(longest) else longest
    if votes:
        ((name, _),) = votes.most_common(1)
        return FORMATS[name]
    known = "\n".join(f"             {item.name:16} {item.about}" for item in FORMATS.values())
    names = excerpt(", ".join(longest), 160)
    fix = "name the format with --format (--from in `rlaif data convert`) if it is one of these, or rewrite the rows"
    raise DataError(f"rows of one of these formats:\n{known}", f"rows with the fields {names or '(none)'}", fix)


def _recognised(fields: Fields) -> str | None:
    """Return the name of the first format that a row looks like."""
    for name, form in FORMATS.items():
        if form.recognise(fields):
            return name
    return None
