"""Full weights from the learner's GPUs straight to the engines', over vLLM's transports, checked on arrival."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import ParamMeta, TrainerInitInfo, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from cluster.publish import Manifest, TensorInfo, word_sum
from cluster.transfer import Receivers, WeightReceipt, undelivered
from learners.roles import Role
from learners.state import published_weights
from rlaif.errors import ContractError
from rlaif.models.check import fingerprint


def nccl(rank: int, address: tuple[str, int], processes: int, bucket_bytes: int) -> TrainerInitInfo:
    """Engines on GPUs of their own: a broadcast from rank 0 to all of them."""
    host, port = address
    return NCCLTrainerInitInfo(
        master_address=host,
        master_port=port,
        world_size=1 + processes,
        packed_buffer_size_bytes=bucket_bytes,
        rank=rank,
    )


def ipc(rank: int, address: tuple[str, int], processes: int, bucket_bytes: int) -> TrainerInitInfo:
    """Engines that share the ranks' GPUs: they read each rank's buffer where it lies."""
    return IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=bucket_bytes, rank=rank)


BACKENDS: dict[str, Callable[[int, tuple[str, int], int, int], TrainerInitInfo]] = {"nccl": nccl, "ipc": ipc}


class Weights(WeightSource):
    """A role's full weights as vLLM's senders read them. Each pass leaves the checksums of what it sent."""

    def __init__(self, role: Role):
        self.role, self.sums = role, {}
        self._described: list[ParamMeta] | None = None
        self._walk: Iterator[tuple[str, Tensor]] | None = None

    def metadata(self) -> list[ParamMeta]:
        """Names, dtypes and shapes, which never change: one collective pass under ZeRO-3, the first time."""
        if self._described is None:
            self._described = [ParamMeta(n, t.dtype, tuple(t.shape)) for n, t in published_weights(self.role)]
        return self._described

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._walk = self._once()
        return self._walk

    def drain(self) -> None:
        """Walk what is left of the pass under way, or one that has not begun: the other ranks gather along."""
        for _ in self._walk or self:
            pass

    def done(self) -> None:
        """The pass is over on every rank."""
        self._walk = None

    def _once(self) -> Iterator[tuple[str, Tensor]]:
        self.sums: dict[str, Tensor] = {}
        for name, tensor in published_weights(self.role):
            self.sums[name] = word_sum(tensor)
            yield name, tensor

    def manifest(self, version: int, base: str) -> Manifest:
        """What the last pass sent."""
        sums = dict(zip(self.sums, torch.stack(list(self.sums.values())).tolist(), strict=True))
        infos = {
            m.name: TensorInfo(m.shape, str(m.dtype).removeprefix("torch."), sums[m.name]) for m in self.metadata()
        }
        nbytes = sum(m.dtype.itemsize * prod(m.shape) for m in self.metadata())
        return Manifest(version, "full", infos, None, nbytes, base, on_device=True)


class Sender:
    """One learner rank's end of a transport, for one set of receivers. All ranks call `send` together."""

    def __init__(self, role: Role, receivers: Receivers, rank: int, address: tuple[str, int], bucket_bytes: int):
        """Joins the receivers. Raises ContractError where they do not come within their deadline."""
        self.receivers, self.rank, self.weights = receivers, rank, Weights(role)
        self._base = fingerprint(role.spec.base)
        info = BACKENDS[receivers.backend](rank, address, receivers.processes, bucket_bytes)
        join = partial(WeightTransferTrainerFactory.trainer_init, info, client=receivers, source=self.weights)
        self._engine = self._in_time(join)

    def send(self, version: int) -> WeightReceipt:
        """Send the newest weights and wait until the receivers have checked and loaded them.

        Raises:
            ContractError: no receiver took them. After a deadline the transport cannot be used again.
        """
        receivers, manifest = self.receivers, partial(self.weights.manifest, version, self._base)
        receivers.manifest = manifest
        self.weights.metadata()
        try:
            self._in_time(self._engine.send_weights)
        except ContractError:
            self.weights.drain()
            raise
        finally:
            self.weights.done()
        if self.rank == 0 and not receivers.receipts:
            raise undelivered(receivers.failed)
        return WeightReceipt(manifest(), receivers.receipts, dict(receivers.failed))

    def close(self) -> None:
        self._engine.shutdown()

    def _in_time(self, work: Callable[[], Any]) -> Any:
        """Rank 0 watches the clock: a receiver that stops answering would leave a GPU waiting for ever."""
        if self.rank != 0:
            return work()
        outcome: dict[str, Any] = {}
        thread = threading.Thread(target=_keep, args=(work, outcome), daemon=True)
        thread.start()
        thread.join(2 * self.receivers.deadline_s)  # the calls to the receivers have their own
        if thread.is_alive():
            raise undelivered(self.receivers.failed or {name: "no answer in time" for name in self.receivers.actors})
        if error := outcome.get("error"):
            raise error if isinstance(error, ContractError) else undelivered({"the sender": repr(error)}) from error
        return outcome["value"]


def _keep(work: Callable[[], Any], outcome: dict[str, Any]) -> None:
    try:
        outcome["value"] = work()
    except Exception as error:  # handed to the thread that waits, which raises it
        outcome["error"] = error
