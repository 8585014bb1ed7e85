"""Which frames a caption covers, and the texts that request a caption and a summary of a video's captions.

The variants are those of VLM-RLAIF (Ahn et al. 2024): clips or single frames; each captioned alone or with the caption
before it as context; with or without the question; joined or summarised. Three clips of at most 20 of 50 frames did best
there.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence

from rlaif.config.feedback import Caption
from rlaif.errors import ContractError, DataError
from rlaif.models.templates import fill

SEPARATOR = " "
"""Between the captions of a summary's prompt."""


def clips(total_frames: int, options: Caption) -> list[list[int]]:
    """Return the frame indices (0-based, ascending) of each unit, in time order.

    clip: the video is cut into `count` parts whose lengths differ by one frame at most (fewer parts if there are fewer
    frames). A part longer than `frames` is sampled evenly, with its first and last frame.
    frame: `count` evenly spaced frames, without the video's first and last if there are `count + 2` or more.

    Raises DataError for a video without frames.
    """
    if total_frames < 1:
        raise DataError("a video of at least one frame", f"{total_frames}", "Replace the video, or remove its rows.")
    count = min(options.count, total_frames)
    if options.unit == "clip":
        # Integer arithmetic: the same edges on every machine, and part lengths that differ by one at most.
        edges = [part * total_frames // count for part in range(count + 1)]
        parts = itertools.pairwise(edges)
        return [_spread(first, end - 1, options.frames) for first, end in parts]
    if total_frames >= count + 2:
        return [[place * (total_frames - 1) // (count + 1)] for place in range(1, count + 1)]
    return [[index] for index in _spread(0, total_frames - 1, count)]


def request_text(options: Caption, previous: str | None = None, question: str = "") -> str:
    """Return the captioner's prompt for one unit; `previous` is the caption before it, None for the first.

    Raises ContractError if captions are conditioned on the question and it is blank.
    """
    context = fill(options.previous_slot, previous=previous) if options.dependent and previous else ""
    return fill(options.prompt, previous=context, question=_question(options, question))


def summary_text(captions: Sequence[str], options: Caption, question: str = "") -> str:
    """Return the prompt for the summary, once per video, if `aggregate` is `summarise`.

    Raises ContractError if captions are conditioned on the question and it is blank.
    """
    return fill(options.summary_prompt, captions=_joined(captions), question=_question(options, question))


def prompt_version(options: Caption) -> str:
    """Return 16 hex digits over every option that changes a prompt or its answer, and over nothing else.

    Stores of captions are identified by it.
    """
    # Files of captions carry this number: a change of its parts would disown the files of earlier releases.
    names = ["unit", "count", "dependent", "conditioned", "prompt", "max_tokens", "temperature"]
    names += ["frames"] if options.unit == "clip" else []
    names += ["previous_slot"] if options.dependent else []
    names += ["question_slot"] if options.conditioned else []
    if options.aggregate == "summarise":
        names += ["summary_prompt", "max_caption_tokens"]
    # Only options that have an effect: changing any other one must not ask for a new file.
    content = {name: getattr(options, name) for name in names}
    if options.aggregate == "summarise":
        content["separator"] = SEPARATOR
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _spread(first: int, last: int, most: int) -> list[int]:
    """Return at most `most` evenly spaced numbers of first..last with both ends; the middle one if `most` is 1."""
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
            "Give the question, or set caption.conditioned: false.",
        )
    return fill(options.question_slot, question=question)


def _joined(captions: Sequence[str]) -> str:
    """Join captions in order; blank ones are left out."""
    return SEPARATOR.join(caption.strip() for caption in captions if caption.strip())
