"""What a published version must hold for one engine, asked of its manifest before any byte of it is used."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
import transformers

from cluster.publish import Manifest
from rlaif.errors import ContractError
from rlaif.models.family import family_of
from rlaif.models.vlm import target_pattern


class Contents:
    """Names, shapes and dtypes that an engine takes: those of its model directory, or of one adapter on it.

    vLLM itself finds an unknown name or another shape only half-way through a load. Without a word it casts another dtype,
    pads an adapter of a smaller rank, loads a part of a fused module (q without k and v, gate without up) wrongly, and
    keeps an old head where the embeddings that it is tied to are new.
    """

    def __init__(self, model_path: str, dtype: str, lora_rank: int | None, lora_targets: Collection[str] | None = None):
        """lora_targets: modules that the adapter must have, all of them; None: any that the model has."""
        config = transformers.AutoConfig.from_pretrained(model_path)
        with torch.device("meta"):  # names and shapes only
            model = transformers.AutoModelForImageTextToText.from_config(config)
        self.path, self.rank, family = model_path, lora_rank, family_of(config)
        self._dtypes = {dtype} if lora_rank is None else {dtype, "float32"}  # PEFT keeps adapters in float32
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        if lora_rank is None:
            self.shapes = {family.engine_name(name): shape for name, shape in shapes.items()}
            self.needed = {family.engine_name(name) for name, _ in model.named_parameters()}
            self.needed |= {"lm_head.weight"} & self.shapes.keys()  # a tied one is a tensor of its own in the engine
        else:
            modules = {n.removesuffix(".weight"): s for n, s in shapes.items() if n.endswith(".weight") and len(s) == 2}
            wanted = target_pattern(lora_targets or (r"\w+",), family.language)
            modules = {name: shape for name, shape in modules.items() if re.fullmatch(wanted, name)}
            self.shapes = dict(pair for name in modules for pair in _adapter(name, modules[name], lora_rank))
            self.needed = set(self.shapes) if lora_targets else set()

    def check(self, manifest: Manifest) -> None:
        """Raises ContractError naming the first tensor that the engine does not know, lacks, or has otherwise."""
        rank = manifest.lora.get("r") if manifest.lora else None
        if rank != self.rank:
            raise ContractError(
                f"an adapter of rank {self.rank}, which this engine was started for",
                f"one of rank {rank} (version {manifest.version})",
                "Give learners and rollout actors one configuration, with one ppo.lora.r",
            )
        if problem := self._problem({name: (info.shape, info.dtype) for name, info in manifest.tensors.items()}):
            raise ContractError(
                f"{manifest.kind} weights of version {manifest.version} with the names, shapes and dtype of {self.path}",
                problem,
                "start learners and rollout actors from the same model directory, with the same model.dtype and ppo.lora",
            )

    def _problem(self, sent: Mapping[str, tuple[tuple[int, ...], str]]) -> str | None:
        unknown, missing = sent.keys() - self.shapes.keys(), self._whole(sent) - sent.keys()
        if unknown:
            return f"tensor {min(unknown)!r}, which the engine does not know ({len(unknown)} such)"
        if missing:
            return f"no tensor {min(missing)!r} ({len(missing)} missing)"
        for name, (shape, dtype) in sent.items():
            if tuple(shape) != self.shapes[name]:
                return f"tensor {name!r} as {tuple(shape)} instead of {self.shapes[name]}"
            if dtype not in self._dtypes:
                return f"tensor {name!r} as {dtype} instead of {' or '.join(sorted(self._dtypes))}"
        return None

    def _whole(self, sent: Collection[str]) -> set[str]:
        """What must be there: where an adapter may choose its modules, both halves of each."""
        if self.rank is None or self.needed:
            return self.needed
        return {name.replace(a, b) for name in sent for a, b in (("lora_A", "lora_B"), ("lora_B", "lora_A"))}


def _adapter(module: str, shape: tuple[int, ...], rank: int) -> tuple[tuple[str, tuple[int, int]], ...]:
    """(name, shape) of the two matrices that PEFT puts beside a linear layer [out, in]."""
    out, into = shape
    names = [f"base_model.model.{module}.lora_{half}.weight" for half in "AB"]
    return (names[0], (rank, into)), (names[1], (out, rank))
