"""CONTRIBUTING's examples work in a copy of the repository, and need no other file than those that it names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
COPIED = ("rlaif", "actors", "learners", "cluster", "configs", "docs", "tests", "README.md", "pyproject.toml")
EXAMPLES = {name: yaml.safe_load((HERE / f"{name}.yaml").read_text()) for name in ("stage", "format")}
# Each writes a page from the code, as `make docs` does.
GENERATORS = {"rlaif.cli.docs": None, "rlaif.config.options": "docs/options.md"}
COMMANDS = """
import sys
from rlaif.cli.main import main
for words in {commands!r}:
    print("$", *words, flush=True)
    try:
        code = main(words)
    except SystemExit as stopped:
        code = stopped.code
    print("exit code", code, flush=True)
"""


def named_files(section: str) -> list[re.Pattern]:
    """Return a pattern for each file that a section of CONTRIBUTING.md names; NAME and WING stand for one word each."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    steps = text.partition(f"### {section}\n")[2].partition("\n### ")[0]
    patterns = []
    for path in re.findall(r"`([\w./]+\.(?:py|md|json))`", steps):
        words = re.escape(path).replace("NAME", r"\w+").replace("WING", r"\w+")
        patterns.append(re.compile(words))
    return patterns


def insert(file: Path, change: dict) -> None:
    """Insert lines before or after the one line that a change names."""
    text = file.read_text()
    line = change.get("before") or change["after"]
    assert text.splitlines().count(line) == 1, f"{file}: not exactly one line {line!r}"
    if "before" in change:
        text = text.replace(f"{line}\n", f"{change['lines']}{line}\n")
    else:
        text = text.replace(f"{line}\n", f"{line}\n{change['lines']}")
    file.write_text(text)


def files_of(root: Path) -> dict[str, bytes]:
    """Return the contents of all files by their path; caches are left out."""
    contents = {}
    for top in COPIED:
        path = root / top
        for file in path.rglob("*") if path.is_dir() else [path]:
            relative = file.relative_to(root)
            if file.is_file() and not {"__pycache__", ".pytest_cache", ".hypothesis"} & set(relative.parts):
                contents[str(relative)] = file.read_bytes()
    return contents


class Copy:
    """A copy of the repository with both examples in it."""

    def __init__(self, root: Path):
        self.root = root
        ignored = shutil.ignore_patterns("__pycache__", ".pytest_cache", ".hypothesis", "studies")
        for top in COPIED:
            if (ROOT / top).is_dir():
                shutil.copytree(ROOT / top, root / top, ignore=ignored)
            else:
                shutil.copy(ROOT / top, root / top)
        self.before = files_of(root)
        for example in EXAMPLES.values():
            for target, source in example["new"].items():
                shutil.copy(HERE / source, root / target)
            for change in example["added"]:
                insert(root / change["file"], change)
        for module, page in GENERATORS.items():
            text = self.python("-m", module).stdout
            if page is not None:
                (root / page).write_text(text)

    def python(self, *words: str) -> subprocess.CompletedProcess:
        """Run Python in the copy, on the copy's packages."""
        environment = {**os.environ, "PYTHONPATH": str(self.root)}
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=300)

    def changed(self) -> list[str]:
        """Return the files that the examples and the generators changed or added."""
        now = files_of(self.root)
        return sorted(path for path, content in now.items() if self.before.get(path) != content)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Copy:
    return Copy(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def printed(copy) -> dict[str, str]:
    """Return what each command prints in the copy, with its exit code, by the words that were typed."""
    config = copy.root / "lengths.yaml"
    config.write_text(f"name: x\nstorage: {copy.root}/runs\ndata: {{root: {copy.root}}}\n")
    rows = "tests/newcomer/clip_questions.jsonl"
    commands = [
        ["help"],
        ["options", "lengths"],
        ["check", str(config), "--stage", "lengths", "lengths.short=50"],
        ["check", str(config), "lengths.shrt=3"],
        ["data", "check", rows, "--no-videos"],
    ]
    result = copy.python("-c", COMMANDS.format(commands=commands))
    assert result.stdout.count("exit code") == len(commands), result.stderr
    texts = {}
    for part in result.stdout.split("$ ")[1:]:
        typed, _, text = part.partition("\n")
        texts[typed.replace(str(config), "CONFIG")] = text
    return texts


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=EXAMPLES)
def test_an_example_changes_only_files_that_its_section_names(example):
    patterns = named_files(example["section"])
    changed = [*example["new"], *(change["file"] for change in example["added"])]
    assert patterns
    assert [path for path in changed if not any(pattern.fullmatch(path) for pattern in patterns)] == []


def test_the_copy_differs_only_in_files_that_contributing_names(copy):
    patterns = []
    for example in EXAMPLES.values():
        patterns += named_files(example["section"])
    changed = copy.changed()
    assert "rlaif/stages/table.py" in changed and "README.md" in changed
    assert [path for path in changed if not any(pattern.fullmatch(path) for pattern in patterns)] == []


def test_commands_know_the_new_stage(printed):
    assert "lengths   sampled answers by length" in printed["help"]
    assert "lengths.short  (integer >= 0; default 2)" in printed["options lengths"]
    problems = printed["check CONFIG --stage lengths lengths.short=50"]
    assert "lengths.short (50) must be below lengths.long (40)" in problems
    assert "data.candidates: a file" in problems and "2 problem(s)" in problems and "exit code 1" in problems
    assert "nearest is `lengths.short`" in printed["check CONFIG lengths.shrt=3"]


def test_data_check_knows_the_new_format(printed):
    text = printed["data check tests/newcomer/clip_questions.jsonl --no-videos"]
    assert "clip_questions" in text and "missing field" in text and "ask: Field required" in text
    assert "exit code 1" in text


def test_other_tests_pass_in_the_copy(copy):
    """They would fail if another list of stages or formats, or a page, had to be changed too."""
    files = ["tests/rlaif/stages/test_table.py", "tests/rlaif/cli/test_docs.py", "tests/rlaif/stages/test_lengths.py"]
    chosen = "not test_formats or clip_questions"
    result = copy.python("-m", "pytest", "-q", "-x", *files, "tests/rlaif/data/test_formats.py", "-k", chosen)
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.parametrize("file", ["rlaif/cli/main.py", "rlaif/stages/train/ppo.py"])
def test_another_file_would_be_noticed(file):
    assert not any(pattern.fullmatch(file) for pattern in named_files("a data format"))
