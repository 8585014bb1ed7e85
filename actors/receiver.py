"""Full weights into a live vLLM model: what may be loaded, and the part that runs inside vLLM's worker processes."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from cluster.publish import from_wire
from rlaif.errors import ContractError

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Checkpoint modules that the engine keeps as one matrix: a part of them alone would be loaded wrongly, silently."""

HEAD = "lm_head.weight"


class WeightReceiver:
    """Mixed into vLLM's worker class (`worker_extension_cls`), one instance per tensor-parallel rank.

    `self` is the worker: `model_runner`, `model_config` and `vllm_config` are vLLM's.
    """

    def load_published(self, tensors: list[tuple[str, str, np.ndarray]]) -> list[str]:
        """Load (name, dtype, bits) under checkpoint names; returns the engine's parameters that stayed as they were.

        The layerwise reload gathers the parts of fused and sharded layers before it touches the live weights, and it
        repacks them as the kernels need it.
        """
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        model = self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(model)
            loaded = model.load_weights((name, from_wire(array, dtype)) for name, dtype, array in tensors)
            finalize_layerwise_reload(model, self.model_config)
        return sorted({name for name, _ in model.named_parameters()} - set(loaded))


def check_whole(names: Collection[str], tied: bool) -> None:
    """Refuse tensors that cannot be loaded alone: a part of a fused module, tied embeddings without their head.

    A head that is tied to the embeddings is a tensor of its own in the engine: left out, it silently stays old.

    Raises:
        ContractError: naming the first tensor that is missing.
    """
    wanted = {
        name.replace(f".{part}.", f".{sibling}.")
        for name in names
        for group in FUSED
        for part in group
        if f".{part}." in name
        for sibling in group
    }
    if tied and any(name.endswith("embed_tokens.weight") for name in names):
        wanted.add(HEAD)
    missing = sorted(wanted - set(names))
    if missing:
        raise ContractError(
            "every tensor of each fused module, and the head that is tied to the embeddings, in one publish",
            f"no {missing[0]!r} ({len(missing)} missing)",
            "publish the entries of state_dict() (tied names included), whole modules at a time",
        )
