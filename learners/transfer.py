"""Full weights from the learner's GPUs straight to the engines', over vLLM's transports, checked on arrival."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
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
from rlaif.models.model_dir import ModelDir

Address = tuple[str, int]
"""Host and port."""


def nccl_init_info(rank: int, address: Address, processes: int, bucket_bytes: int) -> TrainerInitInfo:
    """Describe a broadcast from rank 0 to engines that have GPUs of their own.

    processes: engine processes that receive; bucket_bytes: size of the buffer that each round fills.
    """
    host, port = address
    return NCCLTrainerInitInfo(
        master_address=host,
        master_port=port,
        world_size=1 + processes,
        packed_buffer_size_bytes=bucket_bytes,
        rank=rank,
    )


def ipc_init_info(rank: int, address: Address, processes: int, bucket_bytes: int) -> TrainerInitInfo:
    """Describe shared memory with engines on the ranks' GPUs: each engine reads its rank's buffer in place."""
    # vLLM refuses a tensor that is larger than this buffer
    return IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=bucket_bytes, rank=rank)


BACKENDS: dict[str, Callable[..., TrainerInitInfo]] = {"nccl": nccl_init_info, "ipc": ipc_init_info}
"""What describes a transport to vLLM, by `rollout.transport`."""


class RoleWeightSource(WeightSource):
    """A role's full weights as vLLM's senders read them. Each pass keeps the checksums of what it sends."""

    def __init__(self, role: Role):
        self.role = role
        self.sums: dict[str, Tensor] = {}
        self._described: list[ParamMeta] | None = None
        self._walk: Iterator[tuple[str, Tensor]] | None = None

    def metadata(self) -> list[ParamMeta]:
        """Return names, dtypes and shapes, which never change: one collective pass under ZeRO-3, the first time."""
        if self._described is None:
            described = []
            for name, tensor in published_weights(self.role):
                described.append(ParamMeta(name, tensor.dtype, tuple(tensor.shape)))
            self._described = described
        return self._described

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._walk = self._once()
        return self._walk

    def drain(self) -> None:
        """Walk to the end of the current pass, or through one that has not begun: the other ranks gather along."""
        for _ in self._walk or self:
            pass

    def end_pass(self) -> None:
        """Forget the current pass, which is over on every rank."""
        self._walk = None

    def _once(self) -> Iterator[tuple[str, Tensor]]:
        self.sums = {}
        for name, tensor in published_weights(self.role):
            # before the tensor is sent: under ZeRO-3 it is freed when the next one is gathered
            self.sums[name] = word_sum(tensor)
            yield name, tensor

    def manifest(self, version: int, base: str) -> Manifest:
        """Return the manifest of what the last pass sent."""
        # all checksums are read from the device together
        stacked = torch.stack(list(self.sums.values()))
        values = stacked.tolist()
        sums = dict(zip(self.sums, values, strict=True))
        infos: dict[str, TensorInfo] = {}
        nbytes = 0
        for meta in self.metadata():
            dtype = str(meta.dtype).removeprefix("torch.")
            infos[meta.name] = TensorInfo(meta.shape, dtype, sums[meta.name])
            nbytes += meta.dtype.itemsize * prod(meta.shape)
        return Manifest(version, "full", infos, None, nbytes, base, on_device=True)


class WeightSender:
    """One learner rank's end of a transport, for one set of receivers. All ranks call `send` together."""

    def __init__(self, role: Role, receivers: Receivers, rank: int, address: Address, bucket_bytes: int):
        """Join the receivers. Raises ContractError if they do not join within their deadline."""
        self.receivers = receivers
        self.rank = rank
        self.source = RoleWeightSource(role)
        self._base = ModelDir(role.spec.base).fingerprint
        info = BACKENDS[receivers.backend](rank, address, receivers.processes, bucket_bytes)
        start = WeightTransferTrainerFactory.trainer_init
        join = partial(start, info, client=receivers, source=self.source)
        self._engine = self._in_time(join)

    def send(self, version: int) -> WeightReceipt:
        """Send the newest weights and wait until the receivers have checked and loaded them.

        Raises:
            ContractError: no receiver took them. After a deadline the transport cannot be used again.
        """
        receivers = self.receivers
        receivers.manifest = manifest = partial(self.source.manifest, version, self._base)
        # every rank describes the weights before the first one sends: under ZeRO-3 that is a collective
        self.source.metadata()
        try:
            self._in_time(self._engine.send_weights)
        except ContractError:
            self.source.drain()
            raise
        finally:
            self.source.end_pass()
        if self.rank == 0 and not receivers.receipts:
            raise undelivered(receivers.failed)
        return WeightReceipt(manifest(), receivers.receipts, dict(receivers.failed))

    def close(self) -> None:
        """Leave the transport."""
        self._engine.shutdown()

    def _in_time(self, call: Callable[[], Any]) -> Any:
        """Return what `call` returns; on rank 0 within a deadline, raising ContractError after it.

        A receiver that stops answering, or fails inside NCCL's collective, would leave this GPU waiting for ever.
        """
        # only rank 0 talks to the receivers; the others gather along, and their collectives have a deadline
        if self.rank != 0:
            return call()
        result: Future = Future()
        # a daemon thread, not an executor's: a call that never ends must not keep the process from ending
        thread = threading.Thread(target=_fulfil, args=(result, call), daemon=True)
        thread.start()
        # twice: the calls to the receivers have deadlines of their own, which should end first and name an actor
        wait([result], timeout=2 * self.receivers.deadline_s)
        if not result.done():
            silent = dict.fromkeys(self.receivers.actors, "no answer in time")
            raise undelivered(self.receivers.failed or silent)
        error = result.exception()
        if error is None:
            return result.result()
        if isinstance(error, ContractError):
            raise error
        raise undelivered({"the sender": repr(error)}) from error


def _fulfil(result: Future, call: Callable[[], Any]) -> None:
    """Give a future what `call` returns or raises; the thread that waits for it raises the error."""
    try:
        result.set_result(call())
    except BaseException as error:  # also what ends only this thread: the other one must not wait for the deadline
        result.set_exception(error)
