"""The check of a published version's manifest against one engine, before any byte of the version is used."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
import transformers
from torch import nn

from cluster.publish import Manifest
from rlaif.errors import ContractError
from rlaif.models.family import Family, family_of
from rlaif.models.vlm import target_pattern

Shape = tuple[int, ...]


class WeightCheck:
    """Names, shapes and dtypes that an engine takes: those of its model directory, or of one adapter on it.

    vLLM itself finds an unknown name or another shape only half-way through a load. Without a word it casts another dtype,
    pads an adapter of a smaller rank, loads a part of a fused module (q without k and v, gate without up) wrongly, and
    keeps an old head if the embeddings that it is tied to are new.
    """

    def __init__(self, model_path: str, dtype: str, lora_rank: int | None, lora_targets: Collection[str] | None = None):
        """Read what the model directory's configuration says; no weights.

        lora_targets: modules that the adapter must have, all of them; None: any that the model has.
        """
        config = transformers.AutoConfig.from_pretrained(model_path)
        with torch.device("meta"):  # names and shapes only
            model = transformers.AutoModelForImageTextToText.from_config(config)
        family = family_of(config)
        self.path, self.rank = model_path, lora_rank
        self._dtypes = {dtype} if lora_rank is None else {dtype, "float32"}  # PEFT keeps adapters in float32
        self.shapes: dict[str, Shape] = {}
        """The tensors that may be sent, by name."""
        self.needed: set[str] = set()
        """The names that must be sent; empty if an adapter may choose its modules."""
        if lora_rank is None:
            self._take_full(model, family)
        else:
            self._take_adapter(model, lora_rank, lora_targets, family)

    def _take_full(self, model: nn.Module, family: Family) -> None:
        for name, tensor in model.state_dict().items():
            self.shapes[family.engine_name(name)] = tuple(tensor.shape)
        for name, _ in model.named_parameters():
            self.needed.add(family.engine_name(name))
        # a head that is tied to the embeddings is no parameter here, but a tensor of its own in the engine: not sent, it
        # would silently stay as it was
        self.needed |= {"lm_head.weight"} & self.shapes.keys()

    def _take_adapter(self, model: nn.Module, rank: int, targets: Collection[str] | None, family: Family) -> None:
        pattern = re.compile(target_pattern(targets or (r"\w+",), family.language))
        for name, tensor in model.state_dict().items():
            module = name.removesuffix(".weight")
            if module != name and tensor.ndim == 2 and pattern.fullmatch(module):
                self.shapes |= _adapter_shapes(module, tuple(tensor.shape), rank)
        self.needed = set(self.shapes) if targets else set()

    def check(self, manifest: Manifest) -> None:
        """Raise ContractError naming the first tensor that the engine does not know, lacks, or has otherwise."""
        rank = manifest.lora.get("r") if manifest.lora else None
        if rank != self.rank:
            raise ContractError(
                f"an adapter of rank {self.rank}, which this engine was started for",
                f"one of rank {rank} (version {manifest.version})",
                "Give learners and rollout actors one configuration, with one ppo.lora.r.",
            )
        tensors = {}
        for name, info in manifest.tensors.items():
            tensors[name] = (info.shape, info.dtype)
        problem = self._problem(tensors)
        if problem:
            raise ContractError(
                f"{manifest.kind} weights of version {manifest.version} with the names, shapes and dtype of {self.path}",
                problem,
                "Start learners and rollout actors from the same model directory, with the same model.dtype and ppo.lora.",
            )

    def _problem(self, tensors: Mapping[str, tuple[Shape, str]]) -> str | None:
        unknown = tensors.keys() - self.shapes.keys()
        missing = self._required(tensors) - tensors.keys()
        if unknown:
            return f"tensor {min(unknown)!r}, which the engine does not know ({len(unknown)} such)"
        if missing:
            return f"no tensor {min(missing)!r} ({len(missing)} missing)"
        for name, (shape, dtype) in tensors.items():
            if tuple(shape) != self.shapes[name]:
                return f"tensor {name!r} as {tuple(shape)} instead of {self.shapes[name]}"
            if dtype not in self._dtypes:
                return f"tensor {name!r} as {dtype} instead of {' or '.join(sorted(self._dtypes))}"
        return None

    def _required(self, names: Collection[str]) -> set[str]:
        """Return what must be there: if an adapter may choose its modules, both matrices of each that it has."""
        if self.rank is None or self.needed:
            return self.needed
        required = set()
        for name in names:
            required.add(name.replace("lora_A", "lora_B"))
            required.add(name.replace("lora_B", "lora_A"))
        return required


def _adapter_shapes(module: str, shape: Shape, rank: int) -> dict[str, Shape]:
    """Return the shapes of the two matrices that PEFT puts beside a linear layer [out, in]."""
    outputs, inputs = shape
    prefix = f"base_model.model.{module}"
    return {f"{prefix}.lora_A.weight": (rank, inputs), f"{prefix}.lora_B.weight": (outputs, rank)}
