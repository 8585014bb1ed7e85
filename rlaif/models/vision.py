"""What a frozen vision tower and projector make of a video, computed once and shared by every role that has the same ones."""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from rlaif.models.encode import VideoFeatures
from rlaif.models.family import family_of

FIELDS = ("pooler_output", "deepstack_features")
"""Of a tower's output, what the language model reads."""

Vision = dict[str, ModelOutput]
"""Precomputed towers' outputs as transformers' models take them (`mm_encoder_outputs`)."""


@dataclass
class VisionCache:
    """Towers' outputs by (weights of tower and projector, FrameSpec), within a byte budget, least recently used first out."""

    budget: int
    passes: int = 0
    """Videos that went through a tower."""
    keys: set[tuple[str, str]] = field(default_factory=set)
    """Distinct (weights, FrameSpec hash) that were asked for."""
    _held: OrderedDict[tuple[str, str], tuple[str, ModelOutput]] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def of(
        self, model: nn.Module, weights: str, videos: Sequence[VideoFeatures], device: torch.device
    ) -> Vision | None:
        """The outputs for the videos of one batch, in order; None for a batch without videos.

        model: a causal video model on `device` whose tower and projector never change; weights: their `tower_key`.
        """
        if not videos:
            return None
        found = [self._one(model, weights, video, device) for video in videos]
        return {found[0][0]: joined([output for _, output in found])}

    def seen(self, weights: str, videos: Sequence[VideoFeatures]) -> None:
        """Count videos that go through a tower that trains, so that nothing of it can be kept."""
        self.passes += len(videos)
        self.keys.update((weights, video.spec.hash) for video in videos)

    def _one(
        self, model: nn.Module, weights: str, video: VideoFeatures, device: torch.device
    ) -> tuple[str, ModelOutput]:
        key = (weights, video.spec.hash)
        if key not in self._held:
            self.seen(weights, [video])
            self._held[key] = made = tower_output(model, video, device)
            self._bytes += nbytes(made[1])
            while self._bytes > self.budget and len(self._held) > 1:
                self._bytes -= nbytes(self._held.popitem(last=False)[1][1])
        self._held.move_to_end(key)
        return self._held[key]


@torch.no_grad()
def tower_output(model: nn.Module, video: VideoFeatures, device: torch.device) -> tuple[str, ModelOutput]:
    """(`video` or `image`, whichever input the family's model takes videos by; tower's and projector's output)."""
    kind = "image" if "pixel_values" in video.tensors else "video"
    compute = getattr(model.model, f"get_{kind}_features")
    accepted = inspect.signature(compute).parameters
    tensors = {
        name: torch.from_numpy(array).to(device, model.dtype if name.startswith("pixel") else None)
        for name, array in video.tensors.items()
        if name in accepted
    }
    attrgetter(family_of(model.config).vision)(model).eval()
    output = compute(**tensors, return_dict=True)
    return kind, type(output)(**{name: output[name] for name in FIELDS if output.get(name) is not None})


def joined(outputs: Sequence[ModelOutput]) -> ModelOutput:
    """Outputs for one video each as the output for all of them."""
    first = outputs[0]
    return type(first)(**{name: _joined([output[name] for output in outputs]) for name in FIELDS if name in first})


def _joined(parts: Sequence[Tensor | Sequence]) -> Tensor | Sequence:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    if isinstance(parts[0], tuple):  # one tensor per video
        return sum(parts, ())
    return [_joined(layer) for layer in zip(*parts, strict=True)]  # a list: one entry per layer


def nbytes(output: ModelOutput) -> int:
    return sum(tensor.nbytes for name in FIELDS if name in output for tensor in _tensors(output[name]))


def _tensors(part: Tensor | Sequence) -> list[Tensor]:
    return [part] if isinstance(part, Tensor) else [tensor for inner in part for tensor in _tensors(inner)]


def tower_key(model: nn.Module) -> str:
    """Digest of everything in a causal video model outside its language model and output head.

    Models that share it turn the same frames into the same features, in the same dtype.
    """
    family, digest = family_of(model.config), hashlib.sha256(str(model.dtype).encode())
    for name, parameter in sorted(model.named_parameters()):
        if not name.startswith((family.language + ".", "lm_head.")) and "lora_" not in name:
            bits = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(name.encode() + bits.numpy().tobytes())
    return digest.hexdigest()[:16]
