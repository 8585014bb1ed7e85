"""LoRA adapters as PEFT saves them (`adapter_config.json`, `adapter_model.safetensors`): what can be served or merged, and merging."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import Linear
from safetensors import safe_open
from torch import nn

from rlaif.errors import CheckpointError, ConfigError
from rlaif.io.tensors import load_tensors
from rlaif.models.model_dir import SETTINGS, ModelDir
from rlaif.models.vlm import ADAPTER, load_vlm

log = logging.getLogger(__name__)

NAME = "default"
"""Name of an adapter inside PEFT while it is merged."""
BESIDE_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of `init_lora_weights` that leave the base as it is. PEFT's others change it, and some of what they leave on disk needs
the changed one."""
NOT_PLAIN = (
    *("use_dora", "lora_bias", "rank_pattern", "alpha_pattern", "modules_to_save", "target_parameters"),
    *("trainable_token_indices", "use_qalora", "use_bdlora"),
)
"""Settings beyond two matrices of one rank and scale beside each layer."""
KEPT = 0.9
"""A merge that keeps less than this share of an adapter's change causes a warning."""


def merge_problem(settings: Mapping[str, Any]) -> str | None:
    """Return why an adapter cannot be merged into its base, by what its settings say; None if it can."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        return f"peft_type {kind!r}"
    if not settings.get("base_model_name_or_path"):
        return "no base_model_name_or_path"
    if settings.get("revision") not in (None, "main"):
        return f"revision {settings['revision']!r} of its base: download that, and name its folder"
    if settings.get("init_lora_weights") not in BESIDE_THE_BASE:
        return f"init_lora_weights {settings['init_lora_weights']!r}, which changes the base: save it as plain LoRA"
    for name in ("layer_replication", "alora_invocation_tokens"):
        if settings.get(name):
            return f"{name}, which no merged model has"
    return None


def served_rank(model: ModelDir) -> int | None:
    """Return the rank of an adapter that vLLM serves as PEFT does; None if it must be merged, or is a whole model.

    Such an adapter has two matrices beside each of some linear layers of the language model, all of one rank and scale, and
    its family has adapters in vLLM.
    """
    if not model.is_adapter:
        return None
    settings, family = model.settings, model.family
    # vLLM ignores settings that it does not know, so only what is surely served as PEFT computes it counts
    has_more = any(settings.get(name) for name in NOT_PLAIN)
    has_bias = settings.get("bias", "none") != "none"
    if has_more or has_bias or not family.adapters:
        return None
    layer = re.compile(rf"base_model\.model\.{re.escape(family.language)}\.layers\.\d+\..*_proj\.lora_[AB]\.weight")
    with safe_open(model.folder / ADAPTER, framework="pt") as tensors:
        names = list(tensors.keys())
    if not all(map(layer.fullmatch, names)):
        return None
    return int(settings["r"])


def check_fit(option: str, adapter: ModelDir) -> None:
    """Raise ConfigError, naming the option, unless the tensors of the adapter are those that its base has room for.

    No weight of the base is read.
    """
    config = copy.deepcopy(adapter.config)  # a model keeps its configuration and may write to it
    with torch.device("meta"):  # names and shapes only
        model = transformers.AutoModelForImageTextToText.from_config(config)
    attach_adapter(model, adapter, option)


def attach_adapter(model: nn.Module, adapter: ModelDir, option: str = "to merge") -> PeftModel:
    """Return the adapter on its base.

    Raises ConfigError if the two do not fit: PEFT would leave out tensors that have no place, without an error.
    """
    try:
        saved = load_tensors(adapter.folder / ADAPTER)
        tensors = {name: tensor.float() for name, tensor in saved.items()}
        config = LoraConfig.from_pretrained(adapter.location)
        # the weights come from the file: other ways to initialise would compute something first, or change the base
        config.inference_mode, config.init_lora_weights = True, True
        problem = _tied_problem(model, tensors)
        if problem:
            raise _misfit(option, adapter, problem)
        peft = PeftModel(model, config, adapter_name=NAME, low_cpu_mem_usage=True)
        result = set_peft_model_state_dict(peft, tensors, adapter_name=NAME, low_cpu_mem_usage=True)
    except (CheckpointError, ValueError, RuntimeError, KeyError, TypeError) as error:
        message = " ".join(str(error).split())
        raise _misfit(option, adapter, message[:300]) from error
    missing = [name for name in result.missing_keys if f".{NAME}" in name]
    for names, problem in ((result.unexpected_keys, "no place for its tensor"), (missing, "no tensor")):
        if names:
            raise _misfit(option, adapter, f"{problem} {min(names)!r} ({len(names)} such)")
    return peft


def merged_model(base: ModelDir, adapter: ModelDir, dtype: str) -> nn.Module:
    """Return the base with an adapter added to its weights, in `dtype`, on the CPU.

    Raises ConfigError if the two do not fit.
    """
    # in float32 the adapter's matrices are exact; the sum is rounded to the base's dtype once
    peft = attach_adapter(load_vlm(base.location, dtype), adapter)
    share = kept_share(peft)
    if share < KEPT:
        log.warning(
            "%s: merged in %s, %s keeps %.0f %% of the adapter's change; the rest is smaller than a step of its weights",
            adapter.path,
            dtype,
            base.path,
            100 * share,
        )
    return peft.merge_and_unload()


@torch.no_grad()
def kept_share(peft: PeftModel) -> float:
    """Return how much of its change a merge keeps, along its own direction.

    The share is below 1 if the weights have too few bits to hold the change, and 1 for an adapter that changes nothing.
    """
    kept_change, whole_change = 0.0, 0.0
    for layer in peft.modules():
        # variants such as DoRA change more than the sum of the two matrices
        if not isinstance(layer, Linear) or layer.lora_variant:
            continue
        weight, change = layer.get_base_layer().weight, layer.get_delta_weight(NAME)
        merged = (weight.float() + change).to(weight.dtype)
        moved = merged.float() - weight.float()
        kept_change += float((moved * change).sum())
        whole_change += float(change.square().sum())
    return kept_change / whole_change if whole_change else 1.0


def _tied_problem(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Return the tensor that changes only one of head and embeddings if they share weights: no such sum can be saved."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    touched = [name for name in tensors if "lm_head" in name or "embed_tokens" in name]
    if touched and head is not None and head.weight is embeddings.weight:
        return f"{min(touched)!r}, for weights that head and embeddings share"
    return None


def _misfit(option: str, adapter: ModelDir, problem: str) -> ConfigError:
    return ConfigError(
        f"{option}: an adapter that fits the model it names as its base",
        f"{adapter.path!r}: {problem}",
        f"Use another adapter, or correct base_model_name_or_path in its {SETTINGS}.",
    )
