"""A role's weights and optimizer state by parameter name, as safetensors, independent of the number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn

from learners.roles import Role
from rlaif.errors import CheckpointError
from rlaif.io.tensors import load_json, load_tensors, save_json, save_tensors
from rlaif.models.model_dir import ModelDir

# Not DeepSpeed's own `load_checkpoint`: it unpickles, and a pickle runs whatever its author wrote into it.

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's, by torch's names."""


def save_role(role: Role, folder: Path | None) -> None:
    """Save trained weights (float32 masters), Adam moments and step count; a frozen base is not saved.

    Collective; the rank that is called with a folder (one of them) writes.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in role.trainable().items():
        whole = {f"weight/{name}": safe_get_full_fp32_param(parameter)}
        for moment in MOMENTS:
            whole[f"{moment}/{name}"] = safe_get_full_optimizer_state(parameter, moment)
        if folder is None:
            continue
        # to the host at once, so that the device holds one parameter's state at a time
        for key, tensor in whole.items():
            tensors[key] = tensor.cpu()
    if folder is None:
        return
    save_tensors(folder / f"{role.spec.name}.safetensors", tensors)
    save_json(folder / f"{role.spec.name}.json", _meta(role))


def _meta(role: Role) -> dict:
    """Return what a checkpoint says of a role besides its tensors."""
    base = ModelDir(role.spec.base).fingerprint
    return {"steps": role.steps, "skipped": role.skipped, "base": base}


def load_role(role: Role, folder: Path) -> None:
    """Load saved weights and optimizer state into a started engine, of any number of ranks. Collective.

    Raises CheckpointError, which names the first parameter that is missing or of another shape, or the other base.
    """
    meta = load_json(folder / f"{role.spec.name}.json")
    base = ModelDir(role.spec.base).fingerprint
    if meta["base"] != base:
        raise CheckpointError(
            f"a checkpoint of role {role.spec.name!r} on {role.spec.base} ({base})",
            f"one on another base ({meta['base']})",
            "Resume with the model that the checkpoint was made on (of a critic: `ppo.reward`, `ppo.critic_init`).",
        )
    tensors = load_tensors(folder / f"{role.spec.name}.safetensors")
    parameters = role.trainable()
    # before anything is set: a checkpoint that does not fit must leave the role as it is
    _check_shapes(role, parameters, tensors)
    for name, parameter in parameters.items():
        _set_weight(parameter, tensors[f"weight/{name}"].to(parameter.device))
        for moment in MOMENTS:
            _set_moment(parameter, tensors[f"{moment}/{name}"].to(parameter.device), moment)
    role.steps = int(meta["steps"])
    role.skipped = int(meta["skipped"])
    # Adam's bias correction counts steps: without it the next step would not be the uninterrupted run's
    for state in _inner_optimizer(role).state.values():
        state["step"] = torch.full_like(state["step"], float(role.steps))


def _check_shapes(role: Role, parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless the tensors have the names and shapes of the parameters."""
    saved: dict[str, torch.Size] = {}
    for key, tensor in tensors.items():
        if key.startswith("weight/"):
            saved[key.removeprefix("weight/")] = tensor.shape
    # a sharded parameter is empty here; `ds_shape` is that of the whole one
    expected: dict[str, torch.Size] = {}
    for name, parameter in parameters.items():
        expected[name] = getattr(parameter, "ds_shape", parameter.shape)
    if saved == expected:
        return
    different = set(saved.items()) ^ set(expected.items())
    (odd, _), *_ = sorted(different)
    raise CheckpointError(
        f"a checkpoint of role {role.spec.name!r} on {role.spec.base} with {len(expected)} trained tensors",
        f"{len(saved)} tensors; {odd!r} is {tuple(saved.get(odd, ())) or 'missing'} there "
        f"and {tuple(expected.get(odd, ())) or 'missing'} here",
        "Resume with the model, adapter rank and trained parts that the checkpoint was written with.",
    )


def _set_weight(parameter: nn.Parameter, value: Tensor) -> None:
    """Set both the weight that the forward uses and the float32 one that the optimizer steps."""
    if not _sharded(parameter):
        parameter.data.copy_(value)
        safe_set_full_fp32_param(parameter, value)
        return
    # rank 0's copy is what the others receive when the parameter is sharded again
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(value)
    safe_set_local_fp32_param(parameter, _shard(parameter, value))


def _set_moment(parameter: nn.Parameter, value: Tensor, moment: str) -> None:
    if _sharded(parameter):
        safe_set_local_optimizer_state(parameter, _shard(parameter, value), moment)
    else:
        safe_set_full_optimizer_state(parameter, value, moment)


def _shard(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Return this rank's part of a tensor under ZeRO-3: equal parts, the last one padded."""
    size = parameter.ds_tensor.numel()
    padded = value.new_zeros(size * dist.get_world_size())
    padded[: value.numel()] = value.flatten()
    start = size * dist.get_rank()
    return padded[start : start + size]


def _sharded(parameter: nn.Parameter) -> bool:
    """Return whether ZeRO-3 has cut the parameter into shards: DeepSpeed marks those with `ds_id`."""
    return hasattr(parameter, "ds_id")


def _inner_optimizer(role: Role) -> torch.optim.Optimizer:
    # ZeRO wraps torch's optimizer in one of its own
    return getattr(role.engine.optimizer, "optimizer", role.engine.optimizer)


def named_weights(role: Role) -> Iterator[tuple[str, Tensor]]:
    """Yield (Hugging Face name, tensor) of what a rollout engine needs: an adapter's tensors, or the whole causal model.

    Tied output heads are named explicitly. Collective under ZeRO-3; use each tensor before the next one is yielded.
    """
    if role.adapter is not None:
        yield from _adapter_weights(role)
        return
    # parameter by parameter: under ZeRO-3 the module's own `state_dict` holds empty shards
    causal = role.module.causal
    names: set[str] = set()
    for name, parameter in causal.named_parameters():
        names.add(name)
        with _gathered(parameter):
            yield name, parameter.detach()
    # vLLM keeps a tied head of its own: if only the embeddings were sent, its old head would silently stay
    head = causal.get_output_embeddings()
    if head is not None and "lm_head.weight" not in names:
        with _gathered(head.weight):
            yield "lm_head.weight", head.weight.detach()


def _adapter_weights(role: Role) -> Iterator[tuple[str, Tensor]]:
    """Yield an adapter's tensors by the names that PEFT saves, without the adapter's own name in them."""
    for name, parameter in role.trainable().items():
        if name.startswith("heads."):
            continue
        with _gathered(parameter):
            saved_name = name.removeprefix("model.").replace(f".{role.adapter}.", ".")
            yield saved_name, parameter.detach()


def published_weights(role: Role) -> Iterator[tuple[str, Tensor]]:
    """Yield `named_weights` under the names by which the rollout engine loads them. Collective under ZeRO-3."""
    family = role.module.family
    for name, tensor in named_weights(role):
        yield name if role.adapter is not None else family.engine_name(name), tensor


def head_weights(role: Role) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a role's scalar head, nothing for a role without one. Collective under ZeRO-3."""
    if role.spec.head == "none":
        return
    head = role.module.heads[role.spec.name]
    for name, parameter in head.named_parameters():
        with _gathered(parameter):
            yield name, parameter.detach()


def _gathered(parameter: nn.Parameter) -> AbstractContextManager:
    """Hold the whole parameter inside the `with` block: under ZeRO-3 it is an empty shard otherwise."""
    return deepspeed.zero.GatheredParameters([parameter]) if _sharded(parameter) else nullcontext()
