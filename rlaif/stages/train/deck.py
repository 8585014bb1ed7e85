"""The prompts of a PPO run in the order of their use, and what becomes of those that turn out to be unusable."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlaif.data.sampler import rows_of_step
from rlaif.records import Prompt
from rlaif.seeds import derive


@dataclass(frozen=True)
class LeftOut:
    """The reason why a prompt is not used any more."""

    since: int
    """The first iteration without it: those before have been submitted, and a resume may submit them again."""
    reason: str


class Deck:
    """The prompts of each iteration: a function of seed, iteration and the state, which is part of every checkpoint.

    Every prompt is used once before any repeats. A prompt that is left out is replaced by another one, drawn for that
    iteration, so the order of all others does not change.
    """

    def __init__(self, prompts: Iterable[Prompt], per_iteration: int, seed: int):
        self._prompts = {prompt.prompt_id: prompt for prompt in prompts}
        self.order = list(self._prompts)
        """Ids of the prompts that the run had when it began; prompts that came later are not used."""
        self.left_out: dict[str, LeftOut] = {}
        self._per_iteration = per_iteration
        self._seed = seed

    def of(self, iteration: int) -> list[Prompt]:
        """Return the prompts of an iteration, without those that are gone although they had been submitted."""
        rows = rows_of_step(len(self.order), self._per_iteration, iteration, self._seed, "ppo")
        drawn = [self.order[row] for row in rows]
        excluded = {name for name, reason in self.left_out.items() if reason.since <= iteration}
        usable = []
        for name in drawn:
            if name not in excluded and name in self._prompts:
                usable.append(self._prompts[name])
        replaced = excluded.intersection(drawn)
        return usable + self._others(iteration, excluded.union(drawn), len(replaced))

    def substitutes(self, iteration: int, submitted: Iterable[str], count: int) -> list[Prompt]:
        """Return other prompts for `count` of those submitted in an iteration; fewer if there are no more."""
        return self._others(iteration, {*submitted, *self.left_out}, count)

    def leave_out(self, prompt_id: str, since: int, reason: str) -> None:
        """Use a prompt in no iteration from `since` on."""
        self.left_out.setdefault(prompt_id, LeftOut(since, reason))

    @property
    def share_left_out(self) -> float:
        """The share of the run's prompts that are left out."""
        return len(self.left_out) / len(self.order)

    @property
    def gone(self) -> list[str]:
        """The ids of prompts that were usable when the run began and are not among the prompts now."""
        return [name for name in self.order if name not in self._prompts]

    @property
    def unknown(self) -> list[str]:
        """The ids of prompts that the run did not have when it began."""
        return list(self._prompts.keys() - set(self.order))

    def state_dict(self) -> dict[str, Any]:
        """Return the order and what is left out, as JSON values."""
        left_out = {name: [why.since, why.reason] for name, why in self.left_out.items()}
        return {"order": self.order, "left_out": left_out}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state of a checkpoint."""
        self.order = list(state["order"])
        self.left_out = {}
        for name, (since, reason) in state["left_out"].items():
            self.left_out[name] = LeftOut(int(since), reason)

    def _others(self, iteration: int, taken: Collection[str], count: int) -> list[Prompt]:
        if not count:
            return []
        rng = np.random.default_rng(derive(self._seed, "instead", iteration))
        chosen: list[Prompt] = []
        for row in rng.permutation(len(self.order)):
            name = self.order[row]
            if len(chosen) < count and name not in taken and name in self._prompts:
                chosen.append(self._prompts[name])
        return chosen
