"""The fix of every error is an imperative sentence. Fixes are read from the source, so that new errors are covered."""

from __future__ import annotations

from pathlib import Path

import pytest
from error_fixes import FixReader

from rlaif import errors
from rlaif.errors import RlaifError
from rlaif.io.writable import Obstacle

ROOT = Path(__file__).parents[1]
PACKAGES = ("rlaif", "actors", "learners", "cluster")
CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RlaifError)]
ERRORS = frozenset({kind.__name__ for kind in CLASSES} | {Obstacle.__name__})
"""Classes whose third argument is a fix."""
WORDS = """
    Add Append Change Check Choose Collect Compare Convert Copy Correct Encode Extract Free Give Install Leave Let Load
    Look Lower Make Mend Merge Mount Move Name Open Pin Publish Put Raise Re-encode Relax Remove Rename Repair
    Replace Report Reset Restore Resume Run Send Set Start Train Type Update Use Wait Write
"""
VERBS = frozenset(WORDS.split())
"""Verbs that a fix may begin with; a new one is added here."""


def flaw(text: str) -> str:
    """Return why a fix is not an imperative sentence; empty if it is one."""
    first = text.split(" ")[0]
    if first not in VERBS:
        return f"begins with {first!r}, which is none of the verbs"
    if not text.endswith("."):
        return "ends without a period"
    return "ends with two periods" if text.endswith("..") else ""


def read(*lines: str) -> FixReader:
    """Return the fixes of a file of these lines."""
    return FixReader({Path("example.py"): "\n".join(lines)}, ERRORS)


def test_every_fix_is_an_imperative_sentence():
    files = []
    for package in PACKAGES:
        files += sorted((ROOT / package).rglob("*.py"))
    reader = FixReader({file: file.read_text() for file in files}, ERRORS)
    assert len(reader.fixes) > 200
    assert [f"{fix} ({flaw(fix.text)})" for fix in reader.fixes if flaw(fix.text)] == []
    assert reader.opaque == [], "write the fix out, or assign it to a name in the same function"


@pytest.mark.parametrize(
    "fix", ["the path.", "data.root, or another option.", "either option.", "set it.", "Set it", "Set it...", "{}."]
)
def test_flaw_of_a_fix_that_is_no_imperative_sentence(fix):
    assert flaw(fix)


@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        (["raise ConfigError('a', 'b', 'Set it.')"], ["Set it."]),
        (["raise errors.DataError('a', 'b', fix=f'Set {option} to {value}.')"], ["Set {} to {}."]),
        (["raise ConfigError('a', 'b', 'Set it.' if it else 'Wait.')"], ["Set it.", "Wait."]),
        (["raise ConfigError('a', 'b', 'Set it' + (', or wait.' if it else '.'))"], ["Set it, or wait.", "Set it."]),
        (["fix = 'one'", "def check():", "  found, fix = 0, 'two'", "  raise DataError('a', found, fix)"], ["two"]),
        (["FIX = 'one'", "def check():", "  raise DataError('a', 'b', FIX)"], ["one"]),
        (["def advice():", "  return 'Wait.'", "raise ConfigError('a', 'b', advice())"], ["Wait."]),
        (["def two():", "  return 'b', 'Wait.'", "found, fix = two()", "DataError('a', found, fix)"], ["Wait."]),
        (["def _broken(fix):", "  return RlaifError('a', 'b', fix)", "_broken('Set it.')"], ["Set it."]),
        (["class A:", "  def wrong(self, fix):", "    DataError('a', 'b', fix)", "A().wrong('Set it.')"], ["Set it."]),
        (["fix = {'a': 'Set a.'}.get(key, 'Wait.')", "raise ConfigError('a', 'b', fix)"], ["Set a.", "Wait."]),
        (["raise ConfigError(error.expected, 'b', error.fix)", "raise DataError(*parts)"], []),
        (["raise ConfigError('a', 'b', ' '.join(it.fix for it in several) or 'Wait.')"], ["Wait."]),
    ],
)
def test_fixes_are_followed_to_their_texts(lines, texts):
    reader = read(*lines)
    assert [fix.text for fix in reader.fixes] == texts and reader.opaque == []


def test_a_fix_that_cannot_be_followed_is_reported():
    assert read("raise ConfigError('a', 'b', '; '.join(fixes))").opaque == ["example.py:1: '; '.join(fixes)"]


def test_an_error_is_printed_with_its_fix():
    error = RlaifError("a file", "none", "Set `data.root` to its folder.")
    assert str(error).splitlines() == [
        "expected a file",
        "  found    none",
        "  fix      Set `data.root` to its folder.",
    ]
