"""Exports that plain transformers, PEFT and vLLM load."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from learners.learner import Learner
from learners.roles import Role
from learners.state import head_weights, named_weights
from rlaif.models.adapter import merged_model
from rlaif.models.model_dir import SETTINGS, ModelDir
from rlaif.models.vlm import ADAPTER
from rlaif.video.recipe import RECIPE, recipe_text


def export_role(learner: Learner, name: str, folder: Path | None, merge: bool) -> None:
    """Write a role as a Hugging Face model directory, or its adapter as a PEFT directory.

    Collective; the rank that is called with a folder (one of them) writes.
    merge: fold the adapter into its base, so that the result needs no other directory (it can then be another run's base).
    """
    role = learner.roles[name]
    tensors: dict[str, Tensor] = {}
    head: dict[str, Tensor] = {}
    # all ranks walk through the weights, which ZeRO-3 gathers one by one; only one keeps them, on the host
    for key, tensor in named_weights(role):
        if folder is not None:
            tensors[key] = tensor.cpu().clone()
    for key, tensor in head_weights(role):
        if folder is not None:
            head[key] = tensor.float().cpu().clone()
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if role.adapter is None:
        _write_whole_model(role, tensors, folder)
    else:
        _write_adapter(role, tensors, folder)
        if merge:
            _replace_by_merged(role, folder, learner.spec.model.dtype)
    learner.encoder(name).processor.save_pretrained(folder)
    (folder / RECIPE).write_text(recipe_text(learner.spec.video))
    if head:
        save_file(head, folder / "head.safetensors")


def adapter_config(role: Role) -> dict:
    """Return `adapter_config.json` of a role's adapter, as PEFT and the rollout engine read it."""
    config: dict = {}
    peft_config = role.module.model.peft_config[role.adapter]
    for key, value in peft_config.to_dict().items():
        # JSON has neither sets nor enums; a set is sorted, so that equal adapters give equal files
        if isinstance(value, set):
            config[key] = sorted(value)
        else:
            config[key] = getattr(value, "value", value)
    base = role.spec.base
    if Path(base).is_dir():
        # absolute: others may read the file from another working directory
        base = str(Path(base).resolve())
    config["base_model_name_or_path"] = base
    config["inference_mode"] = True
    return config


def _write_whole_model(role: Role, tensors: dict[str, Tensor], folder: Path) -> None:
    causal = role.module.causal
    if causal.config.tie_word_embeddings:
        # `named_weights` names a tied head for the engine; a model directory holds the embeddings only
        tensors = {key: tensor for key, tensor in tensors.items() if key != "lm_head.weight"}
    causal.save_pretrained(folder, state_dict=tensors)


def _write_adapter(role: Role, tensors: dict[str, Tensor], folder: Path) -> None:
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, folder / ADAPTER)
    settings = json.dumps(adapter_config(role), indent=2)
    (folder / SETTINGS).write_text(settings)


def _replace_by_merged(role: Role, folder: Path, dtype: str) -> None:
    """Replace a written adapter by its base with the adapter folded in."""
    merged = merged_model(ModelDir(role.spec.base), ModelDir(str(folder)), dtype)
    for file in (ADAPTER, SETTINGS):
        (folder / file).unlink()
    merged.save_pretrained(folder)
