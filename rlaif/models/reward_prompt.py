"""What a reward model reads: question, context, answer. One code path for training and for scoring rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlaif.config.schema import Reward
from rlaif.models.encode import Encoded, Encoder
from rlaif.models.templates import fill, within_budget
from rlaif.models.video_features import VideoFeatures
from rlaif.seeds import derive


@dataclass(frozen=True)
class RewardPrompt:
    """The prompt's form; saved with the reward model, so that scoring can't drift from training."""

    captions_template: str
    captions_separator: str
    prompt_template: str
    evaluation_turn: str
    max_caption_tokens: int
    context: str
    verdict: str = ""

    @classmethod
    def of(cls, config: Reward) -> RewardPrompt:
        """Return the form that the options of `rlaif reward` ask for."""
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})

    def encode(
        self, encoder: Encoder, question: str, captions: Sequence[str], response: str, features: VideoFeatures | None
    ) -> Encoded:
        """Return the sequence whose last token the scalar is read at.

        That is the answer's end of turn, or the token before a verdict, or the last token of its first words.
        """
        slots = {"context": self.fill_context(encoder, captions), "question": question}
        messages = [("user", fill(self.prompt_template, **slots)), ("assistant", response)]
        if self.evaluation_turn:
            messages.append(("user", fill(self.evaluation_turn, **slots)))
        return encoder.conversation(messages, features, self.verdict)

    def fill_context(self, encoder: Encoder, captions: Sequence[str]) -> str:
        """Return the text of the caption slot: whole captions within the token budget, or nothing."""
        if self.context == "none":
            return ""
        fitting, _ = within_budget(captions, lambda caption: len(encoder.tokens(caption)), self.max_caption_tokens)
        if not fitting:
            return ""
        return fill(self.captions_template, captions=self.captions_separator.join(fitting))


def contexts(mode: str, rows: Sequence[tuple[str, Sequence[str]]], seed: int) -> list[tuple[str, ...]]:
    """Return the captions that each (video, its captions) row is read with.

    captions, none: the row's own (the prompt leaves them out for none). shuffled (a control): those of another video
    of the rows, always the same one for a given seed; nothing if there is no other.
    """
    if mode != "shuffled":
        return [tuple(captions) for _, captions in rows]
    pool = {video: tuple(captions) for video, captions in rows if captions}
    videos = sorted(pool)
    place = {video: index for index, video in enumerate(videos)}
    shuffled = []
    for video, _ in rows:
        own = place.get(video)
        shuffled.append(_another(video, own, videos, pool, seed))
    return shuffled


def _another(
    video: str, own: int | None, videos: Sequence[str], pool: Mapping[str, tuple[str, ...]], seed: int
) -> tuple[str, ...]:
    """Return the captions of another video in the pool; own: place of this video among `videos`, None if it has none."""
    others = len(videos) - (own is not None)
    if not others:
        return ()
    index = derive(seed, "shuffled", video) % others
    if own is not None and index >= own:  # an index among the others: step over the video's own place
        index += 1
    return pool[videos[index]]
