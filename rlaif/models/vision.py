"""Outputs of a frozen vision tower and projector, computed once per video and shared by every role that has the same ones."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from rlaif.byte_cache import ByteCache
from rlaif.errors import ContractError
from rlaif.models.family import family_of
from rlaif.models.video_features import VideoFeatures

FIELDS = ("pooler_output", "deepstack_features")
"""Fields of a tower's output that the language model reads."""

Vision = dict[str, ModelOutput]
"""Precomputed outputs of towers as transformers' models take them (`mm_encoder_outputs`)."""

FeatureKey = tuple[str, str]
"""(`tower_key`, FrameSpec hash)."""


@dataclass(frozen=True)
class Features:
    """The output of one tower and projector for one video, and whose it is."""

    tower: str
    """`tower_key` of the weights that computed it."""
    spec: str
    """Hash of the FrameSpec it was computed from."""
    kind: str
    """`video` or `image`: the input that the family's model takes videos by."""
    output: ModelOutput

    @property
    def dtype(self) -> str:
        """Return the name of the torch dtype, e.g. `bfloat16`."""
        return str(_tensors(self.output)[0].dtype).removeprefix("torch.")

    @property
    def shape(self) -> tuple[int, int]:
        """Return (visual tokens, width of the language model)."""
        parts = _tensors(self.output["pooler_output"])
        width = parts[0].shape[-1]
        return sum(part.numel() for part in parts) // width, width

    @property
    def nbytes(self) -> int:
        """Return the size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in _tensors(self.output))

    def to(self, device: torch.device | str) -> Features:
        """Return the same features on a device."""
        return replace(self, output=map_tensors(self.output, lambda tensor: tensor.to(device)))


class SharedFeatures(Protocol):
    """A place in which processes find each other's features (actors/features.py)."""

    def get(self, key: FeatureKey, compute: Callable[[], Features]) -> Features: ...

    def seen(self, keys: Sequence[FeatureKey]) -> None: ...


class VisionCache:
    """Outputs of towers by (weights of tower and projector, FrameSpec), within a budget of bytes."""

    def __init__(self, budget: int, shared: SharedFeatures | None = None):
        """Start empty.

        shared: asked before anything is computed; it also counts every video that goes through a tower.
        """
        self.shared = shared
        self.passes = 0
        """Videos that went through a tower of this process."""
        self.keys: set[FeatureKey] = set()
        """Distinct keys that were requested."""
        self.features: ByteCache[FeatureKey, Features] = ByteCache(budget)

    def for_batch(
        self, model: nn.Module, weights: str, videos: Sequence[VideoFeatures], device: torch.device
    ) -> Vision | None:
        """Return the outputs for the videos of one batch, in order; None for a batch without videos.

        model: a causal video model on `device` whose tower and projector never change; weights: their `tower_key`.
        Raises ContractError if the features that others share are not this model's.
        """
        if not videos:
            return None
        outputs = []
        for video in videos:
            features = self.for_video(model, weights, video, device).to(device)
            outputs.append(features.output)
        return {features.kind: join_outputs(outputs)}

    def seen(self, weights: str, videos: Sequence[VideoFeatures]) -> None:
        """Count videos that go through a tower that trains, so that none of its outputs can be stored."""
        keys = [(weights, video.spec.hash) for video in videos]
        self.passes += len(keys)
        self.keys.update(keys)
        if self.shared is not None:
            self.shared.seen(keys)

    def for_video(
        self,
        model: nn.Module,
        weights: str,
        video: VideoFeatures,
        device: torch.device,
        keep_on: torch.device | None = None,
    ) -> Features:
        """Return one video's features, computed on `device`, the model's own, and kept on `keep_on` (None: `device`).

        The two differ if the features go elsewhere next: an engine takes them from the CPU. See `for_batch` for the rest.
        """
        key = (weights, video.spec.hash)
        self.keys.add(key)
        features = self.features.get(key)
        if features is None:
            # what another process computed is checked like our own: a wrong key would give rewards for another video
            compute = partial(self._compute, model, weights, video, device)
            features = compute() if self.shared is None else self.shared.get(key, compute)
            check_features(features, model, weights, video)
            features = features.to(device if keep_on is None else keep_on)
            self.features.put(key, features, features.nbytes)
        return features

    def _compute(self, model: nn.Module, weights: str, video: VideoFeatures, device: torch.device) -> Features:
        self.passes += 1
        return tower_output(model, weights, video, device)


def check_features(features: Features, model: nn.Module, weights: str, video: VideoFeatures) -> None:
    """Raise ContractError, naming what both sides have, unless features are this model's own for this video."""
    width = model.config.get_text_config().hidden_size
    dtype = str(model.dtype).removeprefix("torch.")
    expected = _facts(weights, video.spec.hash, dtype, (video.visual_tokens, width))
    actual = _facts(features.tower, features.spec, features.dtype, features.shape)
    different = [name for name in expected if expected[name] != actual[name]]
    if different:
        raise ContractError(
            f"visual features of this role's own model and video: {_listed(expected, different)}",
            _listed(actual, different),
            "Start all roles from one model directory and one processor, or set rollout.vision=engine, which shares nothing with vLLM.",
        )


def _facts(tower: str, spec: str, dtype: str, shape: tuple[int, int]) -> dict[str, object]:
    return {"tower": tower, "FrameSpec": spec, "dtype": dtype, "(visual tokens, width)": shape}


def _listed(facts: dict[str, object], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {facts[name]}" for name in names)


@torch.no_grad()
def tower_output(model: nn.Module, weights: str, video: VideoFeatures, device: torch.device) -> Features:
    """Apply tower and projector of a causal video model on `device` to one video; weights: their `tower_key`."""
    kind = "image" if "pixel_values" in video.tensors else "video"
    # the families' functions differ in what they take beside pixels (grids, times), so the signature decides
    compute = getattr(model.model, f"get_{kind}_features")
    accepted = inspect.signature(compute).parameters
    tensors = {}
    for name, array in video.tensors.items():
        if name in accepted:
            # grids and times stay as they are; only pixels are in the model's dtype
            dtype = model.dtype if name.startswith("pixel") else None
            tensors[name] = torch.from_numpy(array).to(device, dtype)
    # a policy in training has its tower in training mode too, though nothing of it trains
    tower = attrgetter(family_of(model.config).vision)(model)
    tower.eval()
    output = compute(**tensors, return_dict=True)
    fields = {name: output[name] for name in FIELDS if output.get(name) is not None}
    return Features(weights, video.spec.hash, kind, type(output)(**fields))


def join_outputs(outputs: Sequence[ModelOutput]) -> ModelOutput:
    """Return outputs for one video each as the output for all of them."""
    first = outputs[0]
    fields = {}
    for name in FIELDS:
        if name in first:
            fields[name] = _join_parts([output[name] for output in outputs])
    return type(first)(**fields)


def _join_parts(parts: Sequence[Tensor | Sequence]) -> Tensor | Sequence:
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))
    if isinstance(parts[0], tuple):  # one tensor per video
        return sum(parts, ())
    return [_join_parts(layer) for layer in zip(*parts, strict=True)]  # a list: one entry per layer


def map_tensors(output: ModelOutput, leaf: Callable) -> ModelOutput:
    """Apply `leaf` to every tensor (or array) of the output."""
    fields = {name: _map_part(output[name], leaf) for name in FIELDS if name in output}
    return type(output)(**fields)


def _map_part(part, leaf: Callable):
    if isinstance(part, (tuple, list)):
        return type(part)(_map_part(inner, leaf) for inner in part)
    return leaf(part)


def _tensors(part: ModelOutput | Tensor | Sequence) -> list[Tensor]:
    if isinstance(part, Tensor):
        return [part]
    if isinstance(part, ModelOutput):
        part = [part[name] for name in FIELDS if name in part]
    tensors = []
    for inner in part:
        tensors += _tensors(inner)
    return tensors


def tower_key(model: nn.Module) -> str:
    """Return a digest of everything in a causal video model outside its language model and output head.

    Models that share it turn the same frames into the same features, in the same dtype.
    """
    language = family_of(model.config).language + "."
    # adapters are left out: they are on the language model, whatever PEFT calls their parameters
    digest = hashlib.sha256(str(model.dtype).encode())
    for name, parameter in sorted(model.named_parameters()):
        if not name.startswith((language, "lm_head.")) and "lora_" not in name:
            # numpy has no bfloat16: hash the bytes
            bits = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(name.encode() + bits.numpy().tobytes())
    return digest.hexdigest()[:16]
