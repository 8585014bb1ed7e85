"""The files that an engine loads for a model that may be an adapter: base and adapter, or a merged copy of the two."""

from __future__ import annotations

from dataclasses import replace

from actors.engine import ADAPTER_RANKS, EngineSpec
from rlaif.models.adapter import served_rank
from rlaif.models.merged import whole_model
from rlaif.models.model_dir import ModelDir


def resolve_model(spec: EngineSpec) -> EngineSpec:
    """Return the spec with files that this node has.

    vLLM gets an adapter that it can serve as it is: added to weights in 16 bits, much of a small change would be rounded
    away. In float32 a merged copy says the same and is faster; for other adapters and families it is the only way.
    """
    model = ModelDir(spec.model_path)
    rank = None
    if spec.lora_rank is None and spec.dtype != "float32":
        rank = served_rank(model)
    if rank is None or rank > ADAPTER_RANKS[-1]:
        return replace(spec, model_path=whole_model(model, spec.dtype))
    return replace(spec, model_path=model.base.location, lora_rank=rank, adapter=model.location)
