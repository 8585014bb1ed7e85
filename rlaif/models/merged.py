"""Whole models out of adapters, for engines that serve a model as it stands."""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from pathlib import Path

import torch
import transformers

from rlaif.io.storage import cache_folder, fetch, once
from rlaif.models.adapter import base_of, is_adapter, merged_model
from rlaif.models.check import fingerprint
from rlaif.video.recipe import RECIPE


def whole_model(path: str, dtype: str) -> str:
    """A path that libraries can open as a model: `path` as `fetch` gives it, or a merged copy where it holds an adapter.

    The copy is made once per node, by whoever asks first; the others wait. dtype: what the model will compute in.
    """
    if not is_adapter(path):
        return fetch(path)
    return str(once(copy_of(path, dtype), partial(write_merged, path, dtype=dtype)))


def copy_of(path: str, dtype: str) -> Path:
    """Where this node keeps the merged copy of an adapter; another adapter, base or precision has another one."""
    told = f"{fingerprint(path)} {merge_dtype(base_of(path), dtype)}"
    return cache_folder() / "merged" / hashlib.sha256(told.encode()).hexdigest()[:16]


def write_merged(path: str, folder: str | Path, dtype: str = "bfloat16") -> None:
    """Write the base of the adapter at `path`, with the adapter added to its weights, as a Hugging Face model directory:
    safetensors, the base's processor and chat template, and the adapter's frame recipe if it has one."""
    base = base_of(path)
    merged_model(base, path, merge_dtype(base, dtype)).save_pretrained(folder)
    transformers.AutoProcessor.from_pretrained(fetch(base)).save_pretrained(folder)
    if (recipe := Path(fetch(path)) / RECIPE).is_file():
        shutil.copy(recipe, folder)


def merge_dtype(base: str, dtype: str) -> str:
    """What holds both the base's weights as they are and what the model will compute in: `float32` for two that differ."""
    config = transformers.AutoConfig.from_pretrained(fetch(base))
    own = config.dtype or config.get_text_config().dtype or torch.float32
    return str(torch.promote_types(own, getattr(torch, dtype))).removeprefix("torch.")
