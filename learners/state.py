"""A role's weights and optimizer state by parameter name, as safetensors, independent of the number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
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
from rlaif.models.check import fingerprint

MOMENTS = ("exp_avg", "exp_avg_sq")


def save_role(role: Role, folder: Path | None) -> None:
    """Trained weights (float32 masters), Adam moments and step count; a frozen base is not saved.

    Collective; the rank that is given a folder (one of them) writes.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in role.trainable().items():
        whole = {f"weight/{name}": safe_get_full_fp32_param(parameter)}
        whole |= {f"{moment}/{name}": safe_get_full_optimizer_state(parameter, moment) for moment in MOMENTS}
        if folder is not None:  # to the host at once, so that the device holds one parameter's state at a time
            tensors |= {key: tensor.cpu() for key, tensor in whole.items()}
    if folder is not None:
        save_tensors(folder / f"{role.spec.name}.safetensors", tensors)
        save_json(
            folder / f"{role.spec.name}.json",
            {"steps": role.steps, "skipped": role.skipped, "base": fingerprint(role.spec.base)},
        )


def load_role(role: Role, folder: Path) -> None:
    """Put saved weights and optimizer state into a started engine, of any number of ranks. Collective.

    Raises CheckpointError naming the first parameter that is missing or of another shape, or for another base.
    """
    meta = load_json(folder / f"{role.spec.name}.json")
    if meta["base"] != (base := fingerprint(role.spec.base)):
        raise CheckpointError(
            f"a checkpoint of role {role.spec.name!r} on {role.spec.base} ({base})",
            f"one on another base ({meta['base']})",
            "resume with the model that the checkpoint was made on (of a critic: ppo.reward, ppo.critic_init)",
        )
    tensors = load_tensors(folder / f"{role.spec.name}.safetensors")
    parameters = role.trainable()
    _check(role, parameters, tensors)
    for name, parameter in parameters.items():
        _set_weight(parameter, tensors[f"weight/{name}"].to(parameter.device))
        for moment in MOMENTS:
            _set_moment(parameter, tensors[f"{moment}/{name}"].to(parameter.device), moment)
    role.steps, role.skipped = int(meta["steps"]), int(meta["skipped"])
    for state in _inner_optimizer(role).state.values():
        state["step"] = torch.full_like(state["step"], float(role.steps))


def _check(role: Role, parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]) -> None:
    saved = {
        name.removeprefix("weight/"): tensor.shape for name, tensor in tensors.items() if name.startswith("weight/")
    }
    wanted = {name: getattr(parameter, "ds_shape", parameter.shape) for name, parameter in parameters.items()}
    if saved == wanted:
        return
    odd = sorted(set(saved.items()) ^ set(wanted.items()))[0][0]
    raise CheckpointError(
        f"a checkpoint of role {role.spec.name!r} on {role.spec.base} with {len(wanted)} trained tensors",
        f"{len(saved)} tensors; {odd!r} is {tuple(saved.get(odd, ())) or 'missing'} there "
        f"and {tuple(wanted.get(odd, ())) or 'missing'} here",
        "resume with the model, adapter rank and trained parts the checkpoint was written with",
    )


def _set_weight(parameter: nn.Parameter, value: Tensor) -> None:
    """Both the weight that the forward uses and the float32 one that the optimizer steps."""
    if not _sharded(parameter):
        parameter.data.copy_(value)
        safe_set_full_fp32_param(parameter, value)
        return
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(value)
    safe_set_local_fp32_param(parameter, _shard(parameter, value))


def _set_moment(parameter: nn.Parameter, value: Tensor, moment: str) -> None:
    if _sharded(parameter):
        safe_set_local_optimizer_state(parameter, _shard(parameter, value), moment)
    else:
        safe_set_full_optimizer_state(parameter, value, moment)


def _shard(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of a tensor under ZeRO-3: equal parts, the last one padded."""
    size = parameter.ds_tensor.numel()
    whole = value.new_zeros(size * dist.get_world_size())
    whole[: value.numel()] = value.flatten()
    return whole[size * dist.get_rank() :][:size]


def _sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")


def _inner_optimizer(role: Role) -> torch.optim.Optimizer:
    return getattr(role.engine.optimizer, "optimizer", role.engine.optimizer)


def named_weights(role: Role) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, tensor) of what a rollout engine needs: an adapter's tensors, or the whole causal model.

    Tied output heads are named explicitly. Collective under ZeRO-3; each tensor lives only while it is looked at.
    """
    if role.adapter is not None:
        for name, parameter in role.trainable().items():
            if not name.startswith("heads."):
                with _whole(parameter):
                    yield name.removeprefix("model.").replace(f".{role.adapter}.", "."), parameter.detach()
        return
    causal, seen = role.module.causal, set()
    for name, parameter in causal.named_parameters():
        seen.add(name)
        with _whole(parameter):
            yield name, parameter.detach()
    head = causal.get_output_embeddings()
    if head is not None and "lm_head.weight" not in seen:
        with _whole(head.weight):
            yield "lm_head.weight", head.weight.detach()


def published_weights(role: Role) -> Iterator[tuple[str, Tensor]]:
    """`named_weights` under the names by which the rollout engine loads them. Collective under ZeRO-3."""
    for name, tensor in named_weights(role):
        yield name if role.adapter is not None else role.module.family.engine_name(name), tensor


def head_weights(role: Role) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a role's scalar head, nothing for a role without one. Collective under ZeRO-3."""
    head = {} if role.spec.head == "none" else dict(role.module.heads[role.spec.name].named_parameters())
    for name, parameter in head.items():
        with _whole(parameter):
            yield name, parameter.detach()


def _whole(parameter: nn.Parameter):
    return deepspeed.zero.GatheredParameters([parameter]) if _sharded(parameter) else nullcontext()
