"""The README's table of commands is generated; `python -m rlaif.cli.docs` brings it up to date."""

from __future__ import annotations

import pytest

from rlaif.cli.docs import README, command_table, with_command_table
from rlaif.stages.table import BENCHMARKS, STAGES


def test_readme_has_the_current_table_of_commands():
    text = README.read_text()
    assert with_command_table(text) == text, "run `python -m rlaif.cli.docs`"


def test_command_table_has_a_row_for_each_stage():
    table = command_table()
    for stage in (*STAGES, *BENCHMARKS):
        assert f"| `rlaif {stage.name} {stage.example}` | {stage.help} |\n" in table


@pytest.mark.parametrize("usage", ["init DIR", "options [SECTION]", "data convert IN OUT --to FORMAT", "help"])
def test_command_table_shows_what_other_commands_need(usage):
    assert f"| `rlaif {usage}` |" in command_table()


def test_a_readme_without_marks_is_an_error():
    with pytest.raises(ValueError, match="no table between"):
        with_command_table("# rlaif\n")
