"""The one table of formats, by name."""

from __future__ import annotations

from rlaif.errors import DataError
from rlaif.preferences.formats import base, open_pairs, own, pds_dpo, safesora, safesora_items, vlm_rlaif
from rlaif.preferences.formats.base import Fields, Format

FORMATS: dict[str, Format] = {
    item.name: item
    for item in (
        safesora.PAIRS,
        open_pairs.RLHF_V,
        open_pairs.RLAIF_V,
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
    """Raises DataError that lists the formats there are."""
    if name not in FORMATS:
        raise DataError(f"a format: {', '.join(FORMATS)}", repr(name), "choose one of these")
    return FORMATS[name]


def detect(fields: Fields) -> Format:
    """The format of a row. Raises DataError that lists the formats there are."""
    return base.find(FORMATS.values(), fields)
