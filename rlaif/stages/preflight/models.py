"""Models that options name: they are there, of a known family, and hold as many positions as the engine is to serve."""

from __future__ import annotations

import transformers

from rlaif.config.section import Function
from rlaif.errors import ConfigError
from rlaif.io.storage import fetch
from rlaif.models.check import require_model
from rlaif.models.family import engine_video_of
from rlaif.models.positions import positions_of
from rlaif.models.reward_card import check_weights, read_card, require_reward_model
from rlaif.stages.preflight.functions import check_checker, check_reward_function, require_braces
from rlaif.stages.preflight.inquiry import Inquiry


def check_model(
    inquiry: Inquiry, option: str, path: str, served_adapter: str | None = None, adapter: bool = False
) -> bool:
    """Return whether a model is at `path`, or will be exported there by a stage that comes first; a problem if not."""
    if stage := inquiry.made_by(path):
        inquiry.note(f"{option}: made by `rlaif {stage}` first")
        return True
    return inquiry.succeeds(option, require_model, option, path, served_adapter, adapter)


def check_policy(inquiry: Inquiry) -> None:
    """Check `ppo.policy` as what the engine serves and the learners train."""
    config, option = inquiry.config, "ppo.policy"
    served = "ppo.lora" if config.ppo.lora else None
    there = check_model(inquiry, option, config.ppo.policy, served)
    source = config.ppo.policy
    if inquiry.made_by(source) == "sft":  # an export has the architecture of what it was trained from
        source = config.sft.init
        there = Inquiry(config).succeeds(option, require_model, option, source)
        there = there and inquiry.succeeds(option, require_model, "ppo.policy (as sft.init)", source, served)
    if there and inquiry.made_by(source) is None:
        inquiry.attempt(option, _fits_engine, inquiry, source)


def check_policy_and_reward(inquiry: Inquiry) -> None:
    """Check everything that PPO and its evaluation load: policy, reward and the checker of claims."""
    check_policy(inquiry)
    check_reward_source(inquiry)
    check_checker(inquiry, inquiry.config.eval.checker)


def _fits_engine(inquiry: Inquiry, path: str) -> None:
    rollout = inquiry.config.rollout
    config = transformers.AutoConfig.from_pretrained(fetch(path))
    if rollout.vision == "shared":
        engine_video_of(config)
    positions = positions_of(path)
    if positions is not None and rollout.max_model_len > positions:
        raise ConfigError(
            f"rollout.max_model_len of at most {positions}, the positions of {path}",
            f"{rollout.max_model_len}",
            f"Set rollout.max_model_len={positions}",
        )


def check_reward_source(inquiry: Inquiry) -> None:
    """Check `ppo.reward`: a function is called once; a reward model is there with what it needs."""
    reward, option = inquiry.config.ppo.reward, "ppo.reward"
    if isinstance(reward, Function):
        check_reward_function(inquiry, reward)
    elif stage := inquiry.made_by(reward):
        inquiry.note(f"{option}: made by `rlaif {stage}` first")
    else:
        inquiry.attempt(option, _require_reward, inquiry, reward)


def _require_reward(inquiry: Inquiry, reward: str) -> None:
    try:
        card = read_card(reward)
    except ConfigError:
        require_braces("ppo.reward", reward)
        raise
    terms = [name for name, value in inquiry.config.ppo.terms if value]
    check_weights(card, inquiry.config.ppo.reward_weights, terms)
    require_reward_model("ppo.reward", reward)
