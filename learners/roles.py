"""Networks and DeepSpeed engines of one rank.

With adapters, all roles on one base share its frozen weights: every trained role has an engine of its own that owns
its adapter and head, used strictly as activate -> forward -> backward -> step. (One engine for two adapters trains the
wrong weights silently; see docs/architecture.md.) With full weights every role is a module of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn

from learners.spec import LearnerSpec, RoleSpec
from rlaif.models.batch import Batch
from rlaif.models.vision import tower_key
from rlaif.models.vlm import Output, VideoLM, freeze_for_full_training, load_adapter, load_vlm


@dataclass
class Role:
    """A network as its objective sees it."""

    spec: RoleSpec
    module: VideoLM
    adapter: str | None
    engine: deepspeed.DeepSpeedEngine | None = None
    steps: int = 0
    skipped: int = 0
    """Steps in a row that were skipped because their gradient was not finite."""
    tower: str = ""
    """`tower_key` of a tower and projector that stay as they are, whole on this rank; else the role's name."""

    @property
    def tower_frozen(self) -> bool:
        return self.tower != self.spec.name

    def forward(self, batch: Batch, output: Output, temperature: float = 1.0) -> dict[str, Tensor]:
        self.module.activate(self.adapter)
        head = None if self.spec.head == "none" else self.spec.name
        return (self.engine or self.module)(batch, output, head=head, temperature=temperature)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name; an adapter's are only its own."""
        self.module.activate(self.adapter)
        mine = lambda name: self.adapter is None or "lora_" not in name or f".{self.adapter}." in name  # noqa: E731
        heads = f"heads.{self.spec.name}."
        return {
            name: parameter
            for name, parameter in self.module.named_parameters()
            if parameter.requires_grad and mine(name) and (not name.startswith("heads.") or name.startswith(heads))
        }


def build_roles(spec: LearnerSpec, device: torch.device) -> dict[str, Role]:
    """All roles of a rank, engines started. Every rank must build the same roles in the same order."""
    roles = {}
    for base, members in _by_module(spec.roles):
        module = _build_module(base, members, spec).to(device)
        for role in members:
            roles[role.name] = Role(role, module, role.name if role.lora else None)
    for name in [role.name for role in spec.roles]:
        _start_engine(roles[name], spec)
    for role in roles.values():
        _claim(role)
        role.tower = tower_key(role.module.causal) if _keeps_tower(role) else role.spec.name
    return roles


def _keeps_tower(role: Role) -> bool:
    """Whether what the tower makes of a video may be kept. Under ZeRO-3 a forward is a collective, a look-up is not."""
    trains = (
        role.spec.optim is not None and role.adapter is None and (role.spec.train_vision or role.spec.train_projector)
    )
    return not trains and not any(hasattr(parameter, "ds_id") for parameter in role.module.parameters())


def _by_module(roles: tuple[RoleSpec, ...]) -> list[tuple[str, list[RoleSpec]]]:
    """Roles grouped by the module they live in: adapters and frozen references share one per base."""
    shared = {role.base for role in roles if role.lora}
    groups: dict[tuple, list[RoleSpec]] = {}
    for role in roles:
        sharing = role.lora or (role.optim is None and role.base in shared)
        groups.setdefault((role.base, "" if sharing else role.name), []).append(role)
    return [(base, members) for (base, _), members in groups.items()]


def _build_module(base: str, members: list[RoleSpec], spec: LearnerSpec) -> VideoLM:
    full = next((role for role in members if role.lora is None), None)
    start = full.start if full and full.start and not any(role.lora for role in members) else None
    model = load_vlm(start or base, spec.model.dtype, spec.model.attention)
    adapters = {role.name: role.lora for role in members if role.lora}
    heads = {role.name: role.outputs for role in members if role.head != "none"}
    torch.manual_seed(spec.seed)  # adapters and reward heads start alike on every rank
    module = VideoLM(model, heads, adapters)
    for role in members:
        if role.head == "reward":
            init_reward_head(module.heads[role.name].weight, role.head_init)
        if role.lora and role.start:
            load_adapter(module, role.name, role.start)
    if not adapters:
        trained = members[0].optim is not None
        freeze_for_full_training(
            model, members[0].train_vision, members[0].train_projector
        ) if trained else model.requires_grad_(False)
    if spec.model.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return module


def init_reward_head(weight: Tensor, init: str) -> None:
    """Fill a head's weight [K, H]: `normal` with deviation 1 / (H + 1), or `uniform` as torch's linear layers start."""
    hidden = weight.shape[1]
    if init == "uniform":
        nn.init.uniform_(weight, -(hidden**-0.5), hidden**-0.5)
    else:
        nn.init.normal_(weight, std=1.0 / (hidden + 1))


def _start_engine(role: Role, spec: LearnerSpec) -> None:
    if role.spec.optim is None:
        role.module.eval()
        return
    optim = role.spec.optim
    groups = parameter_groups(role)
    optimizer = torch.optim.AdamW(
        groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
    )
    role.engine, *_ = deepspeed.initialize(
        model=role.module,
        model_parameters=[parameter for group in groups for parameter in group["params"]],
        optimizer=optimizer,
        config=_deepspeed_config(optim.max_grad_norm, spec),
    )
    _make_moments(role.engine.optimizer)


def parameter_groups(role: Role) -> list[dict]:
    """A trained role's parameters, those of its projector apart where `optim.projector_lr` gives them a rate of their own.

    `factor`: what the schedule's rate is multiplied by in a group.
    """
    optim, params = role.spec.optim, list(role.trainable().values())
    if optim.projector_lr is None:
        return [{"params": params, "factor": 1.0}]
    causal, paths = role.module.causal, role.module.family.projector
    projector = {id(parameter) for path in paths for parameter in attrgetter(path)(causal).parameters()}
    inside = [parameter for parameter in params if id(parameter) in projector]
    others = [parameter for parameter in params if id(parameter) not in projector]
    groups = [{"params": others, "factor": 1.0}, {"params": inside, "factor": optim.projector_lr / optim.lr}]
    return [group for group in groups if group["params"]]


def _claim(role: Role) -> None:
    """Under ZeRO-3 every engine links its whole module to its own optimizer, also what another engine trains."""
    for parameter in role.trainable().values() if role.engine else ():
        parameter._z3_optimizer = role.engine.optimizer


def _make_moments(sharded: Any) -> None:
    """Adam's state, which torch would make at the first step: a checkpoint may be read or written before that."""
    inner = sharded.optimizer
    flat = getattr(sharded, "fp32_partitioned_groups_flat", None) or sharded.single_partition_of_fp32_groups
    for part in flat:
        zeros = {name: torch.zeros_like(part) for name in ("exp_avg", "exp_avg_sq")}
        inner.state[part] = {"step": torch.zeros((), dtype=torch.float32), **zeros}
    if hasattr(sharded, "_lazy_init_hp_params_optimizer_state"):  # ZeRO-1 and 2 look states up through the parameters
        sharded._lazy_init_hp_params_optimizer_state()


def _deepspeed_config(max_grad_norm: float, spec: LearnerSpec) -> dict:
    zero = {"stage": spec.cluster.zero_stage, "overlap_comm": torch.cuda.is_available(), "contiguous_gradients": True}
    if spec.cluster.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": spec.model.dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
