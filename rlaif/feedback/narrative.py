"""Which frames a caption covers, what is asked for it, and how captions become a video's narrative.

The variants are those of VLM-RLAIF (Ahn et al. 2024): clips or single frames, each captioned alone or knowing the
caption before it, on the question or not, joined or summarised. Three clips of at most 20 of 50 frames did best there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rlaif.errors import ConfigError, ContractError, DataError
from rlaif.text import fill


@dataclass(frozen=True)
class CaptionPlan:
    """What is captioned and how. Raises ConfigError for numbers or templates that cannot work."""

    unit: Literal["clip", "frame"] = "clip"
    count: int = 3
    """Clips, or frames, of a video."""
    frames: int = 20
    """Frames of one clip, at most."""
    dependent: bool = False
    """Each caption is asked for with the one before it."""
    conditioned: bool = False
    """Each caption is asked for with the question that will be put to the video."""
    aggregate: Literal["concat", "summarise"] = "concat"
    separator: str = " "
    """Between captions."""
    prompt: str = "{previous}{question}Describe in detail what can be seen in this part of the video."
    """May hold `{previous}` and `{question}`, filled by the two templates below, or by nothing."""
    previous_slot: str = "Just before this part: {previous}\n"
    question_slot: str = "What will be asked about the video: {question}\n"
    summary_prompt: str = (
        "Parts of one video, in order: {captions}\n{question}Tell in detail what happens in the video."
    )
    """Of `summarise`; may hold `{question}`."""
    max_caption_tokens: int = 1024
    """Of the captions in it: whole ones in time order, as many as fit (`rlaif.text.within_budget`)."""
    max_tokens: int = 256
    """Of one caption, and of a summary."""
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1 or self.frames < 1:
            raise ConfigError(
                "at least one unit of at least one frame", f"{self.count} of {self.frames}", "count, frames"
            )
        _one_of("unit", self.unit, "clip", "frame")
        _one_of("aggregate", self.aggregate, "concat", "summarise")
        if self.dependent:
            _has_slots("previous", prompt=self.prompt, previous_slot=self.previous_slot)
        if self.conditioned:
            _has_slots("question", prompt=self.prompt, question_slot=self.question_slot)
        if self.aggregate == "summarise":
            _has_slots("captions", summary_prompt=self.summary_prompt)


def clips(total_frames: int, plan: CaptionPlan) -> list[list[int]]:
    """Frame indices (0-based, ascending) of each unit, in time order. Raises DataError for a video without frames.

    clip: the video is cut into `count` parts whose lengths differ by one frame at most (fewer parts where there are
    fewer frames); of a part longer than `frames`, evenly spaced ones with its first and last.
    frame: `count` evenly spaced frames, without the video's first and last where there are `count + 2` or more.
    """
    if total_frames < 1:
        raise DataError("a video of at least one frame", f"{total_frames}", "the video")
    count = min(plan.count, total_frames)
    if plan.unit == "clip":
        edges = [part * total_frames // count for part in range(count + 1)]
        return [_spread(edges[part], edges[part + 1] - 1, plan.frames) for part in range(count)]
    if total_frames >= count + 2:
        return [[place * (total_frames - 1) // (count + 1)] for place in range(1, count + 1)]
    return [[index] for index in _spread(0, total_frames - 1, count)]


def request_text(plan: CaptionPlan, previous: str | None = None, question: str = "") -> str:
    """What is asked of the captioner for one unit; `previous` is the caption before it, None for the first."""
    shown = fill(plan.previous_slot, previous=previous) if plan.dependent and previous else ""
    return fill(plan.prompt, previous=shown, question=_question(plan, question))


def summary_text(captions: Sequence[str], plan: CaptionPlan, question: str = "") -> str:
    """What is asked, once per video, where `aggregate` is `summarise`."""
    return fill(plan.summary_prompt, captions=_joined(captions, plan), question=_question(plan, question))


def narrative(captions: Sequence[str], plan: CaptionPlan, summary: str | None = None) -> str:
    """The video's narrative: its captions in time order (blank ones left out), or the reply to `summary_text`."""
    if plan.aggregate == "concat":
        return _joined(captions, plan)
    if summary is None:
        raise ContractError("the reply to summary_text", "none", "ask for it, or set aggregate to concat")
    return summary.strip()


def version(plan: CaptionPlan) -> str:
    """The prompt version: 16 hex digits over everything in the plan that changes what is asked and how it is answered, and
    nothing else."""
    asked = {
        name: getattr(plan, name)
        for name in ("unit", "count", "dependent", "conditioned", "prompt", "max_tokens", "temperature")
    }
    if plan.unit == "clip":
        asked["frames"] = plan.frames
    if plan.dependent:
        asked["previous_slot"] = plan.previous_slot
    if plan.conditioned:
        asked["question_slot"] = plan.question_slot
    if plan.aggregate == "summarise":
        names = ("summary_prompt", "separator", "max_caption_tokens")
        asked |= {name: getattr(plan, name) for name in names}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _spread(first: int, last: int, most: int) -> list[int]:
    """At most `most` evenly spaced numbers of first..last with both ends; the middle one where only one may be."""
    length = last - first + 1
    if length <= most:
        return list(range(first, last + 1))
    if most == 1:
        return [(first + last) // 2]
    return [first + place * (length - 1) // (most - 1) for place in range(most)]


def _question(plan: CaptionPlan, question: str) -> str:
    if not plan.conditioned:
        return ""
    if not question.strip():
        raise ContractError(
            "a question, as the plan conditions captions on it", "none", "give it, or conditioned: false"
        )
    return fill(plan.question_slot, question=question)


def _joined(captions: Sequence[str], plan: CaptionPlan) -> str:
    return plan.separator.join(caption.strip() for caption in captions if caption.strip())


def _one_of(name: str, value: str, *known: str) -> None:
    if value not in known:
        raise ConfigError(f"{name}: {' or '.join(known)}", repr(value), name)


def _has_slots(slot: str, **templates: str) -> None:
    for name, template in templates.items():
        if f"{{{slot}}}" not in template:
            raise ConfigError(
                f"{{{slot}}} in {name}", repr(template), f"add the slot, or switch off what fills it ({slot})"
            )
