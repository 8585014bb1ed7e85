"""One rank of the learner group, without Ray: forwards, and optimizer steps of any objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from learners.collectives import RankCollectives
from learners.counters import WorkCounters
from learners.outputs import LossOutput, StepOutput
from learners.roles import Role, build_roles
from learners.schedule import learning_rate
from learners.spec import LearnerSpec
from rlaif.errors import ContractError, NumericsError, named
from rlaif.models.batch import Batch, collate
from rlaif.models.encode import Encoded, Encoder
from rlaif.models.packing import pack, split_to
from rlaif.models.video_features import Frames
from rlaif.models.vision import SharedFeatures, Vision, VisionCache
from rlaif.models.vlm import Output
from rlaif.objectives.metrics import DeviceMetrics, Metrics, merge, read_metrics
from rlaif.seeds import derive

Unit = tuple[Encoded, ...]
"""Sequences that must share a micro-batch: one for SFT and PPO, (chosen, rejected) for preferences."""

Units = Sequence[Unit]

Items = Sequence[Encoded]

Groups = list[list[int]]
"""Micro-batches: the indices of the units of each."""

Loss = Callable[[dict[str, Tensor], Batch, float], LossOutput]
"""(model outputs, batch, denominator) -> this micro-batch's share of the step's loss, and what it reports."""


@dataclass(frozen=True)
class Objective:
    """What an optimizer step minimises."""

    output: Output
    """The model output that the loss reads."""
    loss: Loss
    count: Callable[[Unit], float]
    """How many tokens or pairs a unit contributes: their sum over all ranks is the loss's denominator."""


class Learner:
    """Roles, engines and encoders of one rank; `torch.distributed` must be initialised."""

    def __init__(self, spec: LearnerSpec, frames: Frames, device: torch.device, features: SharedFeatures | None = None):
        self.spec = spec
        self.frames = frames
        self.device = device
        self.collectives = RankCollectives(device)
        self.roles = build_roles(spec, device)
        self._encoders: dict[str, Encoder] = {}
        self.vision = VisionCache(spec.feature_cache_bytes, features)
        self.counters = WorkCounters()

    def encoder(self, role: str) -> Encoder:
        """Return tokenizer and processor of a role's base; roles of one base share it."""
        base = self.roles[role].spec.base
        if base not in self._encoders:
            spec = self.spec
            self._encoders[base] = Encoder(base, self.frames, spec.feature_cache_bytes, spec.model.dtype)
        return self._encoders[base]

    @torch.no_grad()
    def infer(self, role: str, items: Items, output: Output, pixels: bool = False) -> list[np.ndarray]:
        """Return `output` of each item, in order: [T] arrays for `logprobs` and `values`; scalars, or [K] of K heads, for `score`.

        pixels: send videos through the tower, also those whose features are in a cache.
        Every rank must call it together: ranks run the same number of forwards. What is scored in one forward depends on
        this rank's items alone, as in a reward actor, so that both get the same bits.
        """
        target = self.roles[role]
        # a step leaves dropout on
        target.module.eval()
        results: list[np.ndarray | None] = [None] * len(items)
        self.counters.inferred += len(items)
        units = [(item,) for item in items]
        groups, spare = self._microbatches(units, divide=output != "score")
        for group in groups:
            members = _pick(units, group)
            batch = self._collate(role, members or [spare], pixels)
            self.counters.count(batch, _items(members))
            outputs = target.forward(batch, output, self.spec.temperature)
            values = outputs[output].cpu().numpy()
            for row, index in enumerate(group):
                item = items[index]
                length = len(item.ids) - item.start
                results[index] = values[row] if output == "score" else values[row][:length]
        return results

    def step(self, role: str, units: Units, objective: Objective, at: int | None = None) -> StepOutput:
        """Take one optimizer step over all ranks' units.

        at: place in the learning rate's schedule, of `total_steps`; None: the role's steps so far.
        The loss is normalised by the count over all ranks and micro-batches, so that how the batch is split never
        changes the gradient. A rank may have no units, the group may not: then ContractError, on every rank.
        Returns this rank's metrics. A step whose gradient is not finite changes nothing and is counted; NumericsError,
        on every rank, after more than `optim.max_skipped_steps` of them in a row.
        """
        target = self.roles[role]
        target.engine.train()
        # dropout is a function of run seed, step and rank, so that a resumed run draws the same
        seed = derive(self.spec.seed, "dropout", role, target.steps, dist.get_rank())
        torch.manual_seed(seed)
        denominator = self._denominator(role, [objective.count(unit) for unit in units])
        rate = self._set_learning_rate(target, target.steps if at is None else at)
        groups, spare = self._microbatches(units)
        outputs: list[LossOutput] = []
        for number, group in enumerate(groups):
            # DeepSpeed would count micro-batches itself, but their number varies from step to step
            target.engine.set_gradient_accumulation_boundary(number == len(groups) - 1)
            members = _pick(units, group)
            batch = self._collate(role, members or [spare])
            self.counters.count(batch, _items(members))
            # a rank that has run out of units still runs its share of forwards, whose gradient is zero
            share = float(bool(group)) * self.collectives.world
            # backward before anything else runs on the module: gradient checkpointing computes the forward again, under
            # the adapter that is active by then, and another role's would give a wrong gradient without an error
            with self.counters.phase("forward"):
                predicted = target.forward(batch, objective.output, self.spec.temperature)
                result = objective.loss(predicted, batch, denominator)
            with self.counters.phase("backward"):
                target.engine.backward(result.loss * share, scale_wrt_gas=False)
            # without the graph, which the list would keep until the last micro-batch
            outputs.append(replace(result, loss=result.loss.detach()))
        with self.counters.phase("optimizer"):
            target.engine.step()
        # also of forwards without a unit of this rank: they are in the quantiles, but not in the metrics
        ratios = tuple(part.ratios for part in outputs if part.ratios is not None)
        # the same on every rank: DeepSpeed has left the weights as they were
        if target.engine.optimizer.overflow:
            suspects = _suspects(units, groups, outputs)
            metrics = self._count_skipped(target, suspects, _names(units))
        else:
            reports = _reports(groups, outputs)
            metrics = self._count_step(target, rate, reports)
        return StepOutput(metrics, ratios)

    def _denominator(self, role: str, counts: Sequence[float]) -> float:
        """Return the sum of the counts of all ranks; ContractError, on every rank, if it is zero."""
        (denominator,) = self.collectives.sum(sum(counts))
        if not denominator:
            raise ContractError(
                f"something to train role {role!r} on in every step",
                "nothing on any rank",
                "Use larger batches, or data whose videos decode.",
            )
        return denominator

    def _set_learning_rate(self, target: Role, at: int) -> float:
        """Set the rate of every parameter group for step `at`; return the rate before a group's own factor."""
        rate = learning_rate(target.spec.optim, at, target.spec.total_steps)
        for group in target.engine.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        return rate

    def _count_step(self, target: Role, rate: float, reports: Sequence[DeviceMetrics]) -> Metrics:
        """Count a step that had an effect; return its metrics and those of its micro-batches."""
        target.steps += 1
        target.skipped = 0
        norm = float(target.engine.get_global_grad_norm() or 0.0)
        step_metrics = {"grad_norm": (norm, 1.0), "lr": (rate, 1.0), "skipped_steps": (0.0, 1.0)}
        return merge([read_metrics(*reports), step_metrics])

    def _count_skipped(self, role: Role, suspects: list[str], present: list[str]) -> Metrics:
        """Count a step without effect; NumericsError, on every rank, when there were too many in a row.

        The error names this rank's `suspects` and the other ranks', or everything `present` if no rank has a suspect.
        """
        role.skipped += 1
        if role.skipped > role.spec.optim.max_skipped_steps:
            reports = self.collectives.gather_objects((suspects, present))
            all_suspects: set[str] = set()
            all_present: set[str] = set()
            for rank_suspects, rank_present in reports:
                all_suspects.update(rank_suspects)
                all_present.update(rank_present)
            names = sorted(all_suspects or all_present)
            raise NumericsError(
                f"finite gradients for role {role.spec.name!r}",
                f"{role.skipped} steps in a row that are not; in the last one: {named(names)}",
                "Lower the learning rate, set model.dtype=float32, or correct those samples; --resume continues from the last checkpoint.",
            )
        return {"skipped_steps": (1.0, 1.0)}

    def _microbatches(self, units: Units, divide: bool = True) -> tuple[Groups, Unit | None]:
        """Return groups of indices, as many on every rank, and a unit for an empty group to run its forward on.

        divide: if other ranks have more groups, divide this rank's before any is left empty.

        The result for that unit is not used, but ranks must run the same number of forwards. It is one of this call's
        units: it has the members and extras that the objective reads. A rank without units borrows another rank's.
        """
        lengths = [_padded_length(unit) for unit in units]
        groups = pack(lengths, self.spec.tokens_per_microbatch)
        shortest = min(range(len(units)), key=lengths.__getitem__, default=None)
        spare = None if shortest is None else units[shortest]
        # one collective for both questions: the largest number of groups, and whether any rank has nothing to run
        count, starved = self.collectives.max(len(groups), not units)
        if starved and count:
            offers = self.collectives.gather_objects(spare)
            spare = next(unit for unit in offers if unit is not None)
        if divide:
            return split_to(groups, count), spare
        # a division would depend on what other ranks have, and scores on how a group is divided
        while len(groups) < count:
            groups.append([])
        return groups, spare

    def _collate(self, role: str, units: Units, pixels: bool = False) -> Batch:
        """Collate first members of all units, then second members, and so on: halves of a preference batch stay halves."""
        items: list[Encoded] = []
        for members in zip(*units, strict=True):
            items += members
        encoder = self.encoder(role)
        pad_id = encoder.tokenizer.pad_token_id
        if pad_id is None:
            # nothing attends to padding, so that any token will do
            pad_id = encoder.eos_id
        vision = None if pixels else self._vision(role, items)
        return collate(items, pad_id, self.device, vision=vision)

    def _vision(self, role: str, items: Items) -> Vision | None:
        """Return what the role's frozen tower makes of the items' videos, each computed once; None if the tower trains."""
        target = self.roles[role]
        videos = [item.video for item in items if item.video is not None]
        if target.tower_frozen:
            causal = target.module.causal
            return self.vision.for_batch(causal, target.tower, videos, self.device)
        self.vision.seen(target.tower, videos)
        return None


def _pick(units: Units, group: Sequence[int]) -> list[Unit]:
    return [units[index] for index in group]


def _padded_length(unit: Unit) -> int:
    """Return the positions that a unit takes in a batch of its own."""
    longest = max(len(item.ids) for item in unit)
    return longest * len(unit)


def _items(units: Units) -> list[Encoded]:
    """Return the sequences of all units, in order."""
    items: list[Encoded] = []
    for unit in units:
        items += unit
    return items


def _names(units: Units) -> list[str]:
    return [item.name for item in _items(units)]


def _reports(groups: Groups, outputs: Sequence[LossOutput]) -> list[DeviceMetrics]:
    """Return the metrics of all micro-batches but those that only kept other ranks company."""
    reports: list[DeviceMetrics] = []
    for group, part in zip(groups, outputs, strict=True):
        if group:
            reports.append(part.metrics)
    return reports


def _suspects(units: Units, groups: Groups, outputs: Sequence[LossOutput]) -> list[str]:
    """Return the names of the sequences in micro-batches whose loss is not finite."""
    losses = torch.stack([part.loss for part in outputs])
    finite = torch.isfinite(losses).tolist()
    names: list[str] = []
    for group, good in zip(groups, finite, strict=True):
        if not good:
            names += _names(_pick(units, group))
    return names
