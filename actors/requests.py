"""What goes into the sampling engine and what comes out, in vLLM's terms and in ours."""

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
    """Ids with one unexpanded placeholder where the video goes."""
    seeds: tuple[int, ...] = (0,)
    """One seed per answer."""
    frames: np.ndarray | None = None
    """[T, H, W, 3] uint8, or None for a text prompt."""
    metadata: dict = field(default_factory=dict)
    """`FrameSpec.metadata()`."""
    features: dict | None = None
    """Instead of frames: what tower and projector make of them, as vLLM takes it (`Family.engine_video`)."""
    frames_hash: str | None = None
    """Identifies frames and metadata in the engine's caches; None: the engine hashes the frames itself."""
    visual_tokens: int | None = None
    """Visual tokens that the prompt must expand to, where the caller knows."""


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
    """Why a prompt of `length` positions, visual tokens included, is not answered: cutting it could cut the video."""
    if limit is None or length <= limit:
        return None
    return f"{length} prompt positions, over data.max_prompt_tokens ({limit})"


@dataclass(frozen=True)
class Sent:
    """What is remembered of a request while it is answered; the frames may be freed meanwhile."""

    prompt_ids: np.ndarray
    video: bool
    visual_tokens: int | None

    @classmethod
    def of(cls, request: Request) -> Sent:
        ids = np.asarray(request.prompt_ids, dtype=np.int32)
        return cls(ids, request.frames is not None or request.features is not None, request.visual_tokens)


def vllm_prompt(request: Request, response: Sequence[int] = ()) -> dict[str, Any]:
    """A request, and optionally the beginning of a response to it, as vLLM takes them."""
    prompt: dict[str, Any] = {"prompt_token_ids": [int(token) for token in (*request.prompt_ids, *response)]}
    if request.frames is not None:
        prompt["multi_modal_data"] = {"video": (request.frames, request.metadata | {"do_sample_frames": False})}
        prompt["mm_processor_kwargs"] = {"do_sample_frames": False}
    elif request.features is not None:
        prompt["multi_modal_data"] = {"video": request.features}
    if "multi_modal_data" in prompt and request.frames_hash is not None:
        prompt["multi_modal_uuids"] = {"video": [request.frames_hash]}
    return prompt


@dataclass(frozen=True)
class Visual:
    """Ids of a family's video in a prompt; the same id in most families."""

    placeholder: int
    """What is replaced in an unexpanded prompt, and what the engine reports at a visual position."""
    token: int
    """What the model's own processor, and so the learner, has at a visual position."""

    @classmethod
    def of(cls, config: Any, tokenizer: Any) -> Visual:
        """From the engine's Hugging Face configuration and tokenizer."""
        return cls(token_id(tokenizer, family_of(config).placeholder), visual_token_id(config))


def completion(sent: Sent, output: Any, visual: Visual) -> Completion:
    """A finished vLLM output, after checking what the engine made of the prompt. Raises ContractError."""
    answer = output.outputs[0]
    prompt_ids = np.asarray(output.prompt_token_ids, dtype=np.int32)
    tokens = list(answer.token_ids)
    logprobs = [entry[token].logprob for entry, token in zip(answer.logprobs, tokens, strict=True)]
    visual_tokens = check_expansion(sent, prompt_ids, visual)
    return Completion(
        prompt_ids=np.where(prompt_ids == visual.placeholder, np.int32(visual.token), prompt_ids),
        response_ids=np.asarray(tokens, dtype=np.int32),
        logprobs=np.asarray(logprobs, dtype=np.float32),
        text=answer.text.strip(),
        finish_reason=answer.finish_reason,
        visual_tokens=visual_tokens,
    )


def check_expansion(sent: Sent, expanded: np.ndarray, visual: Visual) -> int:
    """Visual tokens in an expanded prompt [P], after checking that nothing but the placeholder was replaced.

    Ids that are expanded already would be expanded again, silently, by several families; hence the check on what
    comes back.

    Raises:
        ContractError: the text around the placeholder changed, or the count is not the one the caller knows.
    """
    count = int((expanded == visual.placeholder).sum())
    places = np.flatnonzero(np.isin(sent.prompt_ids, (visual.placeholder, visual.token)))
    if not sent.video:
        intact = np.array_equal(sent.prompt_ids, expanded)
    elif len(places) != 1 or count == 0:
        intact = False
    else:
        head, tail = np.split(sent.prompt_ids, [places[0]])
        intact = np.array_equal(head, expanded[: len(head)]) and np.array_equal(
            tail[1:], expanded[len(expanded) - len(tail) + 1 :]
        )
    if not intact:
        raise ContractError(
            "a prompt in which the engine replaced one placeholder by the video's tokens and nothing else",
            f"{len(places)} placeholders in {len(sent.prompt_ids)} ids, {count} visual tokens in {len(expanded)} back",
            "send ids with exactly one unexpanded video placeholder",
        )
    if sent.visual_tokens not in (None, count):
        raise ContractError(
            f"{sent.visual_tokens} visual tokens",
            f"{count} from the engine",
            "use the same processor and frames in all roles",
        )
    return count
