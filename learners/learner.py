"""One rank of the learner group, without Ray: forwards, and optimizer steps of any objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from learners.roles import Role, build_roles
from learners.spec import LearnerSpec
from learners.work import Work
from rlaif.config.schema import Optim
from rlaif.errors import ContractError, NumericsError, named
from rlaif.models.batch import Batch, collate
from rlaif.models.encode import Encoded, Encoder
from rlaif.models.packing import pack, split_to
from rlaif.models.video_features import Frames
from rlaif.models.vision import SharedFeatures, Vision, VisionCache
from rlaif.models.vlm import Output
from rlaif.objectives.metrics import Metrics, merge
from rlaif.seeds import derive

Unit = tuple[Encoded, ...]
"""Sequences that must share a micro-batch: one for SFT and PPO, (chosen, rejected) for preferences."""

Loss = Callable[[dict[str, Tensor], Batch, float], tuple[Tensor, Metrics]]
"""(model outputs, batch, denominator) -> (this micro-batch's share of the step's loss, metrics)."""


class Learner:
    """Roles, engines and encoders of one rank; `torch.distributed` must be initialised."""

    def __init__(self, spec: LearnerSpec, frames: Frames, device: torch.device, features: SharedFeatures | None = None):
        self.spec, self.frames, self.device = spec, frames, device
        self.roles = build_roles(spec, device)
        self._encoders: dict[str, Encoder] = {}
        self.vision = VisionCache(spec.feature_cache_bytes, features)
        self.work = Work()

    @cached_property
    def world(self) -> int:
        return dist.get_world_size()

    def encoder(self, role: str) -> Encoder:
        """Tokenizer and processor of a role's base; roles of one base share it."""
        base = self.roles[role].spec.base
        if base not in self._encoders:
            self._encoders[base] = Encoder(base, self.frames, self.spec.feature_cache_bytes, self.spec.model.dtype)
        return self._encoders[base]

    @torch.no_grad()
    def infer(self, role: str, items: Sequence[Encoded], output: Output, pixels: bool = False) -> list[np.ndarray]:
        """`output` of each item, in order: [T] arrays for `logprobs` and `values`; for `score` scalars, or [K] of K heads.

        pixels: send videos through the tower, whatever is known of them already.
        Every rank must call it together: ranks run the same number of forwards. What is scored in one forward depends on
        this rank's items alone, as in a reward actor, so that both get the same bits.
        """
        target = self.roles[role]
        target.module.eval()  # a step leaves dropout on
        results: list[np.ndarray | None] = [None] * len(items)
        self.work.inferred += len(items)
        groups, spare = self._microbatches([(item,) for item in items], divide=output != "score")
        for group in groups:
            batch = self._collate(role, [(items[i],) for i in group] or [spare], pixels)
            self.work.count(batch, [items[i] for i in group])
            values = target.forward(batch, output, self.spec.temperature)[output].cpu().numpy()
            for row, index in enumerate(group):
                count = len(items[index].ids) - items[index].start
                results[index] = values[row] if output == "score" else values[row][:count]
        return results

    def step(
        self,
        role: str,
        units: Sequence[Unit],
        output: Output,
        loss: Loss,
        count: Callable[[Unit], float],
        at: int | None = None,
    ) -> Metrics:
        """One optimizer step over all ranks' units; `count` says how many tokens or pairs a unit contributes.

        at: place in the learning rate's schedule, of `total_steps`; None: the role's steps so far.
        The loss is normalised by the count over all ranks and micro-batches, so that how the batch is split never
        changes the gradient. A rank may have no units, the group may not: then ContractError, on every rank.
        Returns this rank's metrics.
        """
        target = self.roles[role]
        target.engine.train()
        torch.manual_seed(derive(self.spec.seed, "dropout", role, target.steps, dist.get_rank()))
        denominator = self.all_sum(sum(count(unit) for unit in units))
        if not denominator:
            raise ContractError(
                f"something to train role {role!r} on in every step",
                "nothing on any rank",
                "Use larger batches, or data whose videos decode",
            )
        rate = learning_rate(target.spec.optim, target.steps if at is None else at, target.spec.total_steps)
        for group in target.engine.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        groups, spare = self._microbatches(units)
        metrics, suspects = [], []
        for number, group in enumerate(groups):
            target.engine.set_gradient_accumulation_boundary(number == len(groups) - 1)
            batch = self._collate(role, [units[i] for i in group] or [spare])
            self.work.count(batch, [item for i in group for item in units[i]])
            with self.work.phase("forward"):
                value, seen = loss(target.forward(batch, output, self.spec.temperature), batch, denominator)
            live = float(bool(group))  # a rank that ran out of units still runs its share of forwards
            with self.work.phase("backward"):
                target.engine.backward(value * live * self.world, scale_wrt_gas=False)
            metrics += [seen] if group else []
            suspects += [] if math.isfinite(float(value.detach())) else [item.name for i in group for item in units[i]]
        with self.work.phase("optimizer"):
            target.engine.step()
        if target.engine.optimizer.overflow:  # the same on every rank: DeepSpeed has left the weights as they were
            return self._skipped(target, suspects, [item.name for unit in units for item in unit])
        target.steps += 1
        target.skipped = 0
        norm = float(target.engine.get_global_grad_norm() or 0.0)
        return merge([*metrics, {"grad_norm": (norm, 1.0), "lr": (rate, 1.0), "skipped_steps": (0.0, 1.0)}])

    def _skipped(self, role: Role, suspects: list[str], present: list[str]) -> Metrics:
        """A step without effect is counted; NumericsError, on every rank, when there were too many in a row.

        It names this rank's `suspects` and the other ranks', or where no loss was odd everything `present`.
        """
        role.skipped += 1
        if role.skipped > role.spec.optim.max_skipped_steps:
            found: list = [None] * self.world
            dist.all_gather_object(found, (suspects, present))
            names = sorted({n for part, _ in found for n in part} or {n for _, part in found for n in part})
            raise NumericsError(
                f"finite gradients for role {role.spec.name!r}",
                f"{role.skipped} steps in a row that are not; in the last one: {named(names)}",
                "Lower the learning rate, set model.dtype=float32, or correct those samples; --resume continues from the last checkpoint",
            )
        return {"skipped_steps": (1.0, 1.0)}

    def gather(self, metrics: Metrics) -> Metrics:
        """The metrics of all ranks together."""
        parts: list[Metrics | None] = [None] * self.world
        dist.all_gather_object(parts, metrics)
        return merge(parts)

    def all_sum(self, *values: float) -> float | list[float]:
        """Sums over ranks, in float64."""
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist() if len(values) > 1 else tensor.item()

    def _microbatches(self, units: Sequence[Unit], divide: bool = True) -> tuple[list[list[int]], Unit | None]:
        """Groups of indices, as many on every rank, and a unit for an empty group to run its forward on.

        divide: where others have more, divide this rank's groups before any is left empty.

        Nobody uses what comes of that unit, but ranks must run the same number of forwards. It is one of this call's:
        it has the members and extras that the objective reads. A rank without units is lent another rank's.
        """
        lengths = [max(len(item.ids) for item in unit) * len(unit) for unit in units]
        groups = pack(lengths, self.spec.tokens_per_microbatch)
        spare = units[min(range(len(units)), key=lengths.__getitem__)] if units else None
        most = torch.tensor([len(groups), not units], device=self.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        count, starved = most.tolist()
        if starved and count:
            offers: list[Unit | None] = [None] * self.world
            dist.all_gather_object(offers, spare)
            spare = next(unit for unit in offers if unit is not None)
        return split_to(groups, count) if divide else groups + [[]] * (count - len(groups)), spare

    def _collate(self, role: str, units: Sequence[Unit], pixels: bool = False) -> Batch:
        """First members of all units, then second members, and so on: halves of a preference batch stay halves."""
        items = [unit[k] for k in range(len(units[0])) for unit in units]
        pad = self.encoder(role).tokenizer.pad_token_id
        pad = self.encoder(role).eos_id if pad is None else pad
        return collate(items, pad, self.device, vision=None if pixels else self._vision(role, items))

    def _vision(self, role: str, items: Sequence[Encoded]) -> Vision | None:
        """What the role's frozen tower makes of the items' videos, each computed once; None where the tower trains."""
        target, videos = self.roles[role], [item.video for item in items if item.video is not None]
        if target.tower_frozen:
            return self.vision.for_batch(target.module.causal, target.tower, videos, self.device)
        self.vision.seen(target.tower, videos)
        return None


def learning_rate(optim: Optim, step: int, total: int) -> float:
    """Rate of step `step` (from 0) of `total`: linear warm-up, then the schedule down to `min_lr_ratio` at `total`."""
    warmup = optim.warmup_steps or math.ceil(optim.warmup_ratio * total)
    if step < warmup:
        return optim.lr * (step + (not optim.warmup_from_zero)) / warmup
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    shape = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1.0 + math.cos(math.pi * done))}[optim.schedule]
    floor = optim.min_lr_ratio if optim.schedule != "constant" else 0.0
    return optim.lr * (floor + (1.0 - floor) * shape)
