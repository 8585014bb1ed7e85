"""What the ranks of a group compute together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlaif.objectives.metrics import Metrics, merge


class RankCollectives:
    """Collectives of `torch.distributed`, which must be initialised. Every rank must call each method together.

    Tensors are on `device`: NCCL takes only tensors on the GPU, gloo those of the host.
    """

    def __init__(self, device: torch.device):
        self.device = device

    @property
    def world(self) -> int:
        """Return the number of ranks."""
        return dist.get_world_size()

    def sum(self, *values: float) -> list[float]:
        """Return the sum of each value over all ranks, in float64."""
        # counts and sums of squares over a large batch need more than float32's 24 bits
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def max(self, *values: int) -> list[int]:
        """Return the largest of each value over all ranks."""
        tensor = torch.tensor(values, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return tensor.tolist()

    def gather_objects(self, value: Any) -> list:
        """Return every rank's value, by rank. Values are pickled: keep them small."""
        values: list = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def gather_metrics(self, metrics: Metrics) -> Metrics:
        """Return the metrics of all ranks together."""
        return merge(self.gather_objects(metrics))

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows [N, ...] of all ranks one after the other, in the order of the ranks.

        Ranks may have different N, 0 included; dtype and all other dimensions must be equal.
        """
        counts = self._gather_counts(len(rows))
        longest = max(counts)
        if not longest:
            return rows
        # gloo and NCCL gather tensors of one shape only: shorter ranks pad, and the padding is cut off again
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded)
        parts: list[Tensor] = []
        for part, count in zip(gathered, counts, strict=True):
            parts.append(part[:count])
        return torch.cat(parts)

    def _gather_counts(self, count: int) -> list[int]:
        """Return every rank's `count`, by rank."""
        own = torch.tensor([count], device=self.device)
        counts = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(counts, own)
        return torch.cat(counts).tolist()
