"""The captions that `ppo.reward` reads, for every stage that has answers scored."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.models.reward import context_mode, contextual_prompts
from rlaif.records import Prompt
from rlaif.stages.run import datasets

log = logging.getLogger(__name__)


def prompts_with_context(config: Config, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return the prompts with the captions that `ppo.reward` is to read; prompts that have none are counted.

    Raises DataError if a reward model reads captions and no prompt has any: its scores would mean nothing.
    """
    mode, reward = context_mode(config), config.ppo.reward
    empty = sum(not prompt.captions for prompt in prompts)
    if mode != "none" and empty and not isinstance(reward, Function):
        if empty == len(prompts):
            raise datasets.no_captions(config, f"{empty} prompts", f"the reward model {reward} was trained with them")
        log.warning("%d of %d prompts have no captions: the reward model reads no context there", empty, len(prompts))
    return contextual_prompts(mode, prompts, config.seed)
