"""Tables in Markdown."""

import pytest

from rlaif.markdown import markdown_table


def test_table_has_header_rule_and_one_line_per_row():
    table = markdown_table(["", "pairs"], [["overall", "12"], ["how", ""]])
    assert table == "|  | pairs |\n|---|---|\n| overall | 12 |\n| how |  |"


def test_table_without_rows_is_header_and_rule():
    assert markdown_table(["figure"], []) == "| figure |\n|---|"


def test_row_of_another_length_than_the_header_is_an_error():
    with pytest.raises(ValueError, match="1 cells in a table of 2 columns"):
        markdown_table(["a", "b"], [["1"]])
