"""LoRA folders as PEFT writes them, with weights that say something."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel

from rlaif.models.family import family_of
from rlaif.models.vlm import load_vlm, target_pattern


def write_adapter(folder: Path, base: str, seed: int = 0, scale: float = 0.2, **options) -> str:
    """An adapter on the language model of `base`; options as LoraConfig has them."""
    model = load_vlm(base, "float32")
    given = {"r": 4, "lora_alpha": 8} | options
    given.setdefault(
        "target_modules", target_pattern(("q_proj", "v_proj", "down_proj"), family_of(model.config).language)
    )
    peft = PeftModel(model, LoraConfig(**given))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in peft.named_parameters():
        if "lora_" in name:
            weight.data = scale * torch.randn(weight.shape, generator=generator)
    peft.save_pretrained(folder)
    return str(folder)
