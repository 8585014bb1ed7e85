"""What PPO remembers between iterations."""

from __future__ import annotations

from dataclasses import dataclass

from rlaif.config.schema import Ppo
from rlaif.objectives.kl import AdaptiveController, FixedController
from rlaif.objectives.rewards import RunningMoments


@dataclass
class PpoState:
    """What PPO remembers between iterations, besides networks and optimizers; saved in every checkpoint."""

    kl: FixedController | AdaptiveController
    """The coefficient of the KL penalty."""
    returns: RunningMoments
    """Moments of the returns of all iterations: their spread is the unit of the value clip."""
    iteration: int = 0

    @classmethod
    def of(cls, config: Ppo) -> PpoState:
        """Return the state before the first iteration."""
        kl = config.kl
        controller = FixedController(kl.coef)
        if kl.controller == "adaptive":
            controller = AdaptiveController(kl.coef, kl.target, kl.horizon)
        return cls(controller, RunningMoments())

    def state_dict(self) -> dict:
        """Return the state as plain numbers, for JSON."""
        kl = self.kl.state_dict()
        returns = self.returns.state_dict()
        return {"kl": kl, "returns": returns, "iteration": self.iteration}

    def load_state_dict(self, state: dict) -> None:
        """Continue from what `state_dict` returned."""
        self.kl.load_state_dict(state["kl"])
        self.returns.load_state_dict(state["returns"])
        self.iteration = int(state["iteration"])
