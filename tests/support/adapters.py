"""Write LoRA folders as PEFT writes them, with weights that change the answers."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel

from rlaif.models.family import family_of
from rlaif.models.vlm import load_vlm, target_pattern


def write_adapter(folder: Path, base: str, seed: int = 0, scale: float = 0.2, **options) -> str:
    """Write an adapter on the language model of `base` and return its folder; options as LoraConfig has them."""
    model = load_vlm(base, "float32")
    settings = {"r": 4, "lora_alpha": 8} | options
    if "target_modules" not in settings:
        language = family_of(model.config).language
        settings["target_modules"] = target_pattern(("q_proj", "v_proj", "down_proj"), language)
    peft = PeftModel(model, LoraConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in peft.named_parameters():
        if "lora_" in name:
            weight.data = scale * torch.randn(weight.shape, generator=generator)
    peft.save_pretrained(folder)
    return str(folder)
