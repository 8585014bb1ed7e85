"""Which frames a caption covers, and what is asked for it and for a summary of a video's captions.

The variants are those of VLM-RLAIF (Ahn et al. 2024): clips or single frames, each captioned alone or knowing the
caption before it, on the question or not, joined or summarised. Three clips of at most 20 of 50 frames did best there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from rlaif.config.feedback import Caption
from rlaif.errors import ContractError, DataError
from rlaif.models.templates import fill

SEPARATOR = " "
"""Between the captions of a summary's prompt."""


def clips(total_frames: int, options: Caption) -> list[list[int]]:
    """Frame indices (0-based, ascending) of each unit, in time order. Raises DataError for a video without frames.

    clip: the video is cut into `count` parts whose lengths differ by one frame at most (fewer parts where there are
    fewer frames); of a part longer than `frames`, evenly spaced ones with its first and last.
    frame: `count` evenly spaced frames, without the video's first and last where there are `count + 2` or more.
    """
    if total_frames < 1:
        raise DataError("a video of at least one frame", f"{total_frames}", "Replace the video, or remove its rows")
    count = min(options.count, total_frames)
    if options.unit == "clip":
        edges = [part * total_frames // count for part in range(count + 1)]
        return [_spread(edges[part], edges[part + 1] - 1, options.frames) for part in range(count)]
    if total_frames >= count + 2:
        return [[place * (total_frames - 1) // (count + 1)] for place in range(1, count + 1)]
    return [[index] for index in _spread(0, total_frames - 1, count)]


def request_text(options: Caption, previous: str | None = None, question: str = "") -> str:
    """What is asked of the captioner for one unit; `previous` is the caption before it, None for the first."""
    shown = fill(options.previous_slot, previous=previous) if options.dependent and previous else ""
    return fill(options.prompt, previous=shown, question=_question(options, question))


def summary_text(captions: Sequence[str], options: Caption, question: str = "") -> str:
    """What is asked, once per video, where `aggregate` is `summarise`."""
    return fill(options.summary_prompt, captions=_joined(captions), question=_question(options, question))


def version(options: Caption) -> str:
    """The prompt version: 16 hex digits over every option that changes what is asked and how it is answered, and nothing
    else. Stores of captions are known by it."""
    names = ["unit", "count", "dependent", "conditioned", "prompt", "max_tokens", "temperature"]
    names += ["frames"] if options.unit == "clip" else []
    names += ["previous_slot"] if options.dependent else []
    names += ["question_slot"] if options.conditioned else []
    asked = {name: getattr(options, name) for name in names}
    if options.aggregate == "summarise":
        asked |= {name: getattr(options, name) for name in ("summary_prompt", "max_caption_tokens")}
        asked["separator"] = SEPARATOR
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _spread(first: int, last: int, most: int) -> list[int]:
    """At most `most` evenly spaced numbers of first..last with both ends; the middle one where only one may be."""
    length = last - first + 1
    if length <= most:
        return list(range(first, last + 1))
    if most == 1:
        return [(first + last) // 2]
    return [first + place * (length - 1) // (most - 1) for place in range(most)]


def _question(options: Caption, question: str) -> str:
    if not options.conditioned:
        return ""
    if not question.strip():
        raise ContractError(
            "a question, as captions are conditioned on it",
            "none",
            "Give the question, or set caption.conditioned: false",
        )
    return fill(options.question_slot, question=question)


def _joined(captions: Sequence[str]) -> str:
    """Blank ones left out."""
    return SEPARATOR.join(caption.strip() for caption in captions if caption.strip())
