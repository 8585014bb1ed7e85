"""Text and frames -> token ids and features, by the model's own processor; the same for engine, learner and reward model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import transformers

from rlaif.errors import ConfigError, ContractError
from rlaif.io.storage import fetch
from rlaif.models.family import family_of, media_token_ids, token_id, visual_token_id
from rlaif.video.spec import FrameSpec

Message = tuple[str, str]
"""(role, content), role `system`, `user` or `assistant`; the video belongs to the first user message."""

NOT_FEATURES = ("attention_mask", "mm_token_type_ids")
"""What a processor returns beside ids and what the model computes with."""


class Frames(Protocol):
    """Where frames come from: the frame store's client, or a local decoder."""

    def spec(self, video: str) -> FrameSpec: ...

    def get(self, video: str, spec: FrameSpec) -> np.ndarray: ...


@dataclass(frozen=True)
class VideoFeatures:
    """A video as the processor prepared it for the model."""

    spec: FrameSpec
    expansion: np.ndarray
    """[E] int64: the ids that replace the video placeholder."""
    visual_tokens: int
    tensors: dict[str, np.ndarray]
    """Model inputs such as pixel_values_videos, video_grid_thw; concatenated along axis 0 in a batch."""

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class Encoded:
    """A sequence ready to be batched: prompt, then what is trained or scored."""

    ids: np.ndarray
    """[L] int64, visual placeholders expanded."""
    start: int
    """Index of the first response token."""
    mask: np.ndarray
    """[L - start] float32: 1 where a token is trained on."""
    positions: np.ndarray
    """[L] or [3, L] int64."""
    video: VideoFeatures | None
    name: str = ""
    """What an error calls it, e.g. `prompt_id/sample_index`."""
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    """Arrays (per response token, or per slot) or scalars that an objective needs."""
    padding: int = 0
    """How many of the last tokens are padding: read, but not attended to."""

    def padded(self, pad_id: int, count: int) -> Encoded:
        """Followed by `count` padding tokens at the position of the last token; extras stay as they are."""
        return replace(
            self,
            ids=np.concatenate([self.ids, np.full(count, pad_id, np.int64)]),
            mask=np.concatenate([self.mask, np.ones(count, np.float32)]),
            positions=np.concatenate([self.positions, np.repeat(self.positions[..., -1:], count, -1)], -1),
            padding=self.padding + count,
        )


class Encoder:
    """Tokenizer, processor and family of one model directory, with a byte-budgeted cache of processed videos."""

    def __init__(
        self, model_path: str, frames: Frames | None = None, cache_bytes: int = 512 * 1024**2, dtype: str = "float32"
    ):
        """`dtype` is what the models compute in: the engine rounds times to it, which can move a position by one."""
        model_path = fetch(model_path)
        self.config = transformers.AutoConfig.from_pretrained(model_path)
        self.family = family_of(self.config)
        self.processor = transformers.AutoProcessor.from_pretrained(model_path)
        self.tokenizer = self.processor.tokenizer
        self.visual_id = visual_token_id(self.config)
        self.placeholder_id = token_id(self.tokenizer, self.family.placeholder)
        self.banned_ids = media_token_ids(self.config)
        self.eos_id, self.eos = self.tokenizer.eos_token_id, self.tokenizer.eos_token
        self.frames, self.dtype = frames, getattr(torch, dtype)
        self._special = set(self.tokenizer.all_special_ids)
        self._blank: dict[tuple, VideoFeatures] = {}
        self._cache: OrderedDict[str, VideoFeatures] = OrderedDict()
        self._budget, self._held = cache_bytes, 0

    def chat(self, messages: Sequence[Message], video: bool = True, generate: bool = False) -> str:
        """The messages as the model's chat template writes them."""
        rendered = []
        asks = next((index for index, (role, _) in enumerate(messages) if role == "user"), None)
        for index, (role, content) in enumerate(messages):
            parts = [{"type": "video"}] if video and index == asks else []
            rendered.append({"role": role, "content": [*parts, {"type": "text", "text": content}]})
        return self.processor.apply_chat_template(rendered, tokenize=False, add_generation_prompt=generate)

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def opening(self, text: str) -> list[int]:
        """Ids of a text that begins a sequence: with the begin-of-sequence token where this tokenizer adds one."""
        ids, bos = self.tokens(text), self.tokenizer.bos_token_id
        adds = bos is not None and bos in self.tokenizer("")["input_ids"]
        return [bos, *ids] if adds and ids[:1] != [bos] else ids

    def ids_of(self, token: int | str) -> list[int]:
        """Ids of a token given as its id or its text: the ones with a space before it first, then the bare one."""
        if isinstance(token, int):
            return [token]
        names = {name.replace("▁", " ").replace("Ġ", " "): id_ for name, id_ in self.tokenizer.get_vocab().items()}
        found = [names[name] for name in (f" {token}", token) if name in names]
        if not found:
            raise ConfigError(
                "the text of one token of the policy's vocabulary",
                repr(token),
                "Set sampling.truncate_at to text that the tokenizer has",
            )
        return found

    def spellings(self, word: str) -> list[int]:
        """Ids of every single token that is this word, whatever its case and with or without a space before it."""
        names = {id_: name.replace("▁", " ").replace("Ġ", " ") for name, id_ in self.tokenizer.get_vocab().items()}
        wanted = word.strip().casefold()
        found = sorted(id_ for id_, name in names.items() if name.strip().casefold() == wanted)
        if not found:
            raise ConfigError(
                "a word that is one token of the judge's vocabulary",
                repr(word),
                "Set label.choices and label.yes_no to other words",
            )
        return found

    def text(self, ids: Sequence[int]) -> str:
        """Decoded without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def unexpanded(self, question: str, video: bool = True) -> list[int]:
        """Ids of a prompt ready to be answered, with one placeholder for the video: what the rollout engine takes."""
        return self.opening(self.chat([("user", question)], video, generate=True))

    def video(self, video: str, part: Sequence[int] = ()) -> VideoFeatures:
        """Processed frames of a video, or of some native frames of it (cached); DataError when it cannot be decoded."""
        spec = self.frames.spec(video)
        spec = spec.part(part) if part else spec
        if spec.hash not in self._cache:
            self._remember(self._process(spec, self.frames.get(video, spec)))
        self._cache.move_to_end(spec.hash)
        return self._cache[spec.hash]

    def blank(self, spec: FrameSpec) -> VideoFeatures:
        """Return the features of a black video of this size, without pixels: enough to count and place visual tokens.

        The processor runs once per frame size, not once per video. Families that write times between the frames get the
        same number of tokens for times of the same length in characters.
        """
        times = tuple(len(f"{index / spec.fps:.1f}") for index in spec.indices)
        key = (spec.height, spec.width, times)
        if key not in self._blank:
            frames = np.zeros((len(spec.indices), spec.height, spec.width, 3), np.uint8)
            found = self._process(spec, frames)
            tensors = {name: tensor for name, tensor in found.tensors.items() if not name.startswith("pixel")}
            self._blank[key] = replace(found, tensors=tensors)
        return self._blank[key]

    @cached_property
    def structure_ids(self) -> frozenset[int]:
        """Special tokens that mean a turn, a medium or an end to this model, and so are no part of a text.

        They are what the chat template writes around texts, whatever ends generation, and the family's media tokens.
        """
        turns = [("user", "a"), ("assistant", "a"), ("user", "a")]
        written = self.tokens(self.chat(turns, generate=True) + self.chat(turns[:2]))
        special = self._special | {id_ for id_, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        text = self.config.get_text_config()
        ends = [self.eos_id, self.tokenizer.bos_token_id, text.eos_token_id, *_as_list(self._generation_ends())]
        ends = {id_ for one in ends for id_ in _as_list(one) if id_ is not None}
        return frozenset((special & {*written} | ends | {*self.banned_ids}) - {self.tokenizer.unk_token_id})

    def _generation_ends(self) -> int | list[int] | None:
        """The ids that end generation, from the model directory's generation_config.json if it has one."""
        try:
            return transformers.GenerationConfig.from_pretrained(self.config.name_or_path).eos_token_id
        except OSError:
            return None

    def prompt_and_response(
        self, question: str, response_ids: Sequence[int], features: VideoFeatures | None
    ) -> Encoded:
        """A prompt followed by sampled tokens, all of them trained on."""
        prompt = self.expand(self.unexpanded(question, features is not None), features)
        return self.assemble(prompt, response_ids, np.ones(len(response_ids), np.float32), features)

    def conversation(
        self,
        messages: Sequence[Message],
        features: VideoFeatures | None,
        reply_begins: str = "",
        prompt_weight: float = 0.0,
    ) -> Encoded:
        """A whole conversation; the assistant's tokens and their end-of-turn tokens are trained on.

        After a last message by the user, the text ends where the reply to it would begin, or with `reply_begins`.
        prompt_weight: above 0 the users' texts behind the video are trained on too; the extra `weight` [T] then says what
        each token counts: this much, or 1 for the assistant's.
        """
        segments = self._segments(messages, features is not None, reply_begins)
        if prompt_weight:
            segments = self._behind_the_video(segments)
        prompt, rest = segments[0][0], segments[1:]
        ids = [token for segment, _ in rest for token in segment]
        flags = np.asarray([flag for segment, flag in rest for _ in segment], np.float32)
        self._check_text(ids)
        if not prompt_weight:
            return self.assemble(self.expand(prompt, features), ids, flags, features)
        found = self.assemble(self.expand(prompt, features), ids, np.ones_like(flags), features)
        return replace(found, extras={"weight": np.where(flags > 0, flags, np.float32(prompt_weight))})

    def _behind_the_video(self, segments: list[tuple[list[int], float]]) -> list[tuple[list[int], float]]:
        """The first segment in two: up to the last mark of the video (or the first token), and what follows."""
        first, trained = segments[0]
        at = max((at for at, token in enumerate(first) if token in self.banned_ids), default=0) + 1
        return [(first[:at], trained), (first[at:], trained), *segments[1:]]

    def assemble(
        self, prompt: np.ndarray, response: Sequence[int], mask: np.ndarray, features: VideoFeatures | None
    ) -> Encoded:
        ids = np.concatenate([prompt, np.asarray(response, np.int64)])
        tensors = features.tensors if features else {}
        return Encoded(ids, len(prompt), mask, self.family.positions(ids, tensors, self.config), features)

    def expand(self, ids: list[int], features: VideoFeatures | None) -> np.ndarray:
        """Replace the one placeholder by the video's visual tokens."""
        if features is None:
            return np.asarray(ids, np.int64)
        found = self.marks(ids)
        if len(found) != 1:
            raise ContractError(
                "one video placeholder in the prompt", f"{len(found)}", "Remove media tokens from the question"
            )
        at = found[0]
        return np.concatenate([ids[:at], features.expansion, ids[at + 1 :]]).astype(np.int64)

    def marks(self, ids: Sequence[int]) -> list[int]:
        """Where an unexpanded prompt holds a placeholder or a visual token; only one placeholder can be answered."""
        return [at for at, token in enumerate(ids) if token in (self.placeholder_id, self.visual_id)]

    def _segments(
        self, messages: Sequence[Message], video: bool, reply_begins: str = ""
    ) -> list[tuple[list[int], float]]:
        """[(ids, trained)] in turn order. Cut where generation would start, so that training sees what sampling sees.

        The end-of-sequence token ends an answer also where the template writes no mark there (LLaVA's do not).
        """
        rendered, segments, tokens = "", [], self.opening
        for index, (role, content) in enumerate(messages):
            if role != "assistant":
                continue
            if self.eos in content:  # what follows it would be neither trained on nor scored
                raise ContractError("no end of a turn inside an answer", repr(self.eos), "Remove it from the text.")
            before = self.chat(messages[:index], video, generate=True)
            after = self.chat(messages[: index + 1], video)
            body, eos, _ = after[len(before) :].partition(self.eos)
            body = body if eos else body.rstrip()
            unmarked = not eos and not self._special.intersection(self.tokens(body))
            if not before.startswith(rendered) or not after.startswith(before) or not (eos or unmarked):
                raise ConfigError(
                    "a chat template that appends turns and ends each answer with the end-of-sequence token or nothing",
                    f"{after!r}",
                    "Correct the chat template or eos_token in the model directory",
                )
            segments += [(tokens(before[len(rendered) :]), 0.0), (self.tokens(body) + [self.eos_id], 1.0)]
            rendered, tokens = before + body + eos, self.tokens
        if not segments:
            raise ConfigError("at least one assistant turn", "none", "Correct the conversation")
        if messages[-1][0] == "user":  # a turn that asks for a verdict: read where the answer would begin
            segments.append((self.tokens(self._opened(messages, video, reply_begins)[len(rendered) :]), 0.0))
        return segments

    def _opened(self, messages: Sequence[Message], video: bool, reply_begins: str) -> str:
        """The text up to a reply, or up to and with its first words, as the template sets them."""
        if not reply_begins:
            return self.chat(messages, video, generate=True)
        before, found, _ = self.chat([*messages, ("assistant", reply_begins)], video).rpartition(reply_begins)
        if not found:
            raise ConfigError(
                "a chat template that keeps a reply as it is", repr(reply_begins), "Set reward.verdict to another text"
            )
        return before + found

    def _check_text(self, ids: list[int]) -> None:
        """A media token has no features behind it, and counts as impossible where it would be trained on."""
        found = [token for token in self.banned_ids if token in ids]
        if found:
            name = self.tokenizer.convert_ids_to_tokens(found[0])
            raise ContractError(
                "no media placeholder in a text after the video", repr(name), "Correct the text of that turn"
            )

    def _process(self, spec: FrameSpec, frames: np.ndarray) -> VideoFeatures:
        output = self.processor(
            text=[self.family.placeholder],
            videos=[np.array(frames)],  # a copy: views of the object store are read-only
            video_metadata=[transformers.video_utils.VideoMetadata(**spec.metadata())],
            do_sample_frames=False,
            add_special_tokens=False,
            return_tensors="pt",  # InternVL's processor cannot return arrays
        )
        expansion = np.asarray(output.pop("input_ids")[0], np.int64)
        tensors = {name: self._as_held(name, value) for name, value in output.items() if name not in NOT_FEATURES}
        return VideoFeatures(spec, expansion, int((expansion == self.visual_id).sum()), tensors)

    def _as_held(self, name: str, value: object) -> np.ndarray:
        """A processor's output as the engine holds it: numbers that are not pixels are rounded to the models' dtype."""
        array = np.asarray(value)
        if name.startswith("pixel") or not np.issubdtype(array.dtype, np.floating):
            return array
        return torch.tensor(array, dtype=torch.float32).to(self.dtype).float().numpy()

    def _remember(self, features: VideoFeatures) -> None:
        self._cache[features.spec.hash] = features
        self._held += features.nbytes
        while self._held > self._budget and len(self._cache) > 1:
            self._held -= self._cache.popitem(last=False)[1].nbytes


def _as_list(value: int | list[int] | None) -> list[int | None]:
    return value if isinstance(value, list) else [value]
