"""Text and frames -> token ids and features, by the model's own processor; the same for engine, learner and reward model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
import transformers

from rlaif.errors import ContractError
from rlaif.io.storage import fetch
from rlaif.models.family import family_of, media_token_ids, token_id, visual_token_id
from rlaif.models.turns import Message, conversation_segments, split_after_video
from rlaif.models.video_features import Frames, VideoFeatures, VideoProcessor


@dataclass(frozen=True)
class Encoded:
    """A sequence ready to be batched: a prompt, and the tokens after it that are trained on or scored."""

    ids: np.ndarray
    """[L] int64, visual placeholders expanded."""
    start: int
    """Index of the first response token."""
    mask: np.ndarray
    """[L - start] float32: 1 on tokens that are trained on."""
    positions: np.ndarray
    """[L] or [3, L] int64."""
    video: VideoFeatures | None
    name: str = ""
    """Its name in errors, e.g. `prompt_id/sample_index`."""
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    """Arrays (per response token, or per slot) or scalars that an objective needs."""
    padding: int = 0
    """How many of the last tokens are padding: read, but not attended to."""

    def padded(self, pad_id: int, count: int) -> Encoded:
        """Return it followed by `count` padding tokens at the position of the last token; extras stay as they are."""
        pad_ids = np.full(count, pad_id, np.int64)
        pad_mask = np.ones(count, np.float32)
        last_position = self.positions[..., -1:]
        pad_positions = np.repeat(last_position, count, -1)
        return replace(
            self,
            ids=np.concatenate([self.ids, pad_ids]),
            mask=np.concatenate([self.mask, pad_mask]),
            positions=np.concatenate([self.positions, pad_positions], -1),
            padding=self.padding + count,
        )


class Encoder:
    """Tokenizer, processor and family of one model directory; `videos` are processed for it."""

    def __init__(
        self, model_path: str, frames: Frames | None = None, cache_bytes: int = 512 * 1024**2, dtype: str = "float32"
    ):
        """Load tokenizer and processor; no weights.

        cache_bytes: for processed videos. dtype: what the models compute in; the engine rounds times to it, which can move a
        position by one.
        """
        folder = fetch(model_path)
        self.config = transformers.AutoConfig.from_pretrained(folder)
        self.family = family_of(self.config)
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        self.tokenizer = self.processor.tokenizer
        self.visual_id = visual_token_id(self.config)
        self.placeholder_id = token_id(self.tokenizer, self.family.placeholder)
        self.banned_ids = media_token_ids(self.config)
        self.special_ids = set(self.tokenizer.all_special_ids)
        self.eos_id, self.eos = self.tokenizer.eos_token_id, self.tokenizer.eos_token
        self.frames = frames
        self.videos = VideoProcessor(
            self.processor, self.family.placeholder, self.visual_id, frames, cache_bytes, getattr(torch, dtype)
        )

    def chat(self, messages: Sequence[Message], video: bool = True, generate: bool = False) -> str:
        """Return the messages as the model's chat template writes them."""
        roles = [role for role, _ in messages]
        first_user = roles.index("user") if "user" in roles else None
        rendered = []
        for index, (role, content) in enumerate(messages):
            parts = [{"type": "text", "text": content}]
            if video and index == first_user:
                parts.insert(0, {"type": "video"})
            rendered.append({"role": role, "content": parts})
        return self.processor.apply_chat_template(rendered, tokenize=False, add_generation_prompt=generate)

    def tokens(self, text: str) -> list[int]:
        """Return the ids of a text inside a sequence."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def opening(self, text: str) -> list[int]:
        """Return the ids of a text that begins a sequence: with the begin-of-sequence token if this tokenizer adds one."""
        ids, bos = self.tokens(text), self.tokenizer.bos_token_id
        # some tokenizers name a begin-of-sequence token and never add it; some templates write it themselves
        adds_bos = bos is not None and bos in self.tokenizer("")["input_ids"]
        return [bos, *ids] if adds_bos and ids[:1] != [bos] else ids

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of some ids without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def unexpanded(self, question: str, video: bool = True) -> list[int]:
        """Return the ids of a prompt ready to be answered, with one placeholder for the video: the rollout engine's input."""
        return self.opening(self.chat([("user", question)], video, generate=True))

    def video(self, video: str, part: Sequence[int] = ()) -> VideoFeatures:
        """Return the processed frames of a video, or of some native frames of it; see `VideoProcessor.get`."""
        return self.videos.get(video, part)

    @cached_property
    def structure_ids(self) -> frozenset[int]:
        """Return the special tokens that mean a turn, a medium or an end to this model, and so are no part of a text.

        They are what the chat template writes around texts, what ends generation, and the family's media tokens.
        """
        turns = [("user", "a"), ("assistant", "a"), ("user", "a")]
        # not every special token is structure: Qwen's tokenizer has some that no template writes
        text = self.chat(turns, generate=True) + self.chat(turns[:2])
        written = set(self.tokens(text))
        special = set(self.special_ids)
        for id_, token in self.tokenizer.added_tokens_decoder.items():
            if token.special:
                special.add(id_)
        ends = {self.eos_id, self.tokenizer.bos_token_id}
        ends.update(_as_list(self.config.get_text_config().eos_token_id))
        ends.update(_as_list(self._generation_ends()))
        structure = (special & written) | ends | set(self.banned_ids)
        return frozenset(structure - {None, self.tokenizer.unk_token_id})

    def _generation_ends(self) -> int | list[int] | None:
        """Return the ids that end generation, from the model directory's generation_config.json if it has one."""
        try:
            return transformers.GenerationConfig.from_pretrained(self.config.name_or_path).eos_token_id
        except OSError:
            return None

    def prompt_and_response(
        self, question: str, response_ids: Sequence[int], features: VideoFeatures | None
    ) -> Encoded:
        """Return a prompt followed by sampled tokens, all of them trained on."""
        prompt = self.expand(self.unexpanded(question, features is not None), features)
        return self.assemble(prompt, response_ids, np.ones(len(response_ids), np.float32), features)

    def conversation(
        self,
        messages: Sequence[Message],
        features: VideoFeatures | None,
        reply_begins: str = "",
        prompt_weight: float = 0.0,
    ) -> Encoded:
        """Return a whole conversation; the assistant's tokens and their end-of-turn tokens are trained on.

        After a last message by the user, the text ends at the place of the reply to it, or with `reply_begins`.
        prompt_weight: above 0 the users' texts after the video are trained on too; the extra `weight` [T] then says what
        each token counts: this much, or 1 for the assistant's.
        """
        segments = conversation_segments(self, messages, features is not None, reply_begins)
        # the video's own tokens are never trained on: they have no text
        if prompt_weight:
            segments = split_after_video(segments, self.banned_ids)
        ids: list[int] = []
        flags: list[float] = []
        for segment in segments[1:]:
            ids += segment.ids
            flags += [float(segment.is_trained)] * len(segment.ids)
        self._check_text(ids)
        prompt = self.expand(segments[0].ids, features)
        mask = np.asarray(flags, np.float32)
        if not prompt_weight:
            return self.assemble(prompt, ids, mask, features)
        encoded = self.assemble(prompt, ids, np.ones_like(mask), features)
        weight = np.where(mask > 0, mask, np.float32(prompt_weight))
        return replace(encoded, extras={"weight": weight})

    def assemble(
        self, prompt: np.ndarray, response: Sequence[int], mask: np.ndarray, features: VideoFeatures | None
    ) -> Encoded:
        """Return an expanded prompt [P] and a response [T] with its mask [T] as one sequence."""
        ids = np.concatenate([prompt, np.asarray(response, np.int64)])
        tensors = features.tensors if features else {}
        # of the whole sequence at once: how text resumes after a video depends on the video's grid
        positions = self.family.positions(ids, tensors, self.config)
        return Encoded(ids, len(prompt), mask, positions, features)

    def expand(self, ids: list[int], features: VideoFeatures | None) -> np.ndarray:
        """Replace the one placeholder by the video's visual tokens."""
        if features is None:
            return np.asarray(ids, np.int64)
        # ids that are expanded already would be expanded again
        marks = self.marks(ids)
        if len(marks) != 1:
            raise ContractError(
                "one video placeholder in the prompt", f"{len(marks)}", "Remove media tokens from the question."
            )
        place = marks[0]
        before, after = ids[:place], ids[place + 1 :]
        return np.concatenate([before, features.expansion, after]).astype(np.int64)

    def marks(self, ids: Sequence[int]) -> list[int]:
        """Return the places of placeholders and visual tokens in an unexpanded prompt; only one placeholder can be answered."""
        media = (self.placeholder_id, self.visual_id)
        return [place for place, token in enumerate(ids) if token in media]

    def _check_text(self, ids: list[int]) -> None:
        """Refuse a media token: it has no features behind it, and counts as impossible if it is trained on."""
        for token in self.banned_ids:
            if token in ids:
                name = self.tokenizer.convert_ids_to_tokens(token)
                raise ContractError(
                    "no media placeholder in a text after the video", repr(name), "Correct the text of that turn."
                )


def _as_list(value: int | list[int] | None) -> list[int | None]:
    return value if isinstance(value, list) else [value]
