"""Weights in transit: buckets of plain arrays, or tensors between devices, with a manifest that describes them.

A publish is a numbered transaction: the receiver checks every array against the manifest before it applies any of
them, so that a damaged or incomplete transfer leaves the old version in place.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from rlaif.errors import ContractError

Bucket = dict[str, np.ndarray]
"""Contiguous arrays by tensor name; bfloat16 travels as its uint16 bits, which every serializer understands."""

T = TypeVar("T")

# numpy has no bfloat16, and Ray ships contiguous numpy arrays without a copy.
_WIRE = {torch.bfloat16: torch.uint16}
_HASH_THREADS = 8
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WORDS_AT_ONCE = 2**22
"""Words that `word_sum` converts to int64 at a time, which bounds its extra memory to about 100 MiB."""
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""2^64 over the golden ratio, as int64: its multiples spread over all bits."""


@dataclass(frozen=True)
class TensorInfo:
    """What one tensor must be on arrival."""

    shape: tuple[int, ...]
    dtype: str
    """Name of the torch dtype, e.g. `bfloat16`."""
    checksum: int
    """The `checksum` of a tensor that is sent as an array, the `word_sum` of one that is sent between devices."""


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
        """Return whether the version's tensor `name` has exactly these bits."""
        dtype = _name_of(tensor.dtype)
        actual = int(word_sum(tensor)) if self.on_device else checksum(name, dtype, to_wire(tensor))
        return self.tensors[name] == TensorInfo(tuple(tensor.shape), dtype, actual)


def checksum(name: str, dtype: str, array: np.ndarray) -> int:
    """Compute the CRC-32 over name, dtype, shape and bytes of an array.

    It guards against damage, truncation and swapped tensors, not against an attacker; about 2 GB/s per thread.
    """
    # With name, dtype and shape in the sum, two tensors that were swapped or reshaped do not pass.
    head = zlib.crc32(f"{name}|{dtype}|{array.shape}".encode())
    data = array.reshape(-1).view(np.uint8)
    return zlib.crc32(data.data, head)


def word_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Compute a checksum of a tensor's bits on its device: a 0-d int64, the sum modulo 2^64 of words times odd weights.

    It uses integers only, so every device gives the same. An odd weight has an inverse modulo 2^64, so no change of a
    single word cancels out.
    """
    words = tensor.detach().contiguous().flatten()
    # The bits as integers: sums of floats would depend on the order, and NaN would hide every difference.
    words = words.view(_WORDS[words.element_size()])
    # int64 arithmetic wraps around in torch, on every device: that is the modulo 2^64.
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for start in range(0, len(words), _WORDS_AT_ONCE):
        part = words[start : start + _WORDS_AT_ONCE].to(torch.int64)
        index = torch.arange(start, start + len(part), dtype=torch.int64, device=part.device)
        weights = index * _GOLDEN | 1
        total += (part * weights).sum()
    return total


def to_wire(tensor: torch.Tensor) -> np.ndarray:
    """Return a contiguous copy of the tensor's bits. The tensor may be freed or trained on as soon as this returns."""
    # `copy=True`, because a tensor on the CPU would otherwise share its memory with the array.
    tensor = tensor.detach().to("cpu", copy=True).contiguous()
    return tensor.view(_WIRE.get(tensor.dtype, tensor.dtype)).numpy()


def from_wire(array: np.ndarray, dtype: str) -> torch.Tensor:
    """Return the tensor that an array of `to_wire` stands for.

    It shares memory with the array, which may be read-only: only read it.
    """
    with warnings.catch_warnings():
        # Arrays out of Ray's object store are read-only and torch warns about each; loaders only read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(getattr(torch, dtype))


def _same(bucket: Bucket) -> Any:
    return bucket


def pack_weights(
    tensors: Iterable[tuple[str, torch.Tensor]],
    bucket_bytes: int,
    *,
    version: int,
    kind: Literal["full", "adapter"] = "full",
    lora: Mapping | None = None,
    base: str = "",
    put: Callable[[Bucket], T] = _same,
) -> tuple[Manifest, list[T]]:
    """Split named tensors into buckets of about `bucket_bytes` and describe them.

    Args:
        tensors: (name, tensor) pairs under Hugging Face names; consumed once, in order, so a generator that gathers
            one shard at a time has at most one bucket in memory. A tied output head must be named explicitly: without
            it the receiver's head silently stays the old one.
        bucket_bytes: a bucket is closed when it reaches this size; a larger tensor has a bucket of its own.
        put: called with each finished bucket, e.g. `ray.put`; its results are returned.

    Raises:
        ContractError: for a name that occurs twice.
    """
    infos: dict[str, TensorInfo] = {}
    results: list[T] = []
    bucket: Bucket = {}
    filled = total = 0
    for name, tensor in tensors:
        array, dtype = to_wire(tensor), _name_of(tensor.dtype)
        # Handed over before the next tensor is added, so that at most one bucket is in memory.
        if bucket and filled + array.nbytes > bucket_bytes:
            results.append(put(bucket))
            bucket, filled = {}, 0
        if name in infos:
            raise ContractError("every tensor once", f"{name!r} twice", "Publish each parameter under one name.")
        infos[name] = TensorInfo(tuple(array.shape), dtype, checksum(name, dtype, array))
        bucket[name] = array
        filled += array.nbytes
        total += array.nbytes
    if bucket:
        results.append(put(bucket))
    settings = dict(lora) if lora is not None else None
    return Manifest(version, kind, infos, settings, total, base), results


def unpack_weights(manifest: Manifest, buckets: Iterable[Bucket]) -> Bucket:
    """Return verified arrays by name, in the manifest's order; `from_wire` makes tensors of them.

    They share memory with the buckets: only read them.

    Raises:
        ContractError: for a tensor that is missing, unexpected or different from the manifest; it names the first.
    """
    arrays: Bucket = {}
    for bucket in buckets:
        arrays.update(bucket)
    verify(manifest, arrays)
    # Only now, after every array has been checked: a damaged transfer must leave the old version in place.
    return {name: arrays[name] for name in manifest.tensors}


def verify(manifest: Manifest, arrays: Bucket) -> None:
    """Check every array against the manifest.

    Raises:
        ContractError: see `unpack_weights`.
    """
    _check_names(manifest, arrays)

    def problem_of(name: str) -> str | None:
        return _problem(name, manifest.tensors[name], arrays[name])

    # crc32 releases the interpreter lock, so threads help.
    with ThreadPoolExecutor(_HASH_THREADS) as pool:
        for problem in pool.map(problem_of, manifest.tensors):
            if problem:
                raise _refusal(manifest, problem)


def verify_tensors(manifest: Manifest, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check tensors that came from device to device against the manifest, by their `word_sum`.

    Raises:
        ContractError: see `unpack_weights`.
    """
    _check_names(manifest, tensors)
    # All sums are started before the first is read, so that a GPU computes them without a pause between them.
    sums = {name: word_sum(tensor) for name, tensor in tensors.items()}
    for name, info in manifest.tensors.items():
        shape, dtype = tuple(tensors[name].shape), _name_of(tensors[name].dtype)
        if (shape, dtype) != (info.shape, info.dtype):
            raise _refusal(manifest, f"tensor {name!r} as {dtype} {shape} instead of {info.dtype} {info.shape}")
        actual = int(sums[name])
        if actual != info.checksum:
            raise _refusal(manifest, _other_sum(name, actual, info.checksum))


def _check_names(manifest: Manifest, tensors: Mapping) -> None:
    """Raise ContractError unless the tensors are those of the manifest."""
    missing = manifest.tensors.keys() - tensors.keys()
    unexpected = tensors.keys() - manifest.tensors.keys()
    for names, word in ((missing, "missing"), (unexpected, "unexpected")):
        if names:
            raise _refusal(manifest, f"tensor {min(names)!r} {word} ({len(names)} in all)")


def _other_sum(name: str, actual: int, expected: int) -> str:
    """Describe a wrong checksum; a `word_sum` is signed, so both are shown modulo 2^64."""
    return f"tensor {name!r} with checksum {actual & 2**64 - 1:08x} instead of {expected & 2**64 - 1:08x}"


def _problem(name: str, info: TensorInfo, array: np.ndarray) -> str | None:
    """Return what is wrong with one array, or None."""
    dtype = _wire_dtype(info.dtype)
    if tuple(array.shape) != info.shape or array.dtype != dtype:
        return f"tensor {name!r} as {array.dtype} {tuple(array.shape)} instead of {dtype} {info.shape}"
    actual = checksum(name, info.dtype, array)
    if actual != info.checksum:
        return _other_sum(name, actual, info.checksum)
    return None


def _name_of(dtype: torch.dtype) -> str:
    """Return the name of a torch dtype, e.g. `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def _wire_dtype(dtype: str) -> np.dtype:
    """Return the numpy dtype in which a tensor of a torch dtype is sent."""
    torch_dtype = getattr(torch, dtype)
    return np.dtype(_name_of(_WIRE.get(torch_dtype, torch_dtype)))


def _refusal(manifest: Manifest, found: str) -> ContractError:
    """Return the error for weights that differ from their manifest."""
    return ContractError(
        f"weights as listed in the manifest of version {manifest.version}",
        found,
        "Publish again; if it repeats, replace the actor or look at the transport between learner and rollout.",
    )
