"""The learner's half of the parity gate: log-probs of fixed responses, as computed, or as one known mistake would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from learners.learner import Learner
from rlaif.io.storage import fetch
from rlaif.models.encode import Encoded, Encoder
from rlaif.models.rival_positions import POSITION_RULES
from rlaif.records import Probe, Probed
from rlaif.video.spec import frames_digest

STALE_HEAD = "stale head"
"""Hypothesis: the output head of the model directory, under the newest weights of everything else."""


def hypotheses() -> tuple[str, ...]:
    """Mistakes that `probe` can imitate: a side that makes one computes these log-probs."""
    return (STALE_HEAD, *POSITION_RULES)


def probe(learner: Learner, role: str, probes: Sequence[Probe], hypothesis: str | None = None) -> list[Probed]:
    """Log-probs of every probe's response by a role's newest weights. Collective: every rank is given the same probes."""
    encoder = learner.encoder(role)
    rule = POSITION_RULES.get(hypothesis)
    items = [_encoded(encoder, one, rule) for one in probes]
    with _base_head(learner, role) if hypothesis == STALE_HEAD else nullcontext():
        # from pixels: features that engine and learner share would be wrong on both sides alike
        found = [learner.infer(role, [item], "logprobs", pixels=True)[0] for item in items]
    return [Probed(logprobs, _digest(encoder, one)) for logprobs, one in zip(found, probes, strict=True)]


def _encoded(encoder: Encoder, one: Probe, rule: Callable | None) -> Encoded:
    features = encoder.video(one.video) if one.video else None
    item = encoder.prompt_and_response(one.question, one.response_ids, features)
    if rule is None or item.positions.ndim == 1:  # rules of three axes say nothing about a model with one
        return item
    return replace(item, positions=rule(item.ids, features.tensors if features else {}, encoder.config))


def _digest(encoder: Encoder, one: Probe) -> str | None:
    return frames_digest(encoder.frames.get(one.video, encoder.frames.spec(one.video))) if one.video else None


@contextmanager
def _base_head(learner: Learner, role: str) -> Iterator[None]:
    """Logits by the head that the model directory holds."""
    target = learner.roles[role]
    like = target.module.causal
    head = base_head(fetch(target.spec.base))
    target.module.head_override = None if head is None else head.to(learner.device, like.dtype)
    try:
        yield
    finally:
        target.module.head_override = None


def base_head(folder: str | Path) -> Tensor | None:
    """[V, H]: the output head in a model directory, the embeddings where the two are tied; None without safetensors."""
    found: dict[str, Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                if name.endswith(("lm_head.weight", "embed_tokens.weight")):
                    found[name.rsplit(".", 2)[-2]] = tensors.get_tensor(name)
    return found.get("lm_head", found.get("embed_tokens"))
