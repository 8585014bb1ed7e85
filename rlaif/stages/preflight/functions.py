"""Functions that options name: they resolve, and give what is expected of one row, before anything starts."""

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
    """Raise ConfigError if the option takes a model or a function, and a function's name was given as if it was a model."""
    if looks_like_function(path):
        raise ConfigError(
            f"{option}: the path of a model, or a function in braces",
            f"{path!r}, which reads like a function",
            f"Write {option}='{{path: {path}}}'",
        )


def check_function(inquiry: Inquiry, option: str, path: str | None) -> Callable | None:
    """Return the function that an option names; None (and a problem) if there is none."""
    if path is None:
        return None
    return inquiry.attempt(option, _resolve, option, path)


def _resolve(option: str, path: str) -> Callable:
    try:
        found = load_function(path)
    except ConfigError:
        raise
    except BaseException as error:  # a user's module may do anything when it is imported, sys.exit included
        if isinstance(error, KeyboardInterrupt):
            raise
        found = f"{path!r}: importing it raised {type(error).__name__}: {error}"
        raise ConfigError(f"{option}: a function as `package.module:name`", found, "Correct the module") from error
    if not callable(found):
        kind = type(found).__name__
        change = f"Set {option} to a function"
        raise ConfigError(f"{option}: a function as `package.module:name`", f"{path!r}, a {kind}", change)
    return found


def check_reward_function(inquiry: Inquiry, function: Function) -> None:
    """Resolve `ppo.reward` and call it once, on the first prompt."""
    option = "ppo.reward"
    if check_function(inquiry, option, function.path) is None:
        return
    if rows := inquiry.rows("prompts"):
        inquiry.attempt(option, dry_call, option, function.path, rows[0])


def dry_call(option: str, path: str, prompt: Prompt) -> None:
    """Raise ConfigError unless the reward function gives a finite score, or parts that add up to one, for a row."""
    answer = RewardInput((prompt.prompt_id, 0), prompt, prompt.answer or "A first answer.")
    outcome = within_deadline(option, path, lambda: FunctionScorer(path)([answer])[answer.key])
    if isinstance(outcome, Masked):
        raise ConfigError(
            f"{option}: a number, or a dict of named numbers, for prompt {prompt.prompt_id!r}",
            outcome.reason,
            "Correct the function: it is called as f(prompt, response)",
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
    except Exception as error:  # a user's code: whatever it raises would end the evaluation later
        raise ConfigError(
            f"{option}: a dict of counts for prompt {prompt.prompt_id!r}",
            f"{path}: {type(error).__name__}: {error}",
            "Correct the function (it is called as f(prompt, response)), or leave eval.checker out",
        ) from error


def within_deadline(option: str, path: str, call: Callable[[], Any]) -> Any:
    """Return what a dry call returns, or raise what it raises; ConfigError if it has not returned in time or exits."""
    try:
        return within(call, DRY_CALL_S, f"dry call of {path}")
    except LateError:
        found = f"{path} has not returned after {DRY_CALL_S:g} s"
    except SystemExit:
        found = f"{path} ended its thread"
    raise ConfigError(
        f"{option}: a function that returns",
        found,
        "Correct the function, or load what it needs when it is imported",
    )
