"""What every group of options is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


def off(value: object) -> object:
    """YAML reads a bare `off` as false."""
    return "off" if value is False else value


class Section(BaseModel):
    """A frozen group of options; unknown keys are errors."""

    # what was found may be a secret in the wrong place; rlaif/config/load.py shows it where it is none
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)


class Function(Section):
    """A reward computed by code: `path` is `package.module:function`, called as f(prompt, response) -> float or dict of parts."""

    path: str
    """`package.module:function`, importable from the working directory or PYTHONPATH."""
