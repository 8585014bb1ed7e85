"""What a rank has computed and where its time went: the learner's half of the benchmark's figures."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rlaif.models.batch import Batch
from rlaif.models.encode import Encoded
from rlaif.objectives.metrics import Metrics


class Work:
    """Counts since the last `reset`. On a GPU, seconds are the host's: a kernel counts where it is waited for."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.seconds: Counter[str] = Counter()
        """By phase: `forward`, `backward`, `optimizer`."""
        self.computed = self.needed = 0
        """Positions that went through a forward, and those of them that were no padding."""
        self.inferred = 0
        """Sequences that went through a forward outside the update."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began

    def count(self, batch: Batch, items: Sequence[Encoded]) -> None:
        """A forward over `batch`, made for `items` (none: it only keeps other ranks company)."""
        self.computed += batch.ids.numel()
        self.needed += sum(len(item.ids) - item.padding for item in items)

    def metrics(self, samples: int) -> Metrics:
        """For `samples` samples of this rank; ratios over ranks are those of the sums."""
        return {
            **{f"time/{phase}": (seconds, 1.0) for phase, seconds in self.seconds.items()},
            "waste/padding": (float(self.computed), float(self.needed)),
            "waste/forwards_per_sample": (float(self.inferred), float(samples)),
        }


class Clock:
    """Seconds by phase; each lap is counted to the phase that just ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self.last
        self.last = now

    def metrics(self) -> Metrics:
        return {f"time/{phase}": (seconds, 1.0) for phase, seconds in self.seconds.items()}
