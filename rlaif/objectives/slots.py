"""Which slots of a padded answer PPO counts: its response tokens, or a fixed number of slots as VLM-RLAIF does.

An answer of n tokens fills slots 0..n-1 of `total`. The policy predicts nothing in the slots after it: their log-probs
are 0 for any weights. The critic does predict there. The value of slot t is read one position before it, so slot n's
value is read at the last token, and the value of every later slot at a padding position. Nothing attends to padding, and
padding shares the last token's position, so the critic predicts the same value at all padding positions of an answer:
two padding tokens stand for any number of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from rlaif.errors import ContractError

if TYPE_CHECKING:  # objectives need torch alone; options only name the types of arguments
    from rlaif.config.schema import Ppo


@dataclass(frozen=True)
class ResponseSlots:
    """The slots that one part of PPO counts in every answer."""

    total: int | None = None
    """All slots of an answer (`ppo.sampling.max_tokens`), the ones after its end included; None: response tokens only."""

    def counted(self, mask: Tensor) -> Tensor:
        """Return the mask [B, T] of what counts: ones if all slots do, else `mask`, which is 1 on response tokens."""
        return mask if self.total is None else torch.ones_like(mask)

    def width(self, length: int) -> int:
        """Return how many slots count in an answer of `length` tokens."""
        return length if self.total is None else self.total

    def padding_tokens(self, length: int) -> int:
        """Return how many padding tokens must follow an answer of `length` tokens so that the critic predicts every slot.

        The number is 0 to 2, and 0 if only response tokens count. Raises ContractError if the answer has more tokens
        than there are slots.
        """
        if self.total is None:
            return 0
        if length > self.total:
            raise ContractError(
                f"answers of at most {self.total} tokens (ppo.sampling.max_tokens)",
                f"{length}",
                "Raise `ppo.sampling.max_tokens`.",
            )
        # Slot n is read at the last token, so the first padding token serves slot n + 1 and the second one all later slots;
        # each of them takes a slot itself, so an answer that is one token short has room for one.
        return min(self.total - length, 2)

    def fill(self, x: Tensor) -> Tensor:
        """Return `x` [B, T] with zeros up to `total` slots, or as it is if only response tokens count."""
        if self.total is None:
            return x
        return pad(x, (0, self.total - x.shape[1]))

    def repeat_last(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return `x` [B, W] as [B, total]: each row's entry lengths[b] - 1 also fills all slots after it.

        lengths [B] count the valid entries of each row, its padding tokens included. The gradients of the repeated
        entry add up. `x` is returned as it is if only response tokens count.
        """
        if self.total is None:
            return x
        slot = torch.arange(self.total, device=x.device).expand(len(x), self.total)
        last = lengths.long()[:, None] - 1
        return x.gather(1, torch.minimum(slot, last))


@dataclass(frozen=True)
class PpoSlots:
    """The slots that each part of a PPO iteration counts, by `ppo.score_slot` and `ppo.loss_mean`."""

    experience: ResponseSlots
    """Columns of the arrays of log-probs and values: all slots if rewards or losses need them."""
    rewards: ResponseSlots
    """What rewards, advantages and returns extend over (`score_slot: last_slot` puts the score on the last slot)."""
    losses: ResponseSlots
    """What the losses and the whitening of advantages take their means over (`loss_mean`)."""

    @classmethod
    def of(cls, config: Ppo) -> PpoSlots:
        """Return the slots that the options of `ppo` choose."""
        every = ResponseSlots(config.sampling.max_tokens)
        tokens = ResponseSlots()
        return cls(
            experience=every if config.counts_padding else tokens,
            rewards=every if config.score_slot == "last_slot" else tokens,
            losses=every if config.loss_mean == "slots" else tokens,
        )
