"""The prompt ledger: what became of every sample a run asked for. A plain state machine; it knows nothing of Ray.

    issued -> generated -> rewarded -> trained
         \\-> masked        \\-> masked

`trained` and `masked` are terminal: the sample leaves the ledger and is counted. The ledger is part of every checkpoint and
rolls back with it, so that "exactly once" holds on the lineage of iterations that survives: what was in flight when the
checkpoint was written is in it as `issued`, and a resume asks for it again.
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
        """Samples asked for again: their actor died, or the run did."""
        self.settled = 0
        """Iterations whose every sample has reached a terminal state: all before this one."""

    def issue(self, iteration: int, keys: Iterable[Key]) -> None:
        """A batch is asked for. One that a checkpoint holds as issued is asked for again, and must be the same one."""
        keys = set(keys)
        waiting = self._open.get(iteration)
        if waiting is None:
            if iteration < self.settled:
                raise _wrong("an iteration that is not settled", f"iteration {iteration} once more")
            self._open[iteration] = dict.fromkeys(keys, "issued")
            return
        if waiting.keys() != keys:
            odd = min(waiting.keys() ^ keys)
            raise _wrong(f"the samples that iteration {iteration} was asked for before", f"others, {odd} among them")
        self._open[iteration] = dict.fromkeys(keys, "issued")
        self.reissued += len(keys)

    def extend(self, iteration: int, keys: Iterable[Key]) -> None:
        """Ask for more samples of an open iteration, in the place of masked ones."""
        if iteration not in self._open:
            raise _wrong(f"iteration {iteration} open for more samples", "no such open iteration")
        self._open[iteration] |= dict.fromkeys(keys, "issued")

    def in_flight(self) -> list[tuple[int, Key]]:
        """Return (iteration, key) of every sample that is in no terminal state."""
        return [(iteration, key) for iteration, keys in self._open.items() for key in keys]

    @property
    def next_iteration(self) -> int:
        """The first iteration that nobody has asked for."""
        return max([self.settled - 1, *self._open]) + 1

    @classmethod
    def of(cls, state: dict) -> Ledger:
        """Return the ledger that a checkpoint holds."""
        ledger = cls()
        ledger.load_state_dict(state)
        return ledger

    def move(self, iteration: int, key: Key, state: Literal["generated", "rewarded", "trained"]) -> None:
        """A sample reached its next state."""
        found = self._open.get(iteration, {}).get(key)
        if found is None or state not in NEXT[found]:
            raise _wrong(
                f"sample {key} of iteration {iteration} ready to become {state}", found or "no such open sample"
            )
        if state == "trained":
            self._close(iteration, key, state)
        else:
            self._open[iteration][key] = state

    def mask(self, iteration: int, key: Key) -> None:
        """A sample will not be trained on; `samples/` keeps the reason."""
        found = self._open.get(iteration, {}).get(key)
        if found is None or "masked" not in NEXT[found]:
            raise _wrong(f"sample {key} of iteration {iteration} open to be masked", found or "no such open sample")
        self._close(iteration, key, "masked")

    def settle(self, iteration: int) -> None:
        """The iteration is over: no sample of it may be open, and none before it."""
        left = [key for number in sorted(self._open) if number <= iteration for key in self._open[number]]
        if left or iteration != self.settled:
            raise _wrong(
                f"every sample of iteration {iteration} trained or masked, and iteration {self.settled} settled next",
                f"{len(left)} open, {left[0]} among them" if left else f"iteration {iteration}",
            )
        self._open.pop(iteration, None)
        self.settled = iteration + 1

    def reissue(self, samples: int) -> None:
        """An actor died: its samples were asked for again, and stay issued."""
        self.reissued += samples

    def metrics(self) -> dict[str, float]:
        """Totals since the run's first iteration, on this lineage."""
        return {
            "ledger/trained": self.counts["trained"],
            "ledger/masked": self.counts["masked"],
            "ledger/reissued": self.reissued,
            "ledger/open": sum(len(keys) for keys in self._open.values()),
        }

    def state_dict(self) -> dict:
        """JSON. Samples in flight are all `issued`: what was generated of them is not kept."""
        return {
            "counts": dict(self.counts),
            "reissued": self.reissued,
            "settled": self.settled,
            "open": {str(number): sorted(map(list, keys)) for number, keys in sorted(self._open.items())},
        }

    def load_state_dict(self, state: dict) -> None:
        self.counts, self.reissued = Counter(state["counts"]), int(state["reissued"])
        self.settled = int(state["settled"])
        self._open = {
            int(number): {(prompt, int(index)): "issued" for prompt, index in keys}
            for number, keys in state["open"].items()
        }

    def _close(self, iteration: int, key: Key, state: str) -> None:
        del self._open[iteration][key]
        self.counts[state] += 1


def _wrong(expected: str, found: str) -> ContractError:
    return ContractError(expected, found, "Report this: a sample was lost or used twice.")
