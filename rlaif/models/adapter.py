"""PEFT's LoRA folders (`adapter_config.json`, `adapter_model.safetensors`): what they say, and their sum with the base."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import Linear
from safetensors import safe_open
from torch import nn

from rlaif.errors import CheckpointError, ConfigError
from rlaif.io.storage import fetch
from rlaif.io.tensors import load_tensors
from rlaif.models.bases import find_base
from rlaif.models.family import family_of
from rlaif.models.vlm import ADAPTER, load_vlm

log = logging.getLogger(__name__)

SETTINGS = "adapter_config.json"
NAME = "default"
"""What an adapter is called inside PEFT while it is merged."""
BESIDE_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Ways to start an adapter that leave the base as it is. PEFT's others change it, and some of what they leave on disk needs
the changed one."""
NOT_PLAIN = (
    *("use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters"),
    *("trainable_token_indices", "use_qalora", "use_bdlora"),
)
"""Settings beyond two matrices of one rank and scale beside each layer."""
KEPT = 0.9
"""A merge that keeps less than this share of an adapter's change is warned of."""


def is_adapter(path: str) -> bool:
    """Whether a folder or URI holds an adapter, not a whole model. A hub name counts as a model's."""
    return (Path(fetch(path)) / SETTINGS).is_file()


def settings_of(path: str) -> dict[str, Any]:
    """What PEFT saved about an adapter. Raises ValueError for a file that is not a JSON object."""
    found = json.loads((Path(fetch(path)) / SETTINGS).read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{SETTINGS}: no JSON object")
    return found


def base_of(path: str) -> str:
    """Return the model whose architecture, tokenizer and processor the model at `path` has: itself, or its adapter's base.

    See `find_base` for where a base is looked for.
    """
    if not is_adapter(path):
        return path
    base = str(settings_of(path).get("base_model_name_or_path") or "")
    return find_base(path, base) if base else base


def problem_of(settings: Mapping[str, Any]) -> str | None:
    """Why an adapter cannot be merged into its base, by what its settings say."""
    if (kind := settings.get("peft_type")) != "LORA":
        return f"peft_type {kind!r}"
    if not settings.get("base_model_name_or_path"):
        return "no base_model_name_or_path"
    if settings.get("revision") not in (None, "main"):
        return f"revision {settings['revision']!r} of its base: download that, and name its folder"
    if settings.get("init_lora_weights") not in BESIDE_THE_BASE:
        return f"init_lora_weights {settings['init_lora_weights']!r}, which changes the base: save it as plain LoRA"
    changed = [name for name in ("layer_replication", "alora_invocation_tokens") if settings.get(name)]
    return f"{changed[0]}, which no merged model has" if changed else None


def serves_adapters(path: str) -> bool:
    """Whether vLLM has LoRA for the family of the model at `path`."""
    return family_of(transformers.AutoConfig.from_pretrained(fetch(base_of(path)))).adapters


def plain_rank(path: str) -> int | None:
    """The rank of an adapter that vLLM serves as PEFT does: two matrices beside each of some linear layers of the language
    model, all of one rank and scale. None for others, for a family without adapters, and for whole models."""
    if not is_adapter(path):
        return None
    settings, family = settings_of(path), family_of(transformers.AutoConfig.from_pretrained(fetch(base_of(path))))
    odd = settings.get("bias", "none") != "none" or any(settings.get(name) for name in NOT_PLAIN)
    layer = re.compile(rf"base_model\.model\.{re.escape(family.language)}\.layers\.\d+\..*_proj\.lora_[AB]\.weight")
    with safe_open(Path(fetch(path)) / ADAPTER, framework="pt") as tensors:
        plain = all(layer.fullmatch(name) for name in tensors.keys())
    return int(settings["r"]) if plain and family.adapters and not odd else None


def check_fit(option: str, path: str, base: str) -> None:
    """Raises ConfigError, naming the option, unless every tensor of the adapter has its place in the base, and none is
    missing. No weight of the base is read."""
    config = transformers.AutoConfig.from_pretrained(fetch(base))
    with torch.device("meta"):  # names and shapes only
        model = transformers.AutoModelForImageTextToText.from_config(config)
    attach(model, path, option)


def attach(model: nn.Module, path: str, option: str = "to merge") -> PeftModel:
    """The adapter at `path` on its base. Raises ConfigError where the two do not fit: PEFT would leave out what it does not
    find, without an error."""
    folder = Path(fetch(path))
    try:
        tensors = {name: tensor.float() for name, tensor in load_tensors(folder / ADAPTER).items()}
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode, config.init_lora_weights = True, True
        if problem := _tied(model, tensors):
            raise _misfit(option, path, problem)
        peft = PeftModel(model, config, adapter_name=NAME, low_cpu_mem_usage=True)
        result = set_peft_model_state_dict(peft, tensors, adapter_name=NAME, low_cpu_mem_usage=True)
    except (CheckpointError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise _misfit(option, path, " ".join(str(error).split())[:300]) from error
    missing = [name for name in result.missing_keys if f".{NAME}" in name]
    for names, what in ((result.unexpected_keys, "no place for its tensor"), (missing, "no tensor")):
        if names:
            raise _misfit(option, path, f"{what} {min(names)!r} ({len(names)} such)")
    return peft


def merged_model(base: str, path: str, dtype: str) -> nn.Module:
    """The base with an adapter added to its weights, in `dtype`, on the CPU. Raises ConfigError where the two do not fit."""
    peft = attach(load_vlm(base, dtype), path)
    kept = kept_share(peft)
    if kept < KEPT:
        log.warning(
            "%s: merged in %s, %s keeps %.0f %% of the adapter's change; the rest is smaller than a step of its weights",
            path,
            dtype,
            base,
            100 * kept,
        )
    return peft.merge_and_unload()


@torch.no_grad()
def kept_share(peft: PeftModel) -> float:
    """How much of its change a merge keeps, along its own direction: below 1 where weights have too few bits to hold it."""
    kept, whole = 0.0, 0.0
    for layer in (module for module in peft.modules() if isinstance(module, Linear) and not module.lora_variant):
        weight, change = layer.get_base_layer().weight, layer.get_delta_weight(NAME)
        moved = (weight.float() + change).to(weight.dtype).float() - weight.float()
        kept, whole = kept + float((moved * change).sum()), whole + float(change.square().sum())
    return kept / whole if whole else 1.0


def _tied(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """A head that shares its weights with the embeddings: no sum could be written down that has changed one of them."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    touched = [name for name in tensors if "lm_head" in name or "embed_tokens" in name]
    if touched and head is not None and head.weight is embeddings.weight:
        return f"{min(touched)!r}, for weights that head and embeddings share"
    return None


def _misfit(option: str, path: str, problem: str) -> ConfigError:
    return ConfigError(
        f"{option}: an adapter that fits the model it names as its base",
        f"{path!r}: {problem}",
        f"Use another adapter, or correct base_model_name_or_path in its {SETTINGS}",
    )
