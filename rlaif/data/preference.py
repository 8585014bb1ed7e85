"""The record of a preference pair: two answers (texts or videos) to one prompt, and all that is known of the comparison.

Its JSON row leaves out what is null, empty or the default. `PreferencePair.from_row` checks a whole row;
`PreferencePair.for_training` reads the fields that a reward model is trained on and no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue

from rlaif.data.rows import OVERALL, RowError, build_row, check_turns, excerpt, without_none
from rlaif.errors import DataError

Modality = Literal["video", "image", "text"]
SIDES = ("chosen", "rejected")
UNWRITTEN = frozenset(("unread_turns",))
"""Fields of the record that no row has."""
_OTHER_SIDE = dict(zip(SIDES, SIDES[::-1], strict=True))


@dataclass(frozen=True)
class Span:
    """Characters start..end-1 of an answer."""

    start: int
    end: int
    type: str | None = None
    """What is wrong with them: `object`, `position`, ..."""
    source: str | None = None
    """Who marked them: `human`, `diff`, a judge's name."""


@dataclass(frozen=True)
class PreferencePair:
    """`chosen` was preferred to `rejected` along `dimension`."""

    pair_id: str
    question: str
    """The last user turn; for candidates that are videos, the text they were generated from."""
    chosen: str = ""
    rejected: str = ""
    prompt_id: str | None = None
    video: str | None = None
    """Video file, frame folder or image, relative to `data.root`; None if the candidates are the videos."""
    frames: tuple[str, ...] = ()
    """Paths of exactly the frames to use, in order, if the source lists them."""
    modality: Modality = "video"
    messages: tuple[tuple[str, str], ...] = ()
    """(role, content) of the whole conversation before the answer, if it has more than one turn."""
    captions: tuple[str, ...] = ()
    chosen_video: str | None = None
    rejected_video: str | None = None
    chosen_spans: tuple[Span, ...] = ()
    rejected_spans: tuple[Span, ...] = ()
    dimension: str = OVERALL
    dimensions: Mapping[str, int] = field(default_factory=dict)
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
    """prompt_type, prompt_labels, is_safe, video_labels; values that differ by answer are {"chosen", "rejected"}."""
    ref_logps: dict = field(default_factory=dict)
    """{"chosen", "rejected"}: {"sum", "mean", "tokens"} in nats under the reference."""
    native: dict = field(default_factory=dict)
    """By format: everything in the source row that no other field says (see rlaif/data/formats/roundtrip.py)."""
    unread_turns: bool = False
    """The row has turns before the question that were not read into `messages` (`for_training`)."""

    @property
    def media(self) -> tuple[str, ...]:
        """Return every video that the record names."""
        return tuple(filter(None, (self.video, self.chosen_video, self.rejected_video)))

    @property
    def answer_videos(self) -> tuple[str, str]:
        """Return the videos that a reward model reads with the chosen and the rejected answer: one if they are texts."""
        about = self.video or ""
        return self.chosen_video or about, self.rejected_video or about

    @property
    def videos(self) -> tuple[str, ...]:
        """Return the different videos that a reward model reads."""
        return tuple(dict.fromkeys(filter(None, self.answer_videos)))

    @property
    def earlier_turns(self) -> bool:
        """Return whether there are turns before the question; reward models and judges read the question alone."""
        return self.unread_turns or len(self.messages) > 1

    @property
    def signs(self) -> dict[str, int]:
        """Return `dimensions` and the record's own among them."""
        return {self.dimension: 1, **self.dimensions}

    def along(self, dimension: str) -> PreferencePair:
        """Return the record as that dimension sees it: chosen and rejected change places if it prefers the other answer.

        The margin belongs to the record's own dimension and is dropped with it. Raise DataError for a dimension that
        the record does not have.
        """
        if dimension == self.dimension:
            return self
        if dimension not in self.signs:
            names = excerpt(", ".join(sorted(self.signs)), 300)
            expected = f"a dimension of pair {excerpt(self.pair_id)!r}: {names}"
            raise DataError(expected, repr(dimension), "choose one of these dimensions")
        sign = self.signs[dimension]
        pair = self if sign == 1 else self._with_sides_exchanged()
        signs = {name: sign * other for name, other in self.signs.items()}
        return replace(pair, dimension=dimension, dimensions=signs, margin=None)

    def with_scores(self, scores: Iterable[Mapping[str, Any]]) -> PreferencePair:
        """Return the record with more scores. Raise DataError for one without a finite `value` or without `from`."""
        added = tuple(map(dict, scores))
        try:
            for score in added:
                build_row(_ScoreForm, score)
        except RowError as error:
            fix = 'give {"value": number, "from": who scored}'
            raise DataError(f"a score for pair {self.pair_id!r}", error.detail, fix) from error
        return replace(self, scores=self.scores + added)

    def _with_sides_exchanged(self) -> PreferencePair:
        # not `asdict`, which would turn the spans into dicts
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        changes: dict[str, Any] = {}
        for name in values:
            other = _other_field(name)
            if other != name:
                changes[name] = values[other]
        for name in ("scores", "judge", "candidates", "provenance", "safety", "ref_logps"):
            changes[name] = _exchange_sides(values[name])
        return replace(self, **changes)

    def to_row(self) -> dict[str, Any]:
        """Return the JSON row: `from_row` reads it back as an equal record."""
        row: dict[str, Any] = {}
        for item in fields(self):
            value = _to_json(item.name, getattr(self, item.name))
            if item.name not in UNWRITTEN and value not in (None, "", [], {}):
                row[item.name] = value
        if not (self.chosen_video or self.rejected_video):
            # an empty answer may well lose, so it must not be left out
            row["chosen"], row["rejected"] = self.chosen, self.rejected
        # the default would be read back without being written
        if self.modality == _default_modality(row):
            row.pop("modality")
        if self.dimension == OVERALL:
            row.pop("dimension")
        return row

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> PreferencePair:
        """Check a row and build its record; fields that a record does not have go into `native`.

        Raise RowError with the reason why the row cannot be used.
        """
        return build_row(_PairForm, without_none(row))

    @classmethod
    def for_training(cls, row: Mapping[str, Any]) -> PreferencePair:
        """Check the fields of a row that a reward model is trained on, and build a record of these.

        What else the row has (scores, spans, the turns before the question, ...) costs no pair. Two texts need a video,
        two videos must differ. Raise RowError with the reason why the row cannot be used.
        """
        fields = {name: row.get(name) for name in _TRAINING_FIELDS}
        return build_row(_TrainingForm, without_none(fields))


def _to_json(name: str, value: Any) -> Any:
    """Return the value of a record's field as its row has it."""
    if name == "messages":
        return [{"role": role, "content": content} for role, content in value]
    if name in ("chosen_spans", "rejected_spans"):
        return [without_none(asdict(span)) for span in value]
    return list(value) if isinstance(value, tuple) else value


def _other_field(name: str) -> str:
    """Return the field that takes the place of `name` when the answers change places."""
    side, mark, rest = name.partition("_")
    return _OTHER_SIDE.get(side, side) + mark + rest


def _exchange_sides(value: Any) -> Any:
    """Return `value` with the keys `chosen` and `rejected` exchanged at any depth, also if `candidate` names them."""
    if isinstance(value, list | tuple):
        return type(value)(map(_exchange_sides, value))
    if not isinstance(value, dict):
        return value
    exchanged = {_OTHER_SIDE.get(key, key): _exchange_sides(inner) for key, inner in value.items()}
    candidate = exchanged.get("candidate")
    if isinstance(candidate, str):
        exchanged["candidate"] = _OTHER_SIDE.get(candidate, candidate)
    return exchanged


def _default_modality(row: Mapping[str, Any]) -> Modality:
    """Return the modality of a row that does not say."""
    has_video = any(map(row.get, ("video", "frames", "chosen_video", "rejected_video")))
    return "video" if has_video else "text"


# -- what a row must look like

Text = Annotated[str, Field(min_length=1)]
_TRAINING_FIELDS = (
    *("pair_id", "question", "chosen", "rejected", "prompt_id", "video", "messages", "captions"),
    *("chosen_video", "rejected_video", "dimension", "dimensions", "margin", "native"),
)


class _Form(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _MessageForm(_Form):
    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: Text


class _SpanForm(_Form):
    model_config = ConfigDict(strict=True, extra="forbid")

    start: int = Field(ge=0)
    end: int
    type: str | None = None
    source: str | None = None

    def within(self, name: str, answer: str) -> Span:
        """Return the span. Raise RowError if it is not a part of the answer."""
        if not self.start < self.end <= len(answer):
            raise RowError("span outside answer", f"{name}: {self.start}..{self.end} of {len(answer)} characters")
        return Span(self.start, self.end, self.type, self.source)


class _ScoreForm(_Form):
    value: FiniteFloat
    from_: Text = Field(alias="from")
    candidate: Text | None = None

    def build(self) -> None:
        """Check only: a score is stored as it was given."""


class _PairForm(_Form):
    pair_id: Text
    question: Text
    chosen: str | None = None
    rejected: str | None = None
    prompt_id: Text | None = None
    video: Text | None = None
    frames: list[Text] = []
    modality: Modality | None = None
    messages: list[_MessageForm] = []
    captions: list[str] = []
    chosen_video: Text | None = None
    rejected_video: Text | None = None
    chosen_spans: list[_SpanForm] = []
    rejected_spans: list[_SpanForm] = []
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

    def build(self) -> PreferencePair:
        """Return the record. Raise RowError for fields that contradict each other."""
        self._check_media()
        self._check_answers()
        self._check_signs()
        # not `model_dump`, which would turn the spans into dicts
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for name in ("frames", "captions", "scores", "candidates"):
            values[name] = tuple(values[name])
        values["messages"] = self._turns()
        for side in SIDES:
            answer = values[side] or ""
            name = f"{side}_spans"
            values[side] = answer
            values[name] = tuple(span.within(name, answer) for span in values[name])
        for score in self.scores:
            build_row(_ScoreForm, score)
        values["modality"] = self.modality or _default_modality(values)
        if self.model_extra:
            own = self.native.get("rlaif", {})
            values["native"] = self.native | {"rlaif": own | self.model_extra}
        return PreferencePair(**values)

    def _turns(self) -> tuple[tuple[str, str], ...]:
        turns = tuple((message.role, message.content) for message in self.messages)
        if turns:
            check_turns(turns, last="user")
            if turns[-1][1] != self.question:
                raise RowError("turns out of order", "the last of `messages` is not the question")
        return turns

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
        # one text for two videos, or two texts about one video, are different answers
        texts_are_equal = (self.chosen or "") == (self.rejected or "")
        if texts_are_equal and self.chosen_video == self.rejected_video:
            raise RowError("chosen equals rejected", repr(self.chosen_video or (self.chosen or "")[:60]))

    def _check_signs(self) -> None:
        """Raise RowError unless `dimensions` holds 1 and -1 only, and 1 for the row's own `dimension`."""
        for name, sign in self.dimensions.items():
            if sign not in (1, -1):
                raise RowError("wrong type", f"dimensions.{name}: {sign} is neither 1 nor -1")
        if self.dimensions.get(self.dimension, 1) != 1:
            detail = f"{self.dimension!r} is the row's own dimension, and -1 in its list"
            raise RowError("dimensions contradict", detail)


class _TrainingForm(_PairForm):
    """The fields of `_TRAINING_FIELDS`. An empty `chosen` is an empty field here, and turns are only counted."""

    chosen: Text | None = None
    prompt_id: str | None = None
    messages: list[Any] = []  # type: ignore[assignment]  # whatever another tool keeps of a conversation
    native: dict[str, dict] = {}

    def build(self) -> PreferencePair:
        """Return the record. Raise RowError for fields that contradict each other."""
        if not (self.video or self.chosen_video or self.rejected_video):
            raise RowError("missing field", "video: Field required")
        if self.chosen_video and self.chosen_video == self.rejected_video:
            raise RowError("chosen equals rejected", repr(self.chosen_video[:60]))
        pair = super().build()
        # `video` is not read beside two candidates; `native` would only travel to every rank
        video = None if pair.chosen_video else pair.video
        return replace(pair, video=video, native={}, unread_turns=len(self.messages) > 1)

    def _turns(self) -> tuple[tuple[str, str], ...]:
        return ()
