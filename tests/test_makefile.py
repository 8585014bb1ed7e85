"""Properties of the Makefile's recipes, read from the file."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

MAKEFILE = (Path(__file__).parents[1] / "Makefile").read_text()
INDEX = ("--index-url", "--extra-index-url", "--find-links", "--trusted-host", "--isolated", "-i ")
"""Options that would override the user's pip settings."""


def recipe(target: str) -> list[str]:
    """Return the lines of a recipe, with the Makefile's own variables for pip in full."""
    (body,) = re.findall(rf"^{re.escape(target)}:.*\n((?:\t.*\n|#.*\n|\n)+)", MAKEFILE, re.M)
    variables = dict(re.findall(r"^(UPGRADE_PIP|PIP) = (.*)$", MAKEFILE, re.M))
    for name in ("UPGRADE_PIP", "PIP"):
        body = body.replace(f"$({name})", variables[name])
    return body.splitlines()


@pytest.mark.parametrize("target", [".venv/.installed-cpu", ".venv/.installed-gpu"])
def test_pip_is_upgraded_before_anything_else_is_installed(target):
    """DeepSpeed has no wheel, and the pip that comes with Python 3.11 would run its setup.py."""
    installs = [line for line in recipe(target) if " install " in line and "-m pip" in line]
    first, *others = installs
    (least,) = re.findall(r'"pip>=([\d.]+)"', first)
    assert tuple(map(int, least.split("."))) >= (23, 1)
    assert "--upgrade" in first and "--quiet" in first and others
    for line in installs:
        assert not any(option in line for option in INDEX)


def test_modules_that_make_compiles_exist():
    """The recipe ignores modules that do not import, so a renamed one would otherwise stay unnoticed."""
    (line,) = re.findall(r'^COMPILE = .* -c "import ((?:.|\n)*?)"', MAKEFILE, re.M)
    modules = [name.strip() for name in line.replace("\\\n", " ").split(",")]
    assert len(modules) > 3 and all(importlib.util.find_spec(name) for name in modules)
