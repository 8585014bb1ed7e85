"""Models that options name: they exist, are of a known family, and have the positions that the engine serves."""

from __future__ import annotations

from rlaif.config.section import Function
from rlaif.errors import ConfigError
from rlaif.models.check import require_model
from rlaif.models.family import engine_video_of
from rlaif.models.model_dir import ModelDir
from rlaif.models.positions import model_positions
from rlaif.models.reward import check_weights, read_card, require_reward_model
from rlaif.stages.preflight.functions import check_checker, check_reward_function, require_braces
from rlaif.stages.preflight.inquiry import Inquiry


def check_model_option(
    inquiry: Inquiry, option: str, path: str, served_adapter: str | None = None, adapter: bool = False
) -> bool:
    """Return whether a model is at `path`, or a stage that runs before exports one there; report it if not."""
    if stage := inquiry.made_by(path):
        inquiry.note(f"{option}: made by `rlaif {stage}` first")
        return True
    return inquiry.succeeds(option, require_model, option, path, served_adapter, adapter)


def check_policy(inquiry: Inquiry) -> None:
    """Check `ppo.policy` as what the engine serves and the learners train."""
    config, option = inquiry.config, "ppo.policy"
    served = "ppo.lora" if config.ppo.lora else None
    usable = check_model_option(inquiry, option, config.ppo.policy, served)
    source = config.ppo.policy
    # An export has the architecture of the model that it was trained from.
    if inquiry.made_by(source) == "sft":
        source = config.sft.init
        # The check of `rlaif sft` reports a missing model; here it is only asked whether the model serves as the policy.
        usable = Inquiry(config).succeeds(option, require_model, option, source)
        usable = usable and inquiry.succeeds(option, require_model, "ppo.policy (as sft.init)", source, served)
    if usable and inquiry.made_by(source) is None:
        inquiry.attempt(option, _fits_engine, inquiry, source)


def check_policy_and_reward(inquiry: Inquiry) -> None:
    """Check everything that PPO and its evaluation load: policy, reward and the checker of claims."""
    check_policy(inquiry)
    check_reward_source(inquiry)
    check_checker(inquiry, inquiry.config.eval.checker)


def _fits_engine(inquiry: Inquiry, path: str) -> None:
    rollout = inquiry.config.rollout
    model = ModelDir(path)
    if rollout.vision == "shared":
        engine_video_of(model.config)
    positions = model_positions(model)
    if positions is not None and rollout.max_model_len > positions:
        raise ConfigError(
            f"rollout.max_model_len of at most {positions}, the positions of {path}",
            f"{rollout.max_model_len}",
            f"Set `rollout.max_model_len={positions}`.",
        )


def check_reward_source(inquiry: Inquiry) -> None:
    """Check `ppo.reward`: call a function once; look for a reward model and its base."""
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
