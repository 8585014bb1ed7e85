"""Full weights into a live vLLM model: the part that runs inside vLLM's worker processes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from cluster.publish import Manifest, from_wire, verify_tensors
from rlaif.errors import ContractError


class Inbox:
    """Takes the model's place in vLLM's transports: keeps what arrives, on its device, until it has been checked."""

    def __init__(self):
        """Begin empty."""
        self.tensors: dict[str, torch.Tensor] = {}

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Copy the tensors, because a transport uses its buffers again; return their names."""
        arrived = {name: tensor.detach().clone() for name, tensor in weights}
        self.tensors |= arrived
        return set(arrived)


class WeightReceiver:
    """Mixed into vLLM's worker class (`worker_extension_cls`), one instance per tensor-parallel rank.

    `self` is the worker: `model_runner`, `model_config`, `vllm_config` and `device` are vLLM's.
    """

    def load_published(self, tensors: list[tuple[str, str, np.ndarray]]) -> list[str]:
        """Load (name, dtype, bits) under checkpoint names; return the engine's parameters that stayed as they were."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        model = self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config):
            # The layerwise reload gathers the parts of fused and sharded layers before it touches the live weights, and it
            # repacks them as the kernels need it. On a CPU packed weights cannot be read back: hence the checks before.
            initialize_layerwise_reload(model)
            loaded = model.load_weights((name, from_wire(array, dtype)) for name, dtype, array in tensors)
            finalize_layerwise_reload(model, self.model_config)
        return _untouched(model, loaded)

    def open_transfer(self, backend: str, info: dict) -> None:
        """Join vLLM's weight transfer `backend`; one that was open before is closed."""
        from vllm.config import WeightTransferConfig
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

        if self.weight_transfer_engine is not None:
            self.weight_transfer_engine.shutdown()
        self.inbox, config = Inbox(), WeightTransferConfig(backend=backend)
        engine = WeightTransferEngineFactory.create_engine(config, self.vllm_config, self.device, self.inbox)
        self.weight_transfer_engine = engine  # vLLM's own name for it: its shutdown closes it
        engine.init_transfer_engine(engine.parse_init_info(info))

    def begin_transfer(self) -> None:
        """Drop what has arrived of an unfinished version."""
        self.inbox.tensors = {}

    def receive_transfer(self, info: dict) -> None:
        """Receive one part of a version; the model stays as it is."""
        engine = self.weight_transfer_engine
        engine.receive_weights(engine.parse_update_info(info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()  # copies in flight would be overtaken by the sender's next part

    def check_transfer(self, manifest: Manifest) -> ContractError | None:
        """Return the error in what has been received. It is not raised: vLLM's executors turn raised errors into text."""
        try:
            verify_tensors(manifest, self.inbox.tensors)
        except ContractError as error:
            self.inbox.tensors = {}
            return error
        return None

    def load_transfer(self) -> list[str]:
        """Load the version that `check_transfer` accepted, and free it; returns as `load_published`."""
        from vllm.config import set_current_vllm_config

        tensors, self.inbox.tensors = self.inbox.tensors, {}
        engine, model = self.weight_transfer_engine, self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config):
            engine.set_weight_update_target(model, self.model_config)
            try:
                engine.start_weight_update()  # a layerwise reload, as above
                loaded = model.load_weights(tensors.items())
                engine.finish_weight_update()
            finally:
                engine.reset_weight_update_target()  # the inbox
        return _untouched(model, loaded)


def _untouched(model: torch.nn.Module, loaded: Iterable[str]) -> list[str]:
    """Return the model's parameters that are not among the loaded ones."""
    names = dict(model.named_parameters()).keys()
    return sorted(names - set(loaded))
