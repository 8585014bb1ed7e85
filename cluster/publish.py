"""Weights on the wire: a manifest that says what is sent, as buckets of plain arrays or between devices.

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
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WORDS_AT_ONCE = 2**22
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""2^64 over the golden ratio, as int64: its multiples spread over all bits."""


@dataclass(frozen=True)
class TensorInfo:
    """What one tensor must look like on arrival."""

    shape: tuple[int, ...]
    dtype: str
    """Name of the torch dtype, e.g. `bfloat16`."""
    checksum: int
    """Of tensors sent as arrays `checksum`, of tensors that stay on their device `word_sum`."""


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
    on_device: bool = False
    """The tensors go from device to device: their checksums are `word_sum`s."""

    def holds(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether the version's tensor `name` has exactly these bits."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        found = int(word_sum(tensor)) if self.on_device else checksum(name, dtype, to_wire(tensor))
        info = self.tensors[name]
        return (info.shape, info.dtype, info.checksum) == (tuple(tensor.shape), dtype, found)


def checksum(name: str, dtype: str, array: np.ndarray) -> int:
    """CRC-32 over name, dtype, shape and bytes of an array.

    It guards against damage, truncation and swapped tensors, not against an attacker; about 2 GB/s per thread.
    """
    head = zlib.crc32(f"{name}|{dtype}|{array.shape}".encode())
    return zlib.crc32(array.reshape(-1).view(np.uint8), head)


def word_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Checksum of a tensor's bits, computed where it lies: a 0-d int64, the sum modulo 2^64 of its words times odd weights.

    Integers only, so every device gives the same; an odd weight lets no change of a single word cancel out.
    """
    words = tensor.detach().contiguous().flatten()
    words = words.view(_WORDS[words.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for start in range(0, len(words), _WORDS_AT_ONCE):
        part = words[start : start + _WORDS_AT_ONCE].to(torch.int64)
        index = torch.arange(start, start + len(part), dtype=torch.int64, device=part.device)
        total += (part * (index * _GOLDEN | 1)).sum()
    return total


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
            raise ContractError("every tensor once", f"{name!r} twice", "Publish each parameter under one name.")
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
    _check_names(manifest, arrays)
    with ThreadPoolExecutor(_HASH_THREADS) as pool:  # crc32 lets go of the interpreter lock
        problems = pool.map(lambda item: _problem(*item, arrays[item[0]]), manifest.tensors.items())
        for problem in problems:
            if problem:
                raise _refusal(manifest, problem)


def verify_tensors(manifest: Manifest, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check tensors that came from device to device against the manifest, by their `word_sum`.

    Raises:
        ContractError: see `unpack`.
    """
    _check_names(manifest, tensors)
    sums = {name: word_sum(tensor) for name, tensor in tensors.items()}
    for name, info in manifest.tensors.items():
        shape, dtype = tuple(tensors[name].shape), str(tensors[name].dtype).removeprefix("torch.")
        if (shape, dtype) != (info.shape, info.dtype):
            raise _refusal(manifest, f"tensor {name!r} as {dtype} {shape} instead of {info.dtype} {info.shape}")
        if (found := int(sums[name])) != info.checksum:
            raise _refusal(manifest, _other_sum(name, found, info.checksum))


def _check_names(manifest: Manifest, tensors: Mapping) -> None:
    missing, unexpected = manifest.tensors.keys() - tensors.keys(), tensors.keys() - manifest.tensors.keys()
    for names, word in ((missing, "missing"), (unexpected, "unexpected")):
        if names:
            raise _refusal(manifest, f"tensor {min(names)!r} {word} ({len(names)} in all)")


def _other_sum(name: str, found: int, wanted: int) -> str:
    return f"tensor {name!r} with checksum {found & 2**64 - 1:08x} instead of {wanted & 2**64 - 1:08x}"


def _problem(name: str, info: TensorInfo, array: np.ndarray) -> str | None:
    """What is wrong with one array, or None."""
    wanted = _wire_dtype(info.dtype)
    if tuple(array.shape) != info.shape or array.dtype != wanted:
        return f"tensor {name!r} as {array.dtype} {tuple(array.shape)} instead of {wanted} {info.shape}"
    found = checksum(name, info.dtype, array)
    if found != info.checksum:
        return _other_sum(name, found, info.checksum)
    return None


def _wire_dtype(dtype: str) -> np.dtype:
    """The numpy dtype that a torch dtype travels as."""
    wire = _WIRE.get(getattr(torch, dtype), getattr(torch, dtype))
    return np.dtype(str(wire).removeprefix("torch."))


def _refusal(manifest: Manifest, found: str) -> ContractError:
    return ContractError(
        f"weights as listed in the manifest of version {manifest.version}",
        found,
        "Publish again; if it repeats, replace the actor or look at the transport between learner and rollout.",
    )
