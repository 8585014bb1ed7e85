"""Inputs and outputs of the sampling engine, in vLLM's terms and in ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rlaif.errors import ContractError
from rlaif.models.family import family_of, token_id, visual_token_id


@dataclass(frozen=True)
class Request:
    """One prompt and the seeds of the answers wanted for it."""

    prompt_ids: Sequence[int]
    """Ids with one unexpanded placeholder in the place of the video."""
    seeds: tuple[int, ...] = (0,)
    """One seed per answer."""
    frames: np.ndarray | None = None
    """[T, H, W, 3] uint8, or None for a text prompt."""
    metadata: dict = field(default_factory=dict)
    """`FrameSpec.metadata()`."""
    features: dict | None = None
    """Instead of frames: the output of tower and projector, as vLLM takes it (`Family.engine_video`)."""
    frames_hash: str | None = None
    """Identifies frames and metadata in the engine's caches; None: the engine hashes the frames itself."""
    visual_tokens: int | None = None
    """Visual tokens that the prompt must expand to, if the caller knows."""


@dataclass(frozen=True)
class Completion:
    """One sampled answer."""

    prompt_ids: np.ndarray
    """[P] int32: the prompt as the engine expanded it, visual positions with the id the learner has there."""
    response_ids: np.ndarray
    """[T] int32: the end-of-turn token included when it was sampled."""
    logprobs: np.ndarray
    """[T] float32: under the distribution sampled from (after bans, temperature, top-k and top-p)."""
    text: str
    """Without special tokens."""
    finish_reason: str
    """`stop` or `length`; `cut` once the rollout actor has cut it."""
    visual_tokens: int


@dataclass(frozen=True)
class Refused:
    """A request that the engine did not accept, e.g. a prompt beyond `max_model_len`."""

    reason: str


def over_limit(length: int, limit: int | None) -> str | None:
    """Return why a prompt of `length` positions, visual tokens included, is not answered; None if it is.

    Such a prompt is not cut, because that could cut the video.
    """
    if limit is None or length <= limit:
        return None
    return f"{length} prompt positions, over data.max_prompt_tokens ({limit})"


@dataclass(frozen=True)
class PendingRequest:
    """The facts of a request that are needed when it is answered; the frames may be freed meanwhile."""

    prompt_ids: np.ndarray
    has_video: bool
    visual_tokens: int | None

    @classmethod
    def of(cls, request: Request) -> PendingRequest:
        """Return the facts of a request."""
        ids = np.asarray(request.prompt_ids, dtype=np.int32)
        has_video = request.frames is not None or request.features is not None
        return cls(ids, has_video, request.visual_tokens)


def vllm_prompt(request: Request, response: Sequence[int] = ()) -> dict[str, Any]:
    """Return a request, and optionally the beginning of a response to it, as vLLM takes them."""
    ids = list(map(int, [*request.prompt_ids, *response]))
    prompt: dict[str, Any] = {"prompt_token_ids": ids}
    if request.frames is not None:
        # sampled again, the frames would be others than those that the learner sees
        metadata = request.metadata | {"do_sample_frames": False}
        prompt["multi_modal_data"] = {"video": (request.frames, metadata)}
        prompt["mm_processor_kwargs"] = {"do_sample_frames": False}
    elif request.features is not None:
        prompt["multi_modal_data"] = {"video": request.features}
    # without a name vLLM hashes all pixels of the video, once per prompt
    if "multi_modal_data" in prompt and request.frames_hash is not None:
        prompt["multi_modal_uuids"] = {"video": [request.frames_hash]}
    return prompt


@dataclass(frozen=True)
class VisualTokens:
    """Ids of a family's video in a prompt; the same id in most families."""

    placeholder: int
    """The id that is replaced in an unexpanded prompt, and that the engine reports at a visual position."""
    visual: int
    """The id that the model's own processor, and so the learner, has at a visual position."""

    @classmethod
    def of(cls, config: Any, tokenizer: Any) -> VisualTokens:
        """Return the ids for the engine's Hugging Face configuration and tokenizer."""
        return cls(token_id(tokenizer, family_of(config).placeholder), visual_token_id(config))


def completion_of(request: PendingRequest, output: Any, tokens: VisualTokens) -> Completion:
    """Return a finished vLLM output as a Completion.

    Raises ContractError if the engine expanded the prompt in an unexpected way.
    """
    answer = output.outputs[0]
    prompt_ids = np.asarray(output.prompt_token_ids, dtype=np.int32)
    visual_tokens = check_expansion(request, prompt_ids, tokens)
    response_ids = list(answer.token_ids)
    logprobs = [entry[token].logprob for entry, token in zip(answer.logprobs, response_ids, strict=True)]
    return Completion(
        # InternVL: vLLM reports the placeholder's id, and the Hugging Face processor has another one at visual positions
        prompt_ids=np.where(prompt_ids == tokens.placeholder, np.int32(tokens.visual), prompt_ids),
        response_ids=np.asarray(response_ids, dtype=np.int32),
        logprobs=np.asarray(logprobs, dtype=np.float32),
        text=answer.text.strip(),
        finish_reason=answer.finish_reason,
        visual_tokens=visual_tokens,
    )


def check_expansion(request: PendingRequest, expanded: np.ndarray, tokens: VisualTokens) -> int:
    """Return the number of visual tokens in an expanded prompt [P], after checking that only the placeholder was replaced.

    Ids that are expanded already would be expanded again, silently, by several families; hence the check on what
    comes back.

    Raises:
        ContractError: the text around the placeholder changed, or the count is not the one the caller knows.
    """
    ids = request.prompt_ids
    # the engine reports the placeholder's id at every visual position, in all families
    count = int((expanded == tokens.placeholder).sum())
    places = np.flatnonzero(np.isin(ids, (tokens.placeholder, tokens.visual)))
    if not request.has_video:
        is_intact = np.array_equal(ids, expanded)
    elif len(places) != 1 or count == 0:
        is_intact = False
    else:
        head, tail = ids[: places[0]], ids[places[0] + 1 :]
        same_head = np.array_equal(head, expanded[: len(head)])
        same_tail = np.array_equal(tail, expanded[len(expanded) - len(tail) :])
        is_intact = same_head and same_tail
    if not is_intact:
        raise ContractError(
            "a prompt in which the engine replaced one placeholder by the video's tokens and nothing else",
            f"{len(places)} placeholders in {len(ids)} ids, {count} visual tokens in {len(expanded)} back",
            "Send ids with exactly one unexpanded video placeholder.",
        )
    if request.visual_tokens not in (None, count):
        raise ContractError(
            f"{request.visual_tokens} visual tokens",
            f"{count} from the engine",
            "Use the same processor and frames in all roles.",
        )
    return count
