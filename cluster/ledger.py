"""The prompt ledger: the state of every sample that a run requested. A plain state machine without Ray.

    issued -> generated -> rewarded -> trained
         \\-> masked        \\-> masked

`trained` and `masked` are terminal: the sample leaves the ledger and is counted. The ledger is part of every checkpoint
and rolls back with it, so that "exactly once" holds on the lineage of iterations that survives: samples in flight when
the checkpoint was written are in it as `issued`, and a resume requests them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from rlaif.errors import ContractError
from rlaif.records import Key

State = Literal["issued", "generated", "rewarded"]

NEXT = {"issued": ("generated", "masked"), "generated": ("rewarded", "masked"), "rewarded": ("trained",)}
"""The states that may follow each state."""


class Ledger:
    """Samples by (iteration, key). Every method raises ContractError for a step that the state machine does not have."""

    def __init__(self) -> None:
        self._open: dict[int, dict[Key, State]] = {}
        self.counts: Counter[str] = Counter()
        """Samples of settled iterations, by terminal state."""
        self.reissued = 0
        """Samples that were requested again, because their actor or the run ended."""
        self.settled = 0
        """The first iteration that is not settled: every sample of those before it is in a terminal state."""

    def issue(self, iteration: int, keys: Iterable[Key]) -> None:
        """Record the request for a batch.

        A batch that a checkpoint has as issued is requested again, and must have the same samples.
        """
        # A resume must request the same samples again: others would be an error in the order of its prompts.
        keys = set(keys)
        open_samples = self._open.get(iteration)
        if open_samples is None:
            if iteration < self.settled:
                raise _wrong("an iteration that is not settled", f"iteration {iteration} once more")
        else:
            if open_samples.keys() != keys:
                odd = min(open_samples.keys() ^ keys)
                raise _wrong(f"the samples that iteration {iteration} had before", f"others, {odd} among them")
            self.reissued += len(keys)
        self._open[iteration] = dict.fromkeys(keys, "issued")

    def extend(self, iteration: int, keys: Iterable[Key]) -> None:
        """Record the request for more samples of an open iteration, which replace masked ones."""
        if iteration not in self._open:
            raise _wrong(f"iteration {iteration} open for more samples", "no such open iteration")
        self._open[iteration] |= dict.fromkeys(keys, "issued")

    def in_flight(self) -> list[tuple[int, Key]]:
        """Return (iteration, key) of every sample that is in no terminal state."""
        samples: list[tuple[int, Key]] = []
        for iteration, keys in self._open.items():
            samples += [(iteration, key) for key in keys]
        return samples

    @property
    def next_iteration(self) -> int:
        """Return the first iteration that has not been requested."""
        return max([self.settled - 1, *self._open]) + 1

    @classmethod
    def of(cls, state: dict) -> Ledger:
        """Return the ledger that a checkpoint holds."""
        ledger = cls()
        ledger.load_state_dict(state)
        return ledger

    def move(self, iteration: int, key: Key, state: Literal["generated", "rewarded", "trained"]) -> None:
        """Move a sample to its next state."""
        current = self._open.get(iteration, {}).get(key)
        if current is None or state not in NEXT[current]:
            raise _wrong(
                f"sample {key} of iteration {iteration} ready to become {state}", current or "no such open sample"
            )
        if state == "trained":
            self._close(iteration, key, state)
        else:
            self._open[iteration][key] = state

    def mask(self, iteration: int, key: Key) -> None:
        """Record that a sample will not be trained on; `samples/` has the reason."""
        current = self._open.get(iteration, {}).get(key)
        if current is None or "masked" not in NEXT[current]:
            raise _wrong(f"sample {key} of iteration {iteration} open to be masked", current or "no such open sample")
        self._close(iteration, key, "masked")

    def settle(self, iteration: int) -> None:
        """End the iteration. No sample of it, or of an earlier one, may be open."""
        remaining: list[Key] = []
        for number in sorted(self._open):
            if number <= iteration:
                remaining += self._open[number]
        if remaining or iteration != self.settled:
            raise _wrong(
                f"every sample of iteration {iteration} trained or masked, and iteration {self.settled} settled next",
                f"{len(remaining)} open, {remaining[0]} among them" if remaining else f"iteration {iteration}",
            )
        self._open.pop(iteration, None)
        self.settled = iteration + 1

    def reissue(self, samples: int) -> None:
        """Count samples that were requested again because their actor died; they stay issued."""
        self.reissued += samples

    def metrics(self) -> dict[str, float]:
        """Return totals since the run's first iteration, on this lineage."""
        return {
            "ledger/trained": self.counts["trained"],
            "ledger/masked": self.counts["masked"],
            "ledger/reissued": self.reissued,
            "ledger/open": sum(len(keys) for keys in self._open.values()),
        }

    def state_dict(self) -> dict:
        """Return the ledger as JSON values.

        Samples in flight are in it as `issued`, in any state: text that was generated for them is not saved.
        """
        # Sorted, and with lists for tuples: two ledgers that are equal give the same JSON.
        open_samples = {}
        for iteration, keys in sorted(self._open.items()):
            open_samples[str(iteration)] = sorted(map(list, keys))
        return {
            "counts": dict(self.counts),
            "reissued": self.reissued,
            "settled": self.settled,
            "open": open_samples,
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` returned."""
        self.counts, self.reissued = Counter(state["counts"]), int(state["reissued"])
        self.settled = int(state["settled"])
        self._open = {}
        for iteration, rows in state["open"].items():
            keys = [(prompt, int(index)) for prompt, index in rows]
            self._open[int(iteration)] = dict.fromkeys(keys, "issued")

    def _close(self, iteration: int, key: Key, state: str) -> None:
        """Remove a sample in a terminal state and count it."""
        del self._open[iteration][key]
        self.counts[state] += 1


def _wrong(expected: str, found: str) -> ContractError:
    """Return the error for a step that the state machine does not have."""
    return ContractError(expected, found, "Report this: a sample was lost or used twice.")
