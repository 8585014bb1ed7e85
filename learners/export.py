"""Exports that plain transformers, PEFT and vLLM load."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from learners.learner import Learner
from learners.roles import Role
from learners.state import head_weights, named_weights
from rlaif.models.adapter import merged_model
from rlaif.models.model_dir import SETTINGS, ModelDir
from rlaif.models.vlm import ADAPTER
from rlaif.video.recipe import RECIPE, recipe_text


def export_role(learner: Learner, name: str, folder: Path | None, merge: bool) -> None:
    """Write a role as a Hugging Face model directory, or its adapter as a PEFT directory. Collective; the rank that is
    given a folder (one of them) writes.

    merge: fold the adapter into its base, so that the result stands alone (it can then be another run's base).
    """
    role = learner.roles[name]
    writes = folder is not None
    tensors = {key: tensor.cpu().clone() for key, tensor in named_weights(role) if writes}
    head = {key: tensor.float().cpu().clone() for key, tensor in head_weights(role) if writes}
    if not writes:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if role.adapter is None:
        tied = role.module.causal.config.tie_word_embeddings
        role.module.causal.save_pretrained(
            folder, state_dict={k: v for k, v in tensors.items() if not (tied and k == "lm_head.weight")}
        )
    else:
        _write_adapter(role, tensors, folder)
        if merge:
            _merge(role, folder, learner.spec.model.dtype)
    learner.encoder(name).processor.save_pretrained(folder)
    (folder / RECIPE).write_text(recipe_text(learner.spec.video))
    if head:
        save_file(head, folder / "head.safetensors")


def adapter_config(role: Role) -> dict:
    """`adapter_config.json` of a role's adapter, as PEFT and the rollout engine read it."""
    config = role.module.model.peft_config[role.adapter].to_dict()
    config = {
        key: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for key, value in config.items()
    }
    base = role.spec.base
    named = str(Path(base).resolve()) if Path(base).is_dir() else base  # others may read it from another folder
    return config | {"base_model_name_or_path": named, "inference_mode": True}


def _write_adapter(role: Role, tensors: dict, folder: Path) -> None:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / ADAPTER)
    (folder / SETTINGS).write_text(json.dumps(adapter_config(role), indent=2))


def _merge(role: Role, folder: Path, dtype: str) -> None:
    """Replace a written adapter by its base with the adapter folded in."""
    merged = merged_model(ModelDir(role.spec.base), ModelDir(str(folder)), dtype)
    for file in (ADAPTER, SETTINGS):
        (folder / file).unlink()
    merged.save_pretrained(folder)
