"""`tools/style.py` counts correctly on small snippets."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOALS = {
    "tokens_per_code_line": (0, 9),
    "comprehensions_per_1000": (0, 30),
    "nested_comprehensions_per_1000": (0, 1.5),
    "comment_lines_share": (0.02, 1),
    "verb_docstrings": (0.65, 1),
    "where_per_1000_doc_words": (0, 1),
    "names_defined_twice": (0, 0.015),
    "participles_per_1000_assignments": (0, 5),
    "function_p90": (0, 20),
    "function_max": (0, 50),
}
"""The least and the greatest value that each measure of the core may have."""


@pytest.fixture(scope="module")
def style():
    spec = importlib.util.spec_from_file_location("style", ROOT / "tools" / "style.py")
    module = importlib.util.module_from_spec(spec)
    # Its dataclass looks its module up by name.
    sys.modules["style"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["style"]


@pytest.fixture
def counts(style):
    """Return counts(*texts), which counts the texts as files `0.py`, `1.py`, ..."""

    def count(*texts: str):
        total = style.Counts()
        for number, text in enumerate(texts):
            total.add(text, f"{number}.py")
        return total

    return count


def test_every_goal_is_a_measure_of_the_core(style):
    measures = style.measure(ROOT)
    assert GOALS.keys() <= measures.keys()
    assert measures["files"] > 100


@pytest.mark.parametrize("name", GOALS)
def test_the_core_reaches_the_goal(style, name):
    least, greatest = GOALS[name]
    assert least <= style.measure(ROOT)[name] <= greatest


def test_docstrings_comments_and_blank_lines_are_no_code(counts):
    text = '"""Module."""\n\n# why\nx = 1  # beside code\n\n\ndef f():\n    """Return one.\n\n    Always.\n    """\n    return x\n'
    total = counts(text)
    assert total.lines == 12
    # `x = 1`, `def f ( ) :` and `return x`
    assert (total.code_lines, total.code_tokens) == (3, 10)
    assert total.comment_lines == 1


def test_each_line_of_a_long_string_is_code_of_one_token(counts):
    total = counts('text = """one\ntwo\n"""\n')
    assert (total.code_lines, total.code_tokens) == (3, 3)


@pytest.mark.parametrize(
    ("expression", "all_of_them", "nested"),
    [
        ("[x for x in rows]", 1, 0),
        ("{x for x in rows}, {x: 1 for x in rows}, sum(x for x in rows)", 3, 0),
        ("[x for row in rows for x in row]", 1, 1),
        ("[[x for x in row] for row in rows]", 2, 1),
        ("[f(y for y in x) for x in rows if any(z for z in x)]", 3, 1),
        ("[x for x in [y for y in rows]]", 2, 1),
        ("f([x for x in a], [y for y in b])", 2, 0),
    ],
)
def test_nested_comprehensions_are_those_with_two_loops_or_another_within(counts, expression, all_of_them, nested):
    total = counts(f"value = {expression}\n")
    assert (total.comprehensions, total.nested_comprehensions) == (all_of_them, nested)


@pytest.mark.parametrize(
    ("statement", "names", "participles"),
    [
        ("found = 1", 1, 1),
        ("rows, kept = f()", 2, 1),
        ("a = told = 1", 2, 1),
        ("left: int = 1", 1, 1),
        ("for given in rows:\n    pass", 1, 1),
        ("f(done := 1)", 1, 1),
        ("self.found = 1", 1, 0),
        ("found_rows = found", 1, 0),
        ("[made for made in rows]", 0, 0),
        ("f(sent=1)", 0, 0),
    ],
)
def test_participles_count_as_assigned_names_only(counts, statement, names, participles):
    total = counts(statement + "\n")
    assert (total.assigned_names, total.participles) == (names, participles)


@pytest.mark.parametrize(
    ("docstring", "verb"),
    [
        ("Return the mean.", True),
        ("Returns the mean.", True),
        ("Raise.", True),
        ("return the mean.", False),
        ("The mean.", False),
        ("Where the mean is.", False),
        ("`Return` of the mean.", True),
        ("...", False),
    ],
)
def test_a_docstring_begins_with_a_verb_that_has_a_capital_letter(style, docstring, verb):
    assert style.begins_with_verb(docstring) == verb


def test_only_functions_count_for_verbs_and_all_docstrings_for_where(counts):
    text = (
        '"""Where it is."""\nclass A:\n    """Return, where."""\n    def f(self):\n        """Return it elsewhere."""\n'
    )
    total = counts(text)
    assert (total.function_docstrings, total.verb_docstrings) == (1, 1)
    assert (total.docstring_words, total.docstring_wheres) == (8, 2)


def test_a_public_name_of_two_files_counts_once_and_methods_and_private_names_do_not(counts):
    first = "def load(): pass\ndef _helper(): pass\nclass A:\n    def run(self): pass\n"
    second = "def load(): pass\ndef _helper(): pass\nclass B:\n    def run(self): pass\n"
    measures = counts(first, second).measures()
    # `load` of `load`, `A` and `B`
    assert measures["names_defined_twice"] == 0.3333


def test_a_function_is_as_long_as_its_lines_without_decorators(counts):
    measures = counts("@cache\ndef f():\n    x = 1\n    return x\n\n\ndef g(): pass\n").measures()
    assert (measures["function_median"], measures["function_p90"], measures["function_max"]) == (2, 3, 3)
    assert measures["longest"] == ["0.py:g", "0.py:f"]


def test_a_sample_is_drawn_from_sorted_places_and_shows_path_line_name_and_source(style, tmp_path):
    package = tmp_path / "core"
    package.mkdir()
    (package / "b.py").write_text("def g():\n    return 2\n")
    (package / "a.py").write_text(
        "class A:\n    @property\n    def f(self):\n        def inner(): pass\n        return inner\n"
    )
    sources = {
        ("core/a.py", "A.f"): (
            "# core/a.py:3 A.f\n    @property\n    def f(self):\n        def inner(): pass\n        return inner"
        ),
        ("core/a.py", "A.f.inner"): "# core/a.py:4 A.f.inner\n        def inner(): pass",
        ("core/b.py", "g"): "# core/b.py:1 g\ndef g():\n    return 2",
    }
    for seed in range(4):
        drawn = random.Random(seed).sample(sorted(sources), 2)
        assert style.sample(tmp_path, ["core"], 2, seed) == "\n\n".join(sources[place] for place in drawn)
    assert style.sample(tmp_path, ["core"], 9, 0).count("# core/") == 3


def test_the_command_prints_one_json_object_of_the_folders_named(tmp_path):
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "a.py").write_text("x = 1\n")
    command = [sys.executable, str(ROOT / "tools" / "style.py"), str(tmp_path), "core"]
    measures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (measures["files"], measures["code_tokens"], measures["tokens_per_code_line"]) == (1, 3, 3.0)
