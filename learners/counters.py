"""Counters of what a rank computes and where its time goes: the learner's half of the benchmark's figures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rlaif.models.batch import Batch
from rlaif.models.encode import Encoded
from rlaif.objectives.metrics import Metrics


class WorkCounters:
    """Counts since the last `reset`. On a GPU, seconds are the host's: a kernel counts in the phase that waits for it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set all counts to zero."""
        self.seconds: Counter[str] = Counter()
        """By phase: `forward`, `backward`, `optimizer`."""
        self.computed = 0
        """Positions that went through a forward."""
        self.needed = 0
        """Those of them that are not padding."""
        self.inferred = 0
        """Sequences that went through a forward outside the update."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds of the `with` block to a phase, also if the block raises."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def count(self, batch: Batch, items: Sequence[Encoded]) -> None:
        """Count one forward over `batch`, made for `items` (none: the forward only keeps this rank in step with others)."""
        self.computed += batch.ids.numel()
        for item in items:
            self.needed += len(item.ids) - item.padding

    def metrics(self, samples: int) -> Metrics:
        """Return the counts as metrics of this rank's `samples` samples; a ratio over ranks is the ratio of the sums."""
        metrics = phase_metrics(self.seconds)
        metrics["waste/padding"] = (float(self.computed), float(self.needed))
        metrics["waste/forwards_per_sample"] = (float(self.inferred), float(samples))
        return metrics


class PhaseClock:
    """Seconds by phase; each lap is counted to the phase that just ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Add the seconds since the previous lap to `phase`."""
        now = time.perf_counter()
        before = self.seconds.get(phase, 0.0)
        self.seconds[phase] = before + now - self.last
        self.last = now

    def metrics(self) -> Metrics:
        """Return `time/<phase>` of each phase."""
        return phase_metrics(self.seconds)


def phase_metrics(seconds: dict[str, float]) -> Metrics:
    """Return the metric `time/<phase>` of each phase, one observation per rank."""
    metrics: Metrics = {}
    for phase, value in seconds.items():
        metrics[f"time/{phase}"] = (value, 1.0)
    return metrics
