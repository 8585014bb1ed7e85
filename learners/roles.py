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
from transformers import PreTrainedModel

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
    """Name of the role's adapter in a module that may have several."""
    engine: deepspeed.DeepSpeedEngine | None = None
    """None: a frozen network."""
    steps: int = 0
    """Optimizer steps that had an effect."""
    skipped: int = 0
    """Steps in a row that were skipped because their gradient was not finite."""
    tower: str = ""
    """`tower_key` of a tower and projector that stay as they are, whole on this rank; else the role's name."""

    @property
    def tower_frozen(self) -> bool:
        """Return whether what the tower makes of a video may be kept and shared."""
        return self.tower != self.spec.name

    def forward(self, batch: Batch, output: Output, temperature: float = 1.0) -> dict[str, Tensor]:
        """Run the role's adapter and head on a batch, through the engine if the role is trained."""
        self.module.activate(self.adapter)
        head = None if self.spec.head == "none" else self.spec.name
        network = self.engine or self.module
        return network(batch, output, head=head, temperature=temperature)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return trained parameters by name; an adapter's are only its own."""
        # PEFT's `set_adapter` switches `requires_grad` on for the active adapter and off for all others
        self.module.activate(self.adapter)
        trained: dict[str, nn.Parameter] = {}
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad and self._owns(name):
                trained[name] = parameter
        return trained

    def _owns(self, name: str) -> bool:
        """Return whether a parameter of the module is not another role's adapter or head."""
        if name.startswith("heads."):
            return name.startswith(f"heads.{self.spec.name}.")
        return self.adapter is None or "lora_" not in name or f".{self.adapter}." in name


def build_roles(spec: LearnerSpec, device: torch.device) -> dict[str, Role]:
    """Build all roles of a rank and start their engines. Every rank must build the same roles in the same order."""
    roles: dict[str, Role] = {}
    for base, members in _by_module(spec.roles):
        module = _build_module(base, members, spec).to(device)
        for member in members:
            adapter = member.name if member.lora else None
            roles[member.name] = Role(member, module, adapter)
    for role_spec in spec.roles:
        _start_engine(roles[role_spec.name], spec)
    # after all engines have started: each of them links the parameters of its module, and may shard the tower
    for role in roles.values():
        _claim_parameters(role)
        role.tower = role.spec.name
        if _tower_stays(role):
            role.tower = tower_key(role.module.causal)
    return roles


def _tower_stays(role: Role) -> bool:
    """Return whether the tower's output for a video stays the same and may be kept."""
    spec = role.spec
    whole_model = spec.optim is not None and role.adapter is None
    trains = whole_model and (spec.train_vision or spec.train_projector)
    # under ZeRO-3 (`ds_id`) a forward is a collective: a rank that found a video in its cache would skip it alone
    sharded = any(hasattr(parameter, "ds_id") for parameter in role.module.parameters())
    return not trains and not sharded


def _by_module(roles: tuple[RoleSpec, ...]) -> list[tuple[str, list[RoleSpec]]]:
    """Group roles by the module that they use: adapters and frozen references share one per base."""
    adapted_bases = {role.base for role in roles if role.lora}
    groups: dict[tuple[str, str], list[RoleSpec]] = {}
    for role in roles:
        # the reference of an adapted policy is the same base with the adapters switched off
        sharing = role.lora or (role.optim is None and role.base in adapted_bases)
        key = (role.base, "" if sharing else role.name)
        groups.setdefault(key, []).append(role)
    return [(base, members) for (base, _), members in groups.items()]


def _build_module(base: str, members: list[RoleSpec], spec: LearnerSpec) -> VideoLM:
    """Build the network that the members share."""
    adapters = {role.name: role.lora for role in members if role.lora}
    heads = {role.name: role.outputs for role in members if role.head != "none"}
    start = _full_start(members) or base
    model = load_vlm(start, spec.model.dtype, spec.model.attention)
    # adapters and reward heads start alike on every rank
    torch.manual_seed(spec.seed)
    module = VideoLM(model, heads, adapters)
    for role in members:
        if role.head == "reward":
            init_reward_head(module.heads[role.name].weight, role.head_init)
        if role.lora and role.start:
            load_adapter(module, role.name, role.start)
    if not adapters:
        _freeze_parts(model, members[0])
    if spec.model.gradient_checkpointing:
        # reentrant checkpoints would need an input with a gradient, which frozen embeddings do not give
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return module


def _full_start(members: list[RoleSpec]) -> str | None:
    """Return the export whose full weights a module starts from; None for the base's, and with adapters always."""
    if any(role.lora for role in members):
        return None
    return members[0].start


def _freeze_parts(model: PreTrainedModel, role: RoleSpec) -> None:
    """Freeze what a role with full weights does not train: everything, or by `train_vision` and `train_projector`."""
    if role.optim is None:
        model.requires_grad_(False)
    else:
        freeze_for_full_training(model, role.train_vision, role.train_projector)


def init_reward_head(weight: Tensor, init: str) -> None:
    """Fill a head's weight [K, H]: `normal` with deviation 1 / (H + 1), or `uniform` as torch's linear layers start."""
    hidden = weight.shape[1]
    if init == "uniform":
        nn.init.uniform_(weight, -(hidden**-0.5), hidden**-0.5)
    else:
        nn.init.normal_(weight, std=1.0 / (hidden + 1))


def _start_engine(role: Role, spec: LearnerSpec) -> None:
    """Give a trained role its optimizer and DeepSpeed engine; a frozen one only leaves training mode."""
    optim = role.spec.optim
    if optim is None:
        role.module.eval()
        return
    # this activates the role's adapter: one that needs no gradient when DeepSpeed starts never trains, without an error
    groups = parameter_groups(role)
    parameters: list[nn.Parameter] = []
    for group in groups:
        parameters += group["params"]
    optimizer = torch.optim.AdamW(
        groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
    )
    role.engine, *_ = deepspeed.initialize(
        model=role.module,
        model_parameters=parameters,
        optimizer=optimizer,
        config=_deepspeed_config(optim.max_grad_norm, spec),
    )
    _make_moments(role.engine.optimizer)


def parameter_groups(role: Role) -> list[dict]:
    """Return a trained role's parameters as optimizer groups: with `optim.projector_lr`, its projector's are a group apart.

    `factor`: what the schedule's rate is multiplied by in a group.
    """
    optim = role.spec.optim
    parameters = list(role.trainable().values())
    if optim.projector_lr is None:
        return [{"params": parameters, "factor": 1.0}]
    projector_ids: set[int] = set()
    for path in role.module.family.projector:
        part = attrgetter(path)(role.module.causal)
        projector_ids.update(map(id, part.parameters()))
    inside = [parameter for parameter in parameters if id(parameter) in projector_ids]
    others = [parameter for parameter in parameters if id(parameter) not in projector_ids]
    factor = optim.projector_lr / optim.lr
    groups = [{"params": others, "factor": 1.0}, {"params": inside, "factor": factor}]
    # an adapter has no weights in the projector: that group would be empty
    return [group for group in groups if group["params"]]


def _claim_parameters(role: Role) -> None:
    """Link the parameters that a role trains to its own engine's optimizer.

    Under ZeRO-3 every engine links its whole module to its own optimizer, also the parameters that another engine trains.
    """
    if role.engine is None:
        return
    for parameter in role.trainable().values():
        parameter._z3_optimizer = role.engine.optimizer


def _make_moments(sharded: Any) -> None:
    """Make Adam's state now, which torch would make at the first step: a checkpoint may be read or written before that."""
    inner = sharded.optimizer
    flat = getattr(sharded, "fp32_partitioned_groups_flat", None) or sharded.single_partition_of_fp32_groups
    for part in flat:
        # torch's AdamW counts steps in a float32 tensor
        inner.state[part] = {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(part),
            "exp_avg_sq": torch.zeros_like(part),
        }
    # ZeRO-1 and 2 look states up through the parameters
    if hasattr(sharded, "_lazy_init_hp_params_optimizer_state"):
        sharded._lazy_init_hp_params_optimizer_state()


def _deepspeed_config(max_grad_norm: float, spec: LearnerSpec) -> dict:
    zero = {
        "stage": spec.cluster.zero_stage,
        "overlap_comm": torch.cuda.is_available(),
        "contiguous_gradients": True,
    }
    if spec.cluster.offload_optimizer:
        # pinned, so that the copies run beside the kernels
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {
        # `Learner.step` packs micro-batches and sets the accumulation boundary itself
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # DeepSpeed clips at 1.0 unless it is set
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "bf16": {"enabled": spec.model.dtype == "bfloat16"},
        # torch's AdamW, also with offloading: DeepSpeed's own CPU Adam would be compiled at the start
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
