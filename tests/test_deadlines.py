"""No wait on a remote call is without a deadline: read from the source, so that a new one is seen."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("rlaif", "actors", "learners", "cluster")

WAITS = {
    # what waits for an actor: place and name of its deadline
    "ray.get": (1, "timeout"),
    "ray.wait": (None, "timeout"),
    "ask": (1, "timeout_s"),
    "fetch_result": (1, "timeout_s"),
    "results": (1, "timeout"),
    "committed": (0, "timeout"),
}
OTHER_MEANINGS = {"rlaif/worlds/shapes/language.py", "rlaif/stages/feedback/by_pairs.py"}
"""Modules with an `ask` of their own: a question, not a wait."""


def endless(source: str) -> list[str]:
    """Return the waits of a module that have no deadline, or None for one, as `line: call`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        name = called if called in WAITS else called.split(".")[-1]
        if name not in WAITS or (name == "ask" and called != "ask"):
            continue
        place, keyword = WAITS[name]
        given = [item.value for item in node.keywords if item.arg == keyword]
        if place is not None:
            given += node.args[place : place + 1]
        if not given or (isinstance(given[0], ast.Constant) and given[0].value is None):
            found.append(f"{node.lineno}: {called}(")
    return found


def test_every_wait_on_a_remote_call_has_a_deadline():
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    assert len(files) > 80
    found = {str(file.relative_to(ROOT)): endless(file.read_text()) for file in files}
    assert {name: lines for name, lines in found.items() if lines and name not in OTHER_MEANINGS} == {}


def endless_defaults(source: str) -> list[str]:
    """Return the parameters that name a deadline and may be None: whoever leaves them out waits for ever."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            positional = node.args.posonlyargs + node.args.args
            pairs = [*zip(reversed(positional), reversed(node.args.defaults), strict=False)]
            pairs += [*zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
            found += [f"{node.lineno}: {node.name}({name.arg})" for name, value in pairs if _may_be_none(name, value)]
    return found


def _may_be_none(name: ast.arg, value: ast.expr | None) -> bool:
    names_a_deadline = name.arg in ("timeout", "timeout_s", "deadline_s", "patience_s")
    return names_a_deadline and isinstance(value, ast.Constant) and value.value is None


def test_no_deadline_is_none_when_it_is_left_out():
    files = [file for package in ("actors", "learners", "cluster") for file in (ROOT / package).rglob("*.py")]
    found = {str(file.relative_to(ROOT)): endless_defaults(file.read_text()) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}
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
def test_an_endless_wait_is_seen(line):
    assert endless(line)


@pytest.mark.parametrize(
    "line",
    [
        "ray.get(ref, timeout=5)",
        "ray.wait(refs, timeout=limit)",
        "ask(refs, deadline_s)",
        "store.ask.remote(key)",
        "pool.results(batch, roles.deadline_s)",
    ],
)
def test_a_wait_with_a_deadline_is_not(line):
    assert endless(line) == []
