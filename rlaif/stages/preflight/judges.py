"""The judge that `label` names, and the functions beside it; or what `agreement.by` and `winrate.by` choose instead."""

from __future__ import annotations

from rlaif.config.section import Function
from rlaif.config.server import Server
from rlaif.errors import ConfigError
from rlaif.feedback.chat_client import api_key
from rlaif.models.check import require_model
from rlaif.stages.preflight.functions import check_function, require_braces
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.preflight.models import check_reward_source


def check_judge_and_functions(inquiry: Inquiry) -> None:
    """Check `label.judge` (a model, a server whose key is set, or a function) and the functions of `label`."""
    judge = inquiry.config.label.judge
    option = "label.judge"
    if isinstance(judge, Function):
        check_function(inquiry, option, judge.path)
    elif isinstance(judge, Server):
        inquiry.attempt(option, api_key, judge)
    else:
        inquiry.attempt(option, _require_judge, inquiry, judge)
    check_label_functions(inquiry)


def check_label_functions(inquiry: Inquiry) -> None:
    """Check `label.reference`, and `label.split` if it names a function."""
    label = inquiry.config.label
    check_function(inquiry, "label.reference", label.reference)
    if label.method == "claims" and label.split not in ("sentences", "model"):
        check_function(inquiry, "label.split", label.split)


def check_judge_or_reward(inquiry: Inquiry, by: str) -> None:
    """Check the judge or the reward model, whichever `agreement.by` or `winrate.by` chooses."""
    if by == "judge":
        check_judge_and_functions(inquiry)
    else:
        check_reward_source(inquiry)


def _require_judge(inquiry: Inquiry, judge: str) -> None:
    if inquiry.made_by(judge):
        return
    try:
        require_model("label.judge", judge, or_adapter=True)
    except ConfigError:
        require_braces("label.judge", judge)
        raise
