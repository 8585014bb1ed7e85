"""A weight transfer for vLLM that needs no GPU: the tensors are arguments of the calls.

It is registered beside vLLM's own NCCL and IPC transfers, so that everything around the transfer is the real code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from cluster.publish import from_wire, to_wire

TENSORS_PER_CALL = 7


@dataclass
class InitInfo(WeightTransferInitInfo):
    parts: int


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    tensors: list[tuple[str, str, np.ndarray]]


class Receiving(WeightTransferEngine[InitInfo, UpdateInfo]):
    init_info_cls, update_info_cls = InitInfo, UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        self.parts = init_info.parts

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        buffer = {name: from_wire(array.copy(), dtype) for name, dtype, array in update_info.tensors}
        self.model.load_weights(list(buffer.items()))
        for tensor in buffer.values():
            tensor.zero_()  # a real transport reuses its buffer

    def shutdown(self) -> None:
        self.parts = 0


@dataclass
class SenderInfo(TrainerInitInfo):
    backend: ClassVar[str] = "loopback"


class Sending(TrainerWeightTransferEngine[SenderInfo]):
    init_info_cls = SenderInfo
    damage: ClassVar[str | None] = None
    """Name of a tensor of which one bit is flipped before it is sent."""

    @classmethod
    def trainer_init(cls, init_info, *, client, source=None):
        engine = cls(client=client, source=source, is_sender=init_info.is_sender)
        if engine.is_sender:
            client.init_weight_transfer_engine({"parts": TENSORS_PER_CALL})
        return engine

    def send_weights(self) -> None:
        if not self.is_sender:
            # Every rank takes part in gathering the tensors, though only one sends them.
            for _ in self.source:
                pass
            return
        self.client.start_weight_update()
        part = []
        for name, tensor in self.source:
            part.append((name, str(tensor.dtype).removeprefix("torch."), to_wire(tensor)))
            if name == self.damage:
                part[-1][2].reshape(-1).view(np.uint8)[5] ^= 1
            if len(part) == TENSORS_PER_CALL:
                self.client.update_weights({"tensors": part})
                part = []
        self.client.update_weights({"tensors": part})
        self.client.finish_weight_update()


def register() -> None:
    """Register both ends in this process."""
    from learners import transfer

    if "loopback" not in transfer.BACKENDS:
        WeightTransferEngineFactory.register_engine("loopback", Receiving)
        WeightTransferTrainerFactory.register_engine("loopback", Sending)
        transfer.BACKENDS["loopback"] = lambda rank, address, processes, nbytes: SenderInfo(rank=rank)
