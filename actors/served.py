"""What an engine loads for a model that may be an adapter: base and adapter, or a merged copy of the two."""

from __future__ import annotations

from dataclasses import replace

from actors.engine import ADAPTER_RANKS, EngineSpec
from rlaif.io.storage import fetch
from rlaif.models.adapter import base_of, plain_rank
from rlaif.models.merged import whole_model


def local(spec: EngineSpec) -> EngineSpec:
    """The spec with files that this node has.

    An adapter that vLLM takes is handed to it: added to weights in 16 bits, much of a small change would be rounded away. In
    float32 a merged copy says the same and is faster; for other adapters and families it is the only way.
    """
    rank = plain_rank(spec.model_path) if spec.lora_rank is None and spec.dtype != "float32" else None
    if rank is None or rank > ADAPTER_RANKS[-1]:
        return replace(spec, model_path=whole_model(spec.model_path, spec.dtype))
    base, adapter = fetch(base_of(spec.model_path)), fetch(spec.model_path)
    return replace(spec, model_path=base, lora_rank=rank, adapter=adapter)
