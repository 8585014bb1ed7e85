"""Models that options name: they are there, of a known family, and hold as many positions as the engine is to serve."""

from __future__ import annotations

from rlaif.config.section import Function
from rlaif.config.server import Server
from rlaif.errors import ConfigError
from rlaif.feedback.chat_client import api_key
from rlaif.models.check import require_model
from rlaif.models.family import engine_video_of
from rlaif.models.model_dir import ModelDir
from rlaif.models.positions import model_positions
from rlaif.models.reward import check_weights, read_card, require_reward_model
from rlaif.stages.preflight.functions import check_function, check_reward_function, require_braces
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
            f"Set rollout.max_model_len={positions}",
        )


def check_reward(inquiry: Inquiry) -> None:
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


def check_judge(inquiry: Inquiry) -> None:
    """Check `label.judge`: a model, a server whose key is set, or a function."""
    judge, option = inquiry.config.label.judge, "label.judge"
    if isinstance(judge, Function):
        check_function(inquiry, option, judge.path)
    elif isinstance(judge, Server):
        inquiry.attempt(option, api_key, judge)
    else:
        inquiry.attempt(option, _require_judge, inquiry, judge)


def _require_judge(inquiry: Inquiry, judge: str) -> None:
    if inquiry.made_by(judge):
        return
    try:
        require_model("label.judge", judge, or_adapter=True)
    except ConfigError:
        require_braces("label.judge", judge)
        raise
