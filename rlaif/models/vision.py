"""What a frozen vision tower and projector make of a video, computed once and shared by every role that has the same ones."""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from rlaif.errors import ContractError
from rlaif.models.encode import VideoFeatures
from rlaif.models.family import family_of

FIELDS = ("pooler_output", "deepstack_features")
"""Of a tower's output, what the language model reads."""

Vision = dict[str, ModelOutput]
"""Precomputed towers' outputs as transformers' models take them (`mm_encoder_outputs`)."""

Key = tuple[str, str]
"""(`tower_key`, FrameSpec hash)."""


@dataclass(frozen=True)
class Features:
    """What one tower and projector make of one video, and whose they are."""

    tower: str
    """`tower_key` of the weights that computed them."""
    spec: str
    """Hash of the FrameSpec they were computed from."""
    kind: str
    """`video` or `image`: whichever input the family's model takes videos by."""
    output: ModelOutput

    @property
    def dtype(self) -> str:
        """Name of the torch dtype, e.g. `bfloat16`."""
        return str(_tensors(self.output)[0].dtype).removeprefix("torch.")

    @property
    def shape(self) -> tuple[int, int]:
        """(visual tokens, width of the language model)."""
        parts = _tensors(self.output["pooler_output"])
        width = parts[0].shape[-1]
        return sum(part.numel() for part in parts) // width, width

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in _tensors(self.output))

    def to(self, device: torch.device | str) -> Features:
        return replace(self, output=mapped(self.output, lambda tensor: tensor.to(device)))


class Shared(Protocol):
    """Where processes find each other's features (actors/features.py)."""

    def get(self, key: Key, compute: Callable[[], Features]) -> Features: ...

    def seen(self, keys: Sequence[Key]) -> None: ...


@dataclass
class VisionCache:
    """Towers' outputs by (weights of tower and projector, FrameSpec), within a byte budget, least recently used first out."""

    budget: int
    shared: Shared | None = None
    """Asked before anything is computed; told of every video that a tower sees."""
    passes: int = 0
    """Videos that went through a tower of this process."""
    keys: set[Key] = field(default_factory=set)
    """Distinct (weights, FrameSpec hash) that were asked for."""
    _held: OrderedDict[Key, Features] = field(default_factory=OrderedDict)
    _bytes: int = 0

    def of(
        self, model: nn.Module, weights: str, videos: Sequence[VideoFeatures], device: torch.device
    ) -> Vision | None:
        """The outputs for the videos of one batch, in order; None for a batch without videos.

        model: a causal video model on `device` whose tower and projector never change; weights: their `tower_key`.
        Raises ContractError where the features that others share are not this model's.
        """
        if not videos:
            return None
        found = [self.one(model, weights, video, device).to(device) for video in videos]
        return {found[0].kind: joined([features.output for features in found])}

    def seen(self, weights: str, videos: Sequence[VideoFeatures]) -> None:
        """Count videos that go through a tower that trains, so that nothing of it can be kept."""
        keys = [(weights, video.spec.hash) for video in videos]
        self.passes += len(keys)
        self.keys.update(keys)
        if self.shared is not None:
            self.shared.seen(keys)

    def one(
        self,
        model: nn.Module,
        weights: str,
        video: VideoFeatures,
        device: torch.device,
        keep_on: torch.device | None = None,
    ) -> Features:
        """Return one video's features, computed on `device`, the model's own, and kept on `keep_on` (None: `device`).

        The two differ if the features go elsewhere next: an engine takes them from the CPU. See `of` for the rest.
        """
        key = (weights, video.spec.hash)
        self.keys.add(key)
        if key not in self._held:
            compute = partial(self._compute, model, weights, video, device)
            features = compute() if self.shared is None else self.shared.get(key, compute)
            check_features(features, model, weights, video)
            self._held[key] = features.to(device if keep_on is None else keep_on)
            self._bytes += features.nbytes
            while self._bytes > self.budget and len(self._held) > 1:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
        self._held.move_to_end(key)
        return self._held[key]

    def _compute(self, model: nn.Module, weights: str, video: VideoFeatures, device: torch.device) -> Features:
        self.passes += 1
        return tower_output(model, weights, video, device)


def check_features(found: Features, model: nn.Module, weights: str, video: VideoFeatures) -> None:
    """Features are this model's own for this video. Raises ContractError naming what both sides have."""
    width = model.config.get_text_config().hidden_size
    dtype = str(model.dtype).removeprefix("torch.")
    wanted = _facts(weights, video.spec.hash, dtype, (video.visual_tokens, width))
    has = _facts(found.tower, found.spec, found.dtype, found.shape)
    if wanted != has:
        apart = [name for name in wanted if wanted[name] != has[name]]
        tell = lambda side: ", ".join(f"{name} {side[name]}" for name in apart)  # noqa: E731
        raise ContractError(
            f"visual features of this role's own model and video: {tell(wanted)}",
            tell(has),
            "start all roles from one model directory and one processor; rollout.vision: engine shares nothing with vLLM",
        )


def _facts(tower: str, spec: str, dtype: str, shape: tuple[int, int]) -> dict[str, object]:
    return {"tower": tower, "FrameSpec": spec, "dtype": dtype, "(visual tokens, width)": shape}


@torch.no_grad()
def tower_output(model: nn.Module, weights: str, video: VideoFeatures, device: torch.device) -> Features:
    """Tower and projector of a causal video model on `device`, applied to one video; weights: their `tower_key`."""
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
    kept = type(output)(**{name: output[name] for name in FIELDS if output.get(name) is not None})
    return Features(weights, video.spec.hash, kind, kept)


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


def mapped(output: ModelOutput, leaf: Callable) -> ModelOutput:
    """The output with `leaf` of every tensor (or array) in it."""
    return type(output)(**{name: _mapped(output[name], leaf) for name in FIELDS if name in output})


def _mapped(part, leaf: Callable):
    return type(part)(_mapped(inner, leaf) for inner in part) if isinstance(part, (tuple, list)) else leaf(part)


def _tensors(part: ModelOutput | Tensor | Sequence) -> list[Tensor]:
    if isinstance(part, ModelOutput):
        part = [part[name] for name in FIELDS if name in part]
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
