"""Checks that a model can use a row at all, by what its tokenizer and its processor make of the texts and the video's size.

Neither weights nor pixels are read, so every row of a file can be checked before anything expensive starts. Each check
raises RowError with the reason, or returns a remark about a row that is usable but not read as it looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rlaif.data.misread import MARKED
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import Conversation, RowError
from rlaif.errors import ContractError
from rlaif.models.encode import Encoded, Encoder
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.models.video_features import VideoFeatures
from rlaif.records import Prompt
from rlaif.video.spec import FrameSpec

SHOWN_CHARACTERS = 60


@dataclass(frozen=True)
class Room:
    """How many positions, visual tokens included, a text may take."""

    positions: int
    option: str
    """The option that sets the limit, as a message names it."""


class Reader:
    """Checks of rows against one model."""

    def __init__(self, encoder: Encoder, spec: Callable[[str], FrameSpec], name: str):
        """Keep the model's encoder; spec: returns a video's FrameSpec; name: of the model in messages."""
        self._encoder, self._spec, self._name = encoder, spec, name

    def prompt(self, prompt: Prompt, rooms: Sequence[Room], wish: Room | None = None) -> str | None:
        """Check a prompt that an engine answers; one that is longer than the `wish` is usable with a remark."""
        remark = self._text("question", prompt.question)
        ids = self._encoder.unexpanded(prompt.question, bool(prompt.video))
        features = self._features(prompt.video, prompt.frames)
        length = len(self._read(lambda: self._encoder.expand(ids, features)))
        _fit(length, rooms)
        if wish is not None and length > wish.positions:
            return remark or f"they leave no room for a whole answer ({wish.option})"
        return remark

    def conversation(self, row: Conversation, rooms: Sequence[Room]) -> str | None:
        """Check a conversation whose answers are trained on."""
        remarks = []
        for role, content in row.messages:
            if role == "assistant":
                self._answer("an answer", content)
            else:
                remarks.append(self._text(f"a {role} turn", content))
        features = self._features(row.video)
        encoded = self._read(lambda: self._encoder.conversation(row.messages, features))
        _fit(len(encoded.ids), rooms)
        return _first(remarks)

    def pair(self, row: PreferencePair, prompt: RewardPrompt, rooms: Sequence[Room]) -> str | None:
        """Check a pair that a reward model is trained on: two texts that differ for the model, too."""
        remark = self.scored(row.question, row.captions, prompt)
        videos = row.answer_videos
        sides = []
        texts = {"chosen": row.chosen, "rejected": row.rejected}
        for (name, text), video in zip(texts.items(), videos, strict=True):
            self._answer(name, text)
            encoded = self._encode(prompt, row.question, row.captions, text, video)
            _fit(len(encoded.ids), rooms)
            sides.append(encoded.ids)
        if not row.rejected_video and np.array_equal(*sides):
            raise RowError(
                "chosen equals rejected",
                f"both read the same to {self._name}: {row.chosen[:SHOWN_CHARACTERS]!r}, "
                f"{row.rejected[:SHOWN_CHARACTERS]!r}",
            )
        return remark

    def scored(self, question: str, captions: Sequence[str], prompt: RewardPrompt) -> str | None:
        """Check what a reward model reads beside an answer: the question and, if it reads any, the captions."""
        return self.judged(question, captions if prompt.context != "none" else (), ())

    def judged(self, question: str, captions: Sequence[str], answers: Iterable[str]) -> str | None:
        """Check the texts that a judge reads."""
        remarks = [self._text("question", question)]
        remarks += [self._text("a caption", text) for text in captions]
        remarks += [self._text("an answer", text) for text in answers]
        return _first(remarks)

    def _text(self, name: str, text: str) -> str | None:
        """Refuse a media token in a text, which has no features behind it; remark on a token that ends or begins a turn."""
        structure = self._structure_in(text)
        for token in structure:
            if token in self._encoder.banned_ids:
                raise RowError(MARKED, f"{name} holds {self._token(token)!r}, a media token of {self._name}")
        if structure:
            return f"{name} holds {self._token(structure[0])!r}, which {self._name} reads as structure"
        return None

    def _answer(self, name: str, text: str) -> None:
        """Refuse a token of structure in a text that is trained on or scored: the model would read its beginning only."""
        self._text(name, text)
        structure = self._structure_in(text)
        if structure or self._encoder.eos in text:
            token = self._token(structure[0]) if structure else self._encoder.eos
            raise RowError("answer cut", f"{name} holds {token!r}, at which it ends for {self._name}")

    def _structure_in(self, text: str) -> list[int]:
        structure = self._encoder.structure_ids
        return [token for token in self._encoder.tokens(text) if token in structure]

    def _token(self, token: int) -> str:
        return self._encoder.tokenizer.convert_ids_to_tokens(token)

    def _features(self, video: str, part: Sequence[int] = ()) -> VideoFeatures | None:
        if not video:
            return None
        # a black video takes as many visual tokens as the real one, and no pixels have to be decoded for it
        spec = self._spec(video)
        return self._encoder.videos.blank(spec.part(part) if part else spec)

    def _encode(self, prompt: RewardPrompt, question: str, captions: Sequence[str], answer: str, video: str) -> Encoded:
        features = self._features(video)
        return self._read(lambda: prompt.encode(self._encoder, question, captions, answer, features))

    def _read(self, make: Callable):
        """Return what `make` returns; a text that the model's roles would refuse later is refused now."""
        try:
            return make()
        except ContractError as error:
            raise RowError(MARKED, f"expected {error.expected}, found {error.found}") from error


def _fit(length: int, rooms: Sequence[Room]) -> None:
    """Raise RowError unless a text of `length` positions fits into the smallest room."""
    room = min(rooms, key=lambda room: room.positions)
    if length > room.positions:
        raise RowError("too long", f"{length} positions with its video, over {room.positions} ({room.option})")


def _first(remarks: Iterable[str | None]) -> str | None:
    return next((remark for remark in remarks if remark), None)
