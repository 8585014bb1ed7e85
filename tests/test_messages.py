"""Every error ends with what to do, as an imperative sentence: read from the source, so that a new one is seen."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from rlaif import errors
from rlaif.errors import RlaifError

ROOT = Path(__file__).parents[1]
PACKAGES = ("rlaif", "actors", "learners", "cluster")
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, RlaifError)}
PLACES = {name: 2 for name in ERRORS} | {"wrong": 3}
"""Which argument the fix is: of every error of ours, and of what collects problems before a start."""
VERBS = set(
    """add append change check choose collect convert copy correct give free leave let load look lower mend merge move
    name open pin publish put raise re-encode relax remove rename repair replace report resume run send set start train
    type update use wait write""".split()
)


def fixes(source: str) -> list[tuple[int, str]]:
    """Return (line, text) of the fix of every error of ours, as far as it is written out in the file.

    `{}` stands for what is filled in. Names are followed to what is assigned to them.
    """
    tree = ast.parse(source)
    assigned = defaultdict(list)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned[node.targets[0].id].append(node.value)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            place = PLACES.get(ast.unparse(node.func).split(".")[-1], len(node.args))
            found += [(node.lineno, text) for fix in node.args[place : place + 1] for text in texts(fix, assigned)]
    return found


def texts(node: ast.expr, assigned: dict[str, list[ast.expr]]) -> list[str]:
    """Return the texts that an expression may be."""
    if isinstance(node, ast.Constant):
        return [str(node.value)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)]
    parts = []
    if isinstance(node, ast.IfExp):
        parts = [node.body, node.orelse]
    elif isinstance(node, ast.BoolOp):
        parts = node.values
    elif isinstance(node, ast.Name):
        return [text for value in assigned.get(node.id, []) for text in texts(value, {})]
    return [text for part in parts for text in texts(part, assigned)]


def is_imperative(text: str) -> bool:
    """Say whether a text begins with a verb. What begins with something filled in is read in its own place."""
    return text.startswith("{}") or text.split()[0].lower() in VERBS


def test_every_error_says_what_to_do():
    found = []
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            found += [(file.relative_to(ROOT), line, text) for line, text in fixes(file.read_text())]
    assert len(found) > 200
    assert [f"{file}:{line}: {text}" for file, line, text in found if not is_imperative(text)] == []


@pytest.mark.parametrize(
    "line",
    [
        "raise ConfigError('a file', 'none', 'the path')",
        "raise errors.DataError('a', 'b', f'data.root, or {option}')",
        "change = 'either option'\nraise ConfigError('a', 'b', change)",
        "raise ConfigError('a', 'b', 'Set it' if it else 'the caller')",
    ],
)
def test_a_fix_that_is_no_sentence_is_seen(line):
    assert not all(is_imperative(text) for _, text in fixes(line))


def test_an_error_is_printed_with_its_fix():
    error = RlaifError("a file", "none", "Set `data.root` to its folder")
    assert str(error).splitlines() == ["expected a file", "  found    none", "  fix      Set `data.root` to its folder"]
