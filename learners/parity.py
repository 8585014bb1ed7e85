"""The learner's half of the parity gate: log-probs of fixed responses, as computed, or as one known mistake would."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
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
    """Return the mistakes that `probe_role` can imitate: an engine that makes one computes the same log-probs."""
    return (STALE_HEAD, *POSITION_RULES)


def probe_role(learner: Learner, role: str, probes: Sequence[Probe], hypothesis: str | None = None) -> list[Probed]:
    """Return the log-probs of every probe's response by a role's newest weights.

    Collective: every rank is called with the same probes.
    """
    encoder = learner.encoder(role)
    rule = POSITION_RULES.get(hypothesis)
    # all are encoded before the first forward, which is collective: a rank that cannot read a video fails before it
    items = [_encode_probe(encoder, probe, rule) for probe in probes]
    with _base_head(learner, role) if hypothesis == STALE_HEAD else nullcontext():
        # from pixels: features that engine and learner share would be wrong on both sides alike
        logprobs: list[np.ndarray] = []
        for item in items:
            # one by one, as the engine computes them
            logprobs += learner.infer(role, [item], "logprobs", pixels=True)
    digests = [_digest(encoder, probe) for probe in probes]
    return list(map(Probed, logprobs, digests))


def _encode_probe(encoder: Encoder, probe: Probe, rule: Callable | None) -> Encoded:
    """Encode a probe, with the positions of `rule` if there is one."""
    features = encoder.video(probe.video) if probe.video else None
    item = encoder.prompt_and_response(probe.question, probe.response_ids, features)
    # a rule of three axes does not apply to a model with one
    if rule is None or item.positions.ndim == 1:
        return item
    tensors = features.tensors if features else {}
    return replace(item, positions=rule(item.ids, tensors, encoder.config))


def _digest(encoder: Encoder, probe: Probe) -> str | None:
    """Return the digest of the frames that the learner sees; None for a text probe."""
    if not probe.video:
        return None
    spec = encoder.frames.spec(probe.video)
    return frames_digest(encoder.frames.get(probe.video, spec))


@contextmanager
def _base_head(learner: Learner, role: str) -> Iterator[None]:
    """Compute logits by the head in the model directory, inside the `with` block."""
    target = learner.roles[role]
    head = base_head(fetch(target.spec.base))
    if head is not None:
        head = head.to(learner.device, target.module.causal.dtype)
    target.module.head_override = head
    try:
        yield
    finally:
        target.module.head_override = None


def base_head(folder: str | Path) -> Tensor | None:
    """Return [V, H], the output head in a model directory: the embeddings if the two are tied; None without safetensors."""
    candidates: dict[str, Tensor] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            names = tensors.keys()
            for name in names:
                if name.endswith(("lm_head.weight", "embed_tokens.weight")):
                    layer = name.rsplit(".", 2)[-2]
                    candidates[layer] = tensors.get_tensor(name)
    return candidates.get("lm_head", candidates.get("embed_tokens"))
