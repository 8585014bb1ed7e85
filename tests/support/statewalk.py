"""List the state of our objects as a flat table, to find state that a checkpoint forgets."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import nn

OURS = ("actors", "cluster", "learners", "rlaif")
PLAIN = (bool, int, float, complex, str, bytes, type(None), Enum, PurePath, torch.dtype, torch.device)


def leaves(thing: Any, path: str = "", visited: dict[int, Any] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of every number, text and tensor that can be reached through our objects and torch's modules.

    Objects of other libraries are opened only if `members` names them; functions and types have no state.
    """
    # By id, with the object itself: the id of one that is gone, as lists made here are, may be that of a later one.
    visited = {} if visited is None else visited
    if isinstance(thing, PLAIN):
        yield path, thing
        return
    if isinstance(thing, torch.Tensor):
        yield path, thing.detach().float().cpu().numpy().copy() if thing.is_floating_point() else thing.cpu().numpy()
        return
    if isinstance(thing, np.ndarray):
        yield path, thing.copy()
        return
    if id(thing) in visited or isinstance(thing, (types.FunctionType, types.MethodType, type)):
        return
    visited[id(thing)] = thing
    for name, value in members(thing):
        yield from leaves(value, f"{path}.{name}" if path else name, visited)


def members(thing: Any) -> list[tuple[str, Any]]:
    """Return the names and values directly inside an object."""
    if isinstance(thing, Mapping):
        return [(str(key), value) for key, value in thing.items()]
    if isinstance(thing, (list, tuple)):
        return [(str(index), value) for index, value in enumerate(thing)]
    if isinstance(thing, (set, frozenset)):
        return [(str(index), value) for index, value in enumerate(sorted(thing, key=repr))]
    if isinstance(thing, nn.Module) and not type(thing).__module__.startswith("deepspeed"):
        return [(name, _shard(p)) for name, p in thing.named_parameters()] + list(thing.named_buffers())
    if type(thing).__module__.startswith("deepspeed"):
        return _deepspeed(thing)
    if type(thing).__module__.split(".")[0] in OURS:
        fields = [f.name for f in dataclasses.fields(thing)] if dataclasses.is_dataclass(thing) else []
        return [(name, getattr(thing, name)) for name in dict.fromkeys([*fields, *getattr(thing, "__dict__", {})])]
    return []


def _shard(parameter: torch.Tensor) -> torch.Tensor:
    """Return a parameter, or under ZeRO-3 this rank's part of it without the padding after its end."""
    if not hasattr(parameter, "ds_tensor"):
        return parameter
    size = parameter.ds_tensor.numel()
    return parameter.ds_tensor[: max(0, min(size, parameter.ds_numel - torch.distributed.get_rank() * size))]


def _deepspeed(thing: Any) -> list[tuple[str, Any]]:
    """Return an optimizer's moments, step counts and float32 masters of this rank's part, and its hyper-parameters."""
    sharded = getattr(thing, "optimizer", None)
    if sharded is None or not hasattr(sharded, "optimizer"):
        return []
    inner = sharded.optimizer
    # ZeRO-3 pads every parameter's part of its masters with what happens to be in memory; in float32 the shards are they
    masters = getattr(sharded, "single_partition_of_fp32_groups", ())
    groups = []
    for group in inner.param_groups:
        groups.append({name: value for name, value in group.items() if name != "params"})
    return [("masters", list(masters)), ("moments", list(inner.state.values())), ("groups", groups)]


def differences(one: Any, other: Any) -> list[str]:
    """Return the paths at which two objects have different values, or at which only one has a value."""
    a, b = dict(leaves(one)), dict(leaves(other))
    return sorted(path for path in a.keys() | b.keys() if path not in a or path not in b or not same(a[path], b[path]))


def same(a: Any, b: Any) -> bool:
    """Compare bit for bit; NaN equals NaN."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return type(a) is type(b) and a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    return a == b or (a != a and b != b)
