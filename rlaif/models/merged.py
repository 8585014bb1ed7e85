"""Whole models out of adapters, for engines that serve a model as it stands."""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from pathlib import Path

import torch
import transformers

from rlaif.io.storage import cache_folder, once
from rlaif.models.adapter import merged_model
from rlaif.models.model_dir import ModelDir
from rlaif.video.recipe import RECIPE


def whole_model(model: ModelDir, dtype: str) -> str:
    """Return a path that libraries can open as a model: the model's own, or a merged copy if it is an adapter.

    The copy is made once per node, by the first process that asks; the others wait. dtype: what the model will compute in.
    """
    if not model.is_adapter:
        return model.location
    # by fingerprint and precision: a moved copy of the same adapter finds the merged model, a changed one does not
    write = partial(_write_merged, model, dtype)
    return str(once(merged_copy_path(model, dtype), write))


def merged_copy_path(model: ModelDir, dtype: str) -> Path:
    """Return the folder in which this node keeps the merged copy of an adapter.

    Another adapter, base or precision has another one.
    """
    key = f"{model.fingerprint} {merge_dtype(model, dtype)}"
    return cache_folder() / "merged" / hashlib.sha256(key.encode()).hexdigest()[:16]


def write_merged(path: str, folder: str | Path, dtype: str = "bfloat16") -> None:
    """Write the base of the adapter at `path`, with the adapter added to its weights, as a Hugging Face model directory.

    The result has safetensors, the base's processor and chat template, and the adapter's frame recipe if it has one.
    """
    _write_merged(ModelDir(path), dtype, folder)


def _write_merged(model: ModelDir, dtype: str, folder: str | Path) -> None:
    base = model.base
    merged_model(base, model, merge_dtype(model, dtype)).save_pretrained(folder)
    transformers.AutoProcessor.from_pretrained(base.location).save_pretrained(folder)
    recipe = model.folder / RECIPE
    if recipe.is_file():
        shutil.copy(recipe, folder)


def merge_dtype(model: ModelDir, dtype: str) -> str:
    """Return the dtype that holds both the base's weights as they are and what the model will compute in.

    It is `float32` for two 16-bit types that differ.
    """
    # older configurations name no dtype, or only that of the language model
    own = model.config.dtype or model.config.get_text_config().dtype or torch.float32
    common = torch.promote_types(own, getattr(torch, dtype))
    return str(common).removeprefix("torch.")
