"""What every group of options is made of."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


def off(value: object) -> object:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


class Section(BaseModel):
    """A frozen group of options; unknown keys are errors."""

    # what was found may be a secret in the wrong place; rlaif/config/load.py shows it where it is none
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _truth_values_are_no_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _kinds(cls.model_fields[info.field_name].annotation)
        if kinds & {int, float} and not kinds & {bool, "off"} and _holds_truth_value(value):
            raise ValueError("Input should be a number, not a truth value")
        return value


class Function(Section):
    """A reward computed by code: `path` is `package.module:function`, called as f(prompt, response) -> float or dict of parts."""

    path: str
    """`package.module:function`, importable from the working directory or PYTHONPATH."""


def _holds_truth_value(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else (value,)
    return any(isinstance(part, bool) for part in parts)


def _kinds(annotation: Any) -> set:
    """Return the types and literals that an annotation is made of."""
    return set().union(*map(_kinds, parts)) if (parts := get_args(annotation)) else {annotation}
