"""Every wait on a remote call has a deadline. Waits are read from the source, so that new ones are covered."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("rlaif", "actors", "learners", "cluster")

WAITS = {
    "ray.get": (1, "timeout"),
    "ray.wait": (None, "timeout"),
    "ask": (1, "timeout_s"),
    "fetch_result": (1, "timeout_s"),
    "results": (1, "timeout"),
    "committed": (0, "timeout"),
}
"""Functions that wait for an actor: the place and the name of their deadline."""
OTHER_MEANINGS = {"rlaif/worlds/shapes/language.py", "rlaif/stages/feedback/by_pairs.py"}
"""Modules with an `ask` of their own: a question, not a wait."""


def endless(source: str) -> list[str]:
    """Return the waits of a module that have no deadline, or None for one, as `line: call`."""
    waits = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        name = called if called in WAITS else called.split(".")[-1]
        if name not in WAITS or (name == "ask" and called != "ask"):
            continue
        place, keyword = WAITS[name]
        deadlines = [item.value for item in node.keywords if item.arg == keyword]
        if place is not None:
            deadlines += node.args[place : place + 1]
        if not deadlines or (isinstance(deadlines[0], ast.Constant) and deadlines[0].value is None):
            waits.append(f"{node.lineno}: {called}(")
    return waits


def source_files(packages: Iterable[str]) -> list[Path]:
    """Return the Python files of packages."""
    files: list[Path] = []
    for package in packages:
        files += (ROOT / package).rglob("*.py")
    return files


def test_every_wait_on_a_remote_call_has_a_deadline():
    files = source_files(PACKAGES)
    assert len(files) > 80
    waits = {}
    for file in files:
        name = str(file.relative_to(ROOT))
        if name not in OTHER_MEANINGS:
            waits[name] = endless(file.read_text())
    assert {name: lines for name, lines in waits.items() if lines} == {}


def endless_defaults(source: str) -> list[str]:
    """Return the parameters that name a deadline and are None by default: a call without them waits for ever."""
    parameters = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef):
            continue
        positional = node.args.posonlyargs + node.args.args
        # Defaults belong to the last positional parameters.
        pairs = list(zip(reversed(positional), reversed(node.args.defaults), strict=False))
        pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        for name, value in pairs:
            if _may_be_none(name, value):
                parameters.append(f"{node.lineno}: {node.name}({name.arg})")
    return parameters


def _may_be_none(name: ast.arg, value: ast.expr | None) -> bool:
    """Check whether a parameter names a deadline and its default is None."""
    names_a_deadline = name.arg in ("timeout", "timeout_s", "deadline_s", "patience_s")
    return names_a_deadline and isinstance(value, ast.Constant) and value.value is None


def test_no_default_of_a_deadline_is_none():
    parameters = {}
    for file in source_files(("actors", "learners", "cluster")):
        parameters[str(file.relative_to(ROOT))] = endless_defaults(file.read_text())
    assert {name: lines for name, lines in parameters.items() if lines} == {}
    assert endless_defaults("def f(ref, timeout=None): ...") and endless_defaults("def f(*, timeout_s=None): ...")
    assert not endless_defaults("def f(ref, other=None, timeout=5): ...")


@pytest.mark.parametrize(
    "line",
    [
        "ray.get(ref)",
        "ray.get([actor.f.remote() for actor in actors], timeout=None)",
        "done, _ = ray.wait(refs, num_returns=1)",
        "ask(actor.score.remote(answers))",
        "outcomes = {key: value for part in ask(calls) for key, value in part.items()}",
        "for part in pool.results(batch): pass",
        "self.rollouts.committed()",
        "def f():\n    return ray.get(store.ask.remote(key))",
    ],
)
def test_a_wait_without_a_deadline_is_reported(line):
    assert endless(line)


@pytest.mark.parametrize(
    "line",
    [
        "ray.get(ref, timeout=5)",
        "ray.wait(refs, timeout=limit)",
        "ask(refs, deadline_s)",
        "store.ask.remote(key)",
        "pool.results(batch, workers.deadline_s)",
    ],
)
def test_a_wait_with_a_deadline_is_not_reported(line):
    assert endless(line) == []
