"""Functions that options name: they can be imported, and return the right kind of result for one row."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from rlaif.config.section import Function
from rlaif.deadline import LateError, within
from rlaif.errors import ConfigError
from rlaif.evaluation.claims import checker_rates
from rlaif.functions import FunctionScorer, load_function
from rlaif.records import Masked, Prompt, RewardInput
from rlaif.stages.preflight.inquiry import Inquiry

DRY_CALL_S = 120.0
"""How long a function may take for its first row; some load a model."""

_LIKE_A_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def looks_like_function(text: str) -> bool:
    """Return whether a path reads as `package.module:name`."""
    return bool(_LIKE_A_FUNCTION.fullmatch(text))


def require_braces(option: str, path: str) -> None:
    """Raise ConfigError if the path of a model reads like a function, which options take in braces."""
    if looks_like_function(path):
        raise ConfigError(
            f"{option}: the path of a model, or a function in braces",
            f"{path!r}, which reads like a function",
            f"Write {option}='{{path: {path}}}'.",
        )


def check_function(inquiry: Inquiry, option: str, path: str | None) -> Callable | None:
    """Return the function that an option names; None (and a problem) if there is none."""
    if path is None:
        return None
    return inquiry.attempt(option, _resolve, option, path)


def _resolve(option: str, path: str) -> Callable:
    expected = f"{option}: a function as `package.module:name`"
    try:
        function = load_function(path)
    except (ConfigError, KeyboardInterrupt):
        raise
    # A user's module may do anything when it is imported, sys.exit included.
    except BaseException as error:
        reason = f"{path!r}: importing it raised {type(error).__name__}: {error}"
        raise ConfigError(expected, reason, "Correct the module.") from error
    if not callable(function):
        kind = type(function).__name__
        raise ConfigError(expected, f"{path!r}, a {kind}", f"Set {option} to a function.")
    return function


def check_reward_function(inquiry: Inquiry, function: Function) -> None:
    """Resolve `ppo.reward` and call it once, on the first prompt."""
    option = "ppo.reward"
    if check_function(inquiry, option, function.path) is None:
        return
    if rows := inquiry.rows("prompts"):
        inquiry.attempt(option, dry_call, option, function.path, rows[0])


def dry_call(option: str, path: str, prompt: Prompt) -> None:
    """Raise ConfigError unless the reward function gives a finite score, or parts that add up to one, for a row."""
    # A prompt without a reference answer gets some text: the function must cope with any.
    answer = RewardInput((prompt.prompt_id, 0), prompt, prompt.answer or "A first answer.")
    outcome = within_deadline(option, path, lambda: FunctionScorer(path)([answer])[answer.key])
    if isinstance(outcome, Masked):
        raise ConfigError(
            f"{option}: a number, or a dict of named numbers, for prompt {prompt.prompt_id!r}",
            outcome.reason,
            "Correct the function: it is called as f(prompt, response).",
        )


def check_checker(inquiry: Inquiry, path: str | None) -> None:
    """Resolve `eval.checker` and call it once, on the first held-out prompt."""
    option = "eval.checker"
    function = check_function(inquiry, option, path)
    if function is None or not inquiry.has_file("eval"):
        return
    if rows := inquiry.rows("eval"):
        inquiry.attempt(option, _dry_check, option, path, function, rows[0])


def _dry_check(option: str, path: str, function: Callable, prompt: Prompt) -> None:
    try:
        within_deadline(option, path, lambda: checker_rates([(prompt, prompt.answer or "A first answer.")], function))
    except ConfigError:
        raise
    # Whatever a user's code raises here would end the evaluation later.
    except Exception as error:
        raise ConfigError(
            f"{option}: a dict of counts for prompt {prompt.prompt_id!r}",
            f"{path}: {type(error).__name__}: {error}",
            "Correct the function (it is called as f(prompt, response)), or leave eval.checker out.",
        ) from error


def within_deadline(option: str, path: str, call: Callable[[], Any]) -> Any:
    """Return the result of a dry call, or raise its error. Raises ConfigError if it is late or exits."""
    try:
        return within(call, DRY_CALL_S, f"dry call of {path}")
    except LateError:
        reason = f"{path} has not returned after {DRY_CALL_S:g} s"
    # The call runs in a thread, so sys.exit ends that thread only.
    except SystemExit:
        reason = f"{path} ended its thread"
    fix = "Correct the function, or load what it needs when it is imported."
    raise ConfigError(f"{option}: a function that returns", reason, fix)
