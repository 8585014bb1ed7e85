"""Links, files, tests, commands and options in README and docs exist, and the configurations there load."""

from __future__ import annotations

import re
import shlex
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path

import pytest
import yaml

from rlaif.cli.main import parse_arguments
from rlaif.config.load import load_config
from rlaif.config.options import all_options
from rlaif.stages.table import scope_of

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
COMMAND = re.compile(r"(?:^(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?|python\"? -m )rlaif (?=[a-z-])")
"""What comes before the arguments on a line that runs a command of ours, perhaps in a job."""
FOLDERS = "rlaif|actors|learners|cluster|configs|tests|docs|requirements"
ENDINGS = (".json", ".jsonl", ".yaml", ".py", ".md", ".svg", ".parquet", ".gz", ".html")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@cache
def fences(page: Path) -> list[tuple[str, str]]:
    """Return (language, text) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.S | re.M)


@cache
def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)


def code_spans(page: Path) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def code_lines(page: Path) -> list[str]:
    """Return the lines of fenced and indented blocks; a line that ends with a backslash goes on."""
    indented = "\n".join(line[4:] for line in prose(page).splitlines() if line.startswith("    "))
    text = "\n".join([indented, *(text for language, text in fences(page) if language in ("", "bash", "sh"))])
    return re.sub(r"\\\n\s*", "", text).splitlines()


def arguments(command: str) -> list[str]:
    """Return the arguments that a command line passes to `rlaif`: without comments, columns beside it, and the marks of optional parts."""
    command = command.strip()[COMMAND.search(command.strip()).end() :]
    command = re.split(r"\s{2,}|\s#|&&|\s>", command)[0]
    return shlex.split(re.sub(r"\[|\]|\.\.\.", " ", command)) if "'" not in command else shlex.split(command)


def understood(words: list[str]) -> bool:
    try:
        parse_arguments(words)
    except SystemExit as end:
        return end.code == 0
    return True


def slug(heading: str) -> str:
    """Return the anchor that a heading gets."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


@every_page
def test_every_relative_link_leads_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M) if path.is_file() and anchor else []
        if not path.exists() or (anchor and anchor not in map(slug, headings)):
            broken.append(target)
    assert broken == []


@every_page
def test_every_command_line_is_understood(page, capsys):
    lines = [line for line in code_lines(page) if COMMAND.search(line.strip())]
    assert [line for line in lines if not understood(arguments(line))] == [], capsys.readouterr().err


@every_page
def test_every_command_in_a_sentence_exists(page, capsys):
    """Accept a command without its arguments."""
    missing = []
    for span in code_spans(page):
        if COMMAND.search(span):
            words = arguments(span)
            fillers = (
                [],
                ["CONFIG"],
                ["FILE"],
                ["DIR"],
                ["--out", "DIR"],
                ["IN", "OUT", "--to", "NAME"],
                ["shapes", "--out", "DIR"],
            )
            if not any(understood([*words, *filler]) for filler in fillers):
                missing.append(span)
    assert missing == [], capsys.readouterr().err


@cache
def options() -> frozenset[str]:
    return frozenset(option.path for option in all_options())


def named_options(page: Path) -> set[str]:
    """Return dotted names that begin with a section, from sentences and from `key=value` on command lines."""
    words = [match[1] for span in code_spans(page) if (match := re.match(r"([a-z_]+(?:\.[a-z_]+)+)(?=[=:, ]|$)", span))]
    for line in code_lines(page):
        if COMMAND.search(line.strip()):
            words += [word.partition("=")[0] for word in arguments(line) if re.match(r"[a-z_.]+=", word)]
    sections = {path.partition(".")[0] for path in options()}
    return {word for word in words if word.partition(".")[0] in sections and not word.endswith(ENDINGS)} - {"key"}


@every_page
def test_every_option_exists(page):
    if page.name == "families.md":  # `model.visual` is a path of a module there
        return
    assert named_options(page) - options() == set()


def keys_of(section: object, prefix: str = "") -> set[str]:
    """Return the dotted names in a YAML block, groups included; keys below an option that is a mapping are no options."""
    paths: set[str] = set()
    for key, value in section.items() if isinstance(section, dict) else ():
        path = f"{prefix}{key}"
        paths.add(path)
        if any(option.startswith(f"{path}.") for option in options()):
            paths |= keys_of(value, f"{path}.")
    return paths


@every_page
def test_configurations_are_valid(page, tmp_path):
    """Every option of a part exists; one with a name is a whole configuration, and its options fit together."""
    for language, text in fences(page):
        if language == "yaml":
            content = yaml.safe_load(text)
            assert keys_of(content) - options() == set()
            if "name" in content:
                file = tmp_path / "config.yaml"
                file.write_text(text)
                for stage in ("sft", "reward", "ppo"):
                    load_config(file, [], scope_of(stage))


@every_page
def test_every_file_named_exists(page):
    named = re.findall(rf"(?<![\w/<.~-])((?:{FOLDERS})/[\w./-]*\.(?:py|yaml|md|lock|sh|svg|json))\b", prose(page))
    assert [file for file in named if "NAME" not in file and not (ROOT / file).is_file()] == []


@every_page
def test_every_test_named_exists(page):
    missing = []
    for file, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", prose(page)):
        if not re.search(rf"^def {name}\(", (ROOT / file).read_text() if (ROOT / file).is_file() else "", re.M):
            missing.append(f"{file}::{name}")
    assert missing == []


def test_the_table_of_silent_faults_names_a_test_per_row():
    section = (ROOT / "README.md").read_text().partition("## What goes wrong silently")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 12
    for row in rows:
        assert re.search(r"#\d+", row) and re.search(r"tests/\S+\.py::test_\w+", row), row


def test_the_first_screen_says_what_it_is_its_status_and_two_commands():
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:16])
    for text in ("video-language model", "make demo", "make test", "Status", "GPU"):
        assert text in screen


def test_the_demos_figures_come_with_their_range():
    section = (ROOT / "README.md").read_text().partition("## The demo")[2].partition("\n## ")[0]
    assert "<!-- demo-table -->" in section and "SEEDS=3" in section
    assert re.search(r"qa_accuracy was between 0\.\d+ and 0\.\d+", section)
    assert re.search(r"between\s+\d+ %\s+and\s+\d+ %\s+of the greedy hallucination", section)


def test_architecture_says_when_a_resume_repeats_nothing_and_what_is_checked_before_ray():
    """Each sentence names its conditions: other seeds or batch sizes change the order, and videos need the frame store."""
    page = " ".join((ROOT / "docs" / "architecture.md").read_text().split())
    assert "With these unchanged, a resume neither repeats nor skips a prompt" in page
    assert "**Before Ray starts**" in page and "**Before engines and learners start**" in page
    assert "adapter shape" not in page


def test_the_picture_has_a_title_and_a_dark_mode():
    picture = ROOT / "docs" / "system.svg"
    assert ElementTree.parse(picture).getroot().find("{http://www.w3.org/2000/svg}title") is not None
    assert "prefers-color-scheme: dark" in picture.read_text()
