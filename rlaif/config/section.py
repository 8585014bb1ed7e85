"""The base class of every group of options."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


def off(value: object) -> object:
    """Return "off" for false, which is how YAML reads a bare `off`, and any other value as it is."""
    return "off" if value is False else value


class Section(BaseModel):
    """A frozen group of options; unknown keys are errors."""

    # frozen: several stages share one configuration. hide_input_in_errors: pydantic's own errors would show the input, which
    # may be a secret in the wrong place; rlaif/config/load.py shows it if it is not one. allow_inf_nan: YAML has .inf and
    # .nan. use_attribute_docstrings: `rlaif options` lists them.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_values_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would accept `true` for a number, as 1.
        assert info.field_name is not None
        kinds = _kinds(cls.model_fields[info.field_name].annotation)
        is_number = bool(kinds & {int, float}) and not kinds & {bool, "off"}
        if is_number and _holds_truth_value(value):
            raise ValueError("Input should be a number, not a truth value")
        return value


class Function(Section):
    """Code in place of a model.

    A reward is called as f(prompt, response) and returns a number or a dict of parts; a judge is called as f(prompt, a, b) and
    returns 1, -1 or 0.
    """

    path: str
    """Function as `package.module:function`, importable from the working directory or PYTHONPATH."""


def _holds_truth_value(value: Any) -> bool:
    if isinstance(value, dict):
        return any(isinstance(part, bool) for part in value.values())
    if isinstance(value, list | tuple):
        return any(isinstance(part, bool) for part in value)
    return isinstance(value, bool)


def _kinds(annotation: Any) -> set:
    """Return the types and literals that an annotation is made of."""
    parts = get_args(annotation)
    if not parts:
        return {annotation}
    kinds: set = set()
    for part in parts:
        kinds |= _kinds(part)
    return kinds
