"""Weights on the wire: a manifest that says what is sent, and buckets of plain arrays that hold it.

A publish is a numbered transaction: the receiver checks every array against the manifest before it applies any of
them, so that a damaged or incomplete transfer leaves the old version in place.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch

from rlaif.errors import ContractError

Bucket = dict[str, np.ndarray]
"""Contiguous arrays by tensor name; bfloat16 travels as its uint16 bits, which every serializer understands."""

T = TypeVar("T")

_WIRE = {torch.bfloat16: torch.uint16}
_HASH_THREADS = 8


@dataclass(frozen=True)
class TensorInfo:
    """What one tensor must look like on arrival."""

    shape: tuple[int, ...]
    dtype: str
    """Name of the torch dtype, e.g. `bfloat16`."""
    checksum: int
    """CRC-32 of name, dtype, shape and bytes (see `checksum`)."""


@dataclass(frozen=True)
class Manifest:
    """Everything a receiver needs to know about one published version."""

    version: int
    kind: Literal["full", "adapter"]
    tensors: dict[str, TensorInfo]
    lora: dict | None = None
    """The adapter's `adapter_config.json` (kind `adapter` only)."""
    nbytes: int = 0
    """Bytes of all tensors together."""
    base: str = ""
    """Fingerprint of the model directory that the learner started from; empty: not known."""


def checksum(name: str, dtype: str, array: np.ndarray) -> int:
    """CRC-32 over name, dtype, shape and bytes of an array.

    It guards against damage, truncation and swapped tensors, not against an attacker; about 2 GB/s per thread.
    """
    head = zlib.crc32(f"{name}|{dtype}|{array.shape}".encode())
    return zlib.crc32(array.reshape(-1).view(np.uint8), head)


def to_wire(tensor: torch.Tensor) -> np.ndarray:
    """A contiguous copy of the tensor's bits: the tensor may be freed or trained on as soon as this returns."""
    tensor = tensor.detach().to("cpu", copy=True).contiguous()
    return tensor.view(_WIRE.get(tensor.dtype, tensor.dtype)).numpy()


def from_wire(array: np.ndarray, dtype: str) -> torch.Tensor:
    """The tensor those bits stand for, sharing memory with the array (which may be read-only: only read it)."""
    with warnings.catch_warnings():
        # Arrays out of Ray's object store are read-only and torch warns about each; loaders only read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(getattr(torch, dtype))


def pack(
    tensors: Iterable[tuple[str, torch.Tensor]],
    bucket_bytes: int,
    *,
    version: int,
    kind: Literal["full", "adapter"] = "full",
    lora: Mapping | None = None,
    base: str = "",
    put: Callable[[Bucket], T] = lambda bucket: bucket,
) -> tuple[Manifest, list[T]]:
    """Split named tensors into buckets of about `bucket_bytes` and describe them.

    Args:
        tensors: (name, tensor) pairs under Hugging Face names; consumed once, in order, so a generator that gathers
            one shard at a time keeps at most one bucket in memory. A tied output head must be named explicitly.
        bucket_bytes: a bucket is closed when it reaches this size; a larger tensor has a bucket of its own.
        put: what happens to each finished bucket, e.g. `ray.put`; its results are returned.
    """
    infos: dict[str, TensorInfo] = {}
    sent: list[T] = []
    bucket: Bucket = {}
    filled = total = 0
    for name, tensor in tensors:
        array, dtype = to_wire(tensor), str(tensor.dtype).removeprefix("torch.")
        if bucket and filled + array.nbytes > bucket_bytes:
            sent.append(put(bucket))
            bucket, filled = {}, 0
        if name in infos:
            raise ContractError("every tensor once", f"{name!r} twice", "publish each parameter under one name")
        infos[name] = TensorInfo(tuple(array.shape), dtype, checksum(name, dtype, array))
        bucket[name] = array
        filled, total = filled + array.nbytes, total + array.nbytes
    if bucket:
        sent.append(put(bucket))
    return Manifest(version, kind, infos, dict(lora) if lora is not None else None, total, base), sent


def unpack(manifest: Manifest, buckets: Iterable[Bucket]) -> Bucket:
    """Verified arrays by name, in the manifest's order; `from_wire` makes tensors of them. They share memory with the
    buckets: only read them.

    Raises:
        ContractError: naming the first tensor that is missing, unexpected or different from the manifest.
    """
    arrays: Bucket = {}
    for bucket in buckets:
        arrays.update(bucket)
    verify(manifest, arrays)
    return {name: arrays[name] for name in manifest.tensors}


def verify(manifest: Manifest, arrays: Bucket) -> None:
    """Check every array against the manifest.

    Raises:
        ContractError: see `unpack`.
    """
    missing, unexpected = manifest.tensors.keys() - arrays.keys(), arrays.keys() - manifest.tensors.keys()
    for names, word in ((missing, "missing"), (unexpected, "unexpected")):
        if names:
            raise _refusal(manifest, f"tensor {min(names)!r} {word} ({len(names)} in all)")
    with ThreadPoolExecutor(_HASH_THREADS) as pool:  # crc32 lets go of the interpreter lock
        problems = pool.map(lambda item: _problem(*item, arrays[item[0]]), manifest.tensors.items())
        for problem in problems:
            if problem:
                raise _refusal(manifest, problem)


def _problem(name: str, info: TensorInfo, array: np.ndarray) -> str | None:
    """What is wrong with one array, or None."""
    wanted = _wire_dtype(info.dtype)
    if tuple(array.shape) != info.shape or array.dtype != wanted:
        return f"tensor {name!r} as {array.dtype} {tuple(array.shape)} instead of {wanted} {info.shape}"
    found = checksum(name, info.dtype, array)
    if found != info.checksum:
        return f"tensor {name!r} with checksum {found:08x} instead of {info.checksum:08x}"
    return None


def _wire_dtype(dtype: str) -> np.dtype:
    """The numpy dtype that a torch dtype travels as."""
    wire = _WIRE.get(getattr(torch, dtype), getattr(torch, dtype))
    return np.dtype(str(wire).removeprefix("torch."))


def _refusal(manifest: Manifest, found: str) -> ContractError:
    return ContractError(
        f"weights as listed in the manifest of version {manifest.version}",
        found,
        "publish again; if it repeats, replace the actor or look at the transport between learner and rollout",
    )
