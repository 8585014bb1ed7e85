"""One preference: two answers (texts or videos) to one prompt, and everything known about why one is better.

Its JSON row is a superset of the pairs row that `rlaif.data.read.read_pairs` reads. What is null, empty or the default is
left out of the row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue

from rlaif.data.bad_rows import excerpt
from rlaif.data.rows import OVERALL, RowError, build_row, check_signs, check_turns
from rlaif.errors import DataError

Modality = Literal["video", "image", "text"]
SIDES = ("chosen", "rejected")
_OTHER = dict(zip(SIDES, SIDES[::-1], strict=True))


@dataclass(frozen=True)
class Span:
    """Characters start..end-1 of an answer."""

    start: int
    end: int
    type: str | None = None
    """What is the matter with them: `object`, `position`, ..."""
    source: str | None = None
    """Who marked them: `human`, `diff`, a judge's name."""


@dataclass(frozen=True)
class Preference:
    """`chosen` was preferred to `rejected` along `dimension`."""

    pair_id: str
    question: str
    """The last user turn; for candidates that are videos, the text they were generated from."""
    chosen: str = ""
    rejected: str = ""
    prompt_id: str | None = None
    video: str | None = None
    """Video file, frame folder or image, relative to `data.root`; None where the candidates are the videos."""
    frames: tuple[str, ...] = ()
    """Paths of exactly the frames to use, in order, where the source lists them."""
    modality: Modality = "video"
    messages: tuple[tuple[str, str], ...] = ()
    """(role, content) of the whole conversation before the answer, where it has more than one turn."""
    captions: tuple[str, ...] = ()
    chosen_video: str | None = None
    rejected_video: str | None = None
    chosen_spans: tuple[Span, ...] = ()
    rejected_spans: tuple[Span, ...] = ()
    dimension: str = OVERALL
    dimensions: dict[str, int] = field(default_factory=dict)
    """1: `chosen` is also preferred in that dimension; -1: `rejected` is."""
    margin: float | None = None
    """How much better `chosen` is along `dimension`."""
    scores: tuple[dict, ...] = ()
    """{"value", "from", "candidate"?: "chosen" | "rejected" | a name, ...}: only ever added to (`with_scores`)."""
    judge: dict = field(default_factory=dict)
    """model, prompt_hash, logprobs, ..."""
    candidates: tuple[dict, ...] = ()
    """In the source's order; {"candidate": "chosen" | "rejected" | a name, "id"?, "model"?, "text"?, ...}."""
    provenance: dict = field(default_factory=dict)
    """dataset, model, seed, temperature, ..."""
    safety: dict = field(default_factory=dict)
    """prompt_type, prompt_labels, is_safe, video_labels; what differs by answer as {"chosen", "rejected"}."""
    ref_logps: dict = field(default_factory=dict)
    """{"chosen", "rejected"}: {"sum", "mean", "tokens"} in nats under the reference."""
    native: dict = field(default_factory=dict)
    """By format: what of the source row no other field says (see rlaif/data/formats/roundtrip.py)."""

    @property
    def media(self) -> tuple[str, ...]:
        """Every video that the record names."""
        return tuple(path for path in (self.video, self.chosen_video, self.rejected_video) if path)

    @property
    def signs(self) -> dict[str, int]:
        """`dimensions` with the record's own among them."""
        return {self.dimension: 1} | self.dimensions

    def along(self, dimension: str) -> Preference:
        """The record as that dimension sees it: chosen and rejected change places where it prefers the other one.

        The margin belongs to the record's own dimension and is dropped with it. Raises DataError for a dimension that
        the record does not have.
        """
        if dimension == self.dimension:
            return self
        if dimension not in self.signs:
            names = excerpt(", ".join(sorted(self.signs)), 300)
            raise DataError(
                f"a dimension of pair {excerpt(self.pair_id)!r}: {names}",
                repr(dimension),
                "choose one of these dimensions",
            )
        turned = self if self.signs[dimension] == 1 else self._turned()
        sign = self.signs[dimension]
        signs = {name: sign * other for name, other in self.signs.items()}
        return replace(turned, dimension=dimension, dimensions=signs, margin=None)

    def with_scores(self, scores: Iterable[Mapping[str, Any]]) -> Preference:
        """The record with more scores. Raises DataError for one without a finite `value` or without `from`."""
        added = tuple(dict(score) for score in scores)
        try:
            for score in added:
                build_row(_Score, score)
        except RowError as error:
            change = 'give {"value": number, "from": who scored}'
            raise DataError(f"a score for pair {self.pair_id!r}", error.detail, change) from error
        return replace(self, scores=self.scores + added)

    def _turned(self) -> Preference:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        turned = {name: values[_other(name)] for name in values if _other(name) != name}
        for name in ("scores", "judge", "candidates", "provenance", "safety", "ref_logps"):
            turned[name] = _turn(values[name])
        return replace(self, **turned)

    def to_row(self) -> dict[str, Any]:
        """The JSON row: `from_row` reads it back as an equal record."""
        row: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "messages":
                value = [{"role": role, "content": content} for role, content in value]
            elif item.name in ("chosen_spans", "rejected_spans"):
                value = [{k: v for k, v in asdict(span).items() if v is not None} for span in value]
            elif isinstance(value, tuple):
                value = list(value)
            if value not in (None, "", [], {}):
                row[item.name] = value
        if not (self.chosen_video or self.rejected_video):
            row["chosen"], row["rejected"] = self.chosen, self.rejected  # an empty answer may well lose
        if self.modality == _modality(row):
            row.pop("modality")
        if self.dimension == OVERALL:
            row.pop("dimension")
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Preference:
        """Check a row and build its record; fields that a record does not have go into `native`.

        Raises RowError with the reason why the row cannot be used.
        """
        return build_row(_PreferenceRow, {name: value for name, value in row.items() if value is not None})


def _other(name: str) -> str:
    """The field that takes the place of `name` when the answers change places."""
    side, mark, rest = name.partition("_")
    return _OTHER.get(side, side) + mark + rest


def _turn(value: Any) -> Any:
    """`value` with the keys `chosen` and `rejected` exchanged at any depth, and what `candidate` names too."""
    if isinstance(value, list | tuple):
        return type(value)(map(_turn, value))
    if not isinstance(value, dict):
        return value
    turned = {_OTHER.get(key, key): _turn(inner) for key, inner in value.items()}
    if isinstance(turned.get("candidate"), str):
        turned["candidate"] = _OTHER.get(turned["candidate"], turned["candidate"])
    return turned


def _modality(row: Mapping[str, Any]) -> Modality:
    """Of a row that does not say."""
    return "video" if any(row.get(name) for name in ("video", "frames", "chosen_video", "rejected_video")) else "text"


# -- what a row must look like

Text = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Message(_Strict):
    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: Text


class _Span(_Strict):
    model_config = ConfigDict(strict=True, extra="forbid")

    start: int = Field(ge=0)
    end: int
    type: str | None = None
    source: str | None = None

    def within(self, name: str, answer: str) -> Span:
        if not self.start < self.end <= len(answer):
            raise RowError("span outside answer", f"{name}: {self.start}..{self.end} of {len(answer)} characters")
        return Span(self.start, self.end, self.type, self.source)


class _Score(_Strict):
    value: FiniteFloat
    from_: Text = Field(alias="from")
    candidate: Text | None = None

    def build(self) -> None:
        """Checked only: a score is kept as it was given."""


class _PreferenceRow(_Strict):
    pair_id: Text
    question: Text
    chosen: str | None = None
    rejected: str | None = None
    prompt_id: Text | None = None
    video: Text | None = None
    frames: list[Text] = []
    modality: Modality | None = None
    messages: list[_Message] = []
    captions: list[str] = []
    chosen_video: Text | None = None
    rejected_video: Text | None = None
    chosen_spans: list[_Span] = []
    rejected_spans: list[_Span] = []
    dimension: Text = OVERALL
    dimensions: dict[Text, int] = {}
    margin: FiniteFloat | None = None
    scores: list[dict[str, JsonValue]] = []
    judge: dict[str, JsonValue] = {}
    candidates: list[dict[str, JsonValue]] = []
    provenance: dict[str, JsonValue] = {}
    safety: dict[str, JsonValue] = {}
    ref_logps: dict[str, JsonValue] = {}
    native: dict[str, dict[str, JsonValue]] = {}

    def build(self) -> Preference:
        self._check_media()
        self._check_answers()
        check_signs(self.dimension, self.dimensions)
        messages = tuple((message.role, message.content) for message in self.messages)
        if messages:
            check_turns(messages, last="user")
            if messages[-1][1] != self.question:
                raise RowError("turns out of order", "the last of `messages` is not the question")
        values = {name: getattr(self, name) for name in type(self).model_fields}
        values |= {name: tuple(values[name]) for name in ("frames", "captions", "scores", "candidates")}
        values["chosen"], values["rejected"] = self.chosen or "", self.rejected or ""
        for side in SIDES:
            name = f"{side}_spans"
            values[name] = tuple(span.within(name, values[side]) for span in values[name])
        for score in self.scores:
            build_row(_Score, score)
        values["modality"] = self.modality or _modality(values)
        if self.model_extra:
            values["native"] = self.native | {"rlaif": self.native.get("rlaif", {}) | self.model_extra}
        return Preference(**values | {"messages": messages})

    def _check_media(self) -> None:
        if bool(self.chosen_video) != bool(self.rejected_video):
            raise RowError("missing field", "one of chosen_video and rejected_video without the other")
        if self.modality in ("video", "image") and not (self.video or self.frames or self.chosen_video):
            raise RowError("missing field", f"video: a pair of modality {self.modality} names none")

    def _check_answers(self) -> None:
        if not self.chosen_video:
            for side in SIDES:
                if getattr(self, side) is None:
                    raise RowError("missing field", f"{side}: Field required")
            if not self.chosen:
                raise RowError("empty answer", "chosen is empty")
        if (self.chosen or "", self.chosen_video) == (self.rejected or "", self.rejected_video):
            raise RowError("chosen equals rejected", repr(self.chosen_video or (self.chosen or "")[:60]))
