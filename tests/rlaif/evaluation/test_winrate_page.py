"""The page that shows win matrices."""

import xml.etree.ElementTree as ElementTree

import pytest

from rlaif.evaluation.winrate import win_matrix
from rlaif.evaluation.winrate_page import UNKNOWN, cell_colour, text_colour, winrate_page

WITH_MARKUP = 'a <b> & "c"'
SCORES = {WITH_MARKUP: {"1": 1.0, "2": 0.0, "3": 1.0}, "rlaif": {"1": 0.0, "2": 1.0, "3": 0.0}, "none": {}}


@pytest.fixture
def page():
    """Return the parsed page of two matrices with the same numbers; names and title hold markup."""
    matrix = win_matrix(SCORES)
    text = winrate_page({"over & under": matrix, "dimension: <i>": matrix}, title='wins & "losses"')
    return ElementTree.fromstring(text)


def test_page_has_one_named_table_per_matrix(page):
    assert [heading.text for heading in page.iter("h1")] == ['wins & "losses"']
    assert [title.text for title in page.iter("title")] == ['wins & "losses"']
    assert [heading.text for heading in page.iter("h2")] == ["over & under", "dimension: <i>"]
    assert len(list(page.iter("table"))) == 2


def test_cells_show_rate_interval_and_number_of_prompts(page):
    table = next(page.iter("table"))
    cells = [cell for cell in table.iter("td") if cell.text]
    assert [cell.text for cell in cells] == ["0.50", "–", "0.67", "–", "0.50", "–", "0.33", "–", "0.50"]
    details = [cell.findtext("small") for cell in cells]
    assert details[:3] == ["n = 3", "n = 0", "0.21 – 0.94, n = 3"]
    tooltip = cells[2].get("title")
    assert tooltip == f"{WITH_MARKUP} against rlaif: 3 prompts, 95 % interval 0.21 to 0.94"


def test_rows_and_columns_carry_the_models_names(page):
    table = next(page.iter("table"))
    models = list(win_matrix(SCORES).models)
    for scope in ("row", "col"):
        assert [heading.text for heading in table.iter("th") if heading.get("scope") == scope] == models


def test_equal_rates_have_equal_colours_and_others_differ(page):
    table = next(page.iter("table"))
    styles = [cell.get("style") for cell in table.iter("td") if cell.text]
    assert styles[0] == styles[4] == styles[8]
    assert len({styles[0], styles[1], styles[2], styles[6]}) == 4
    assert f"background: rgb{UNKNOWN}" in styles[1]


def test_page_refers_to_nothing_outside_itself():
    text = winrate_page({"overall": win_matrix(SCORES)})
    for reference in ("http", "src=", "href=", "url(", "@import", "<script"):
        assert reference not in text


def test_page_without_models_or_matrices_is_valid():
    assert list(ElementTree.fromstring(winrate_page({})).iter("table")) == []
    page = ElementTree.fromstring(winrate_page({"overall": win_matrix({})}))
    assert len(list(page.iter("table"))) == 1


def contrast(one, other):
    """Return the contrast of two colours by WCAG 2, from 1 to 21."""

    def luminance(colour):
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", [*(cell_colour(step / 100) for step in range(101)), UNKNOWN])
def test_numbers_stand_out_from_their_cell(colour):
    """WCAG 2 asks for a contrast of at least 4.5."""
    text = (0, 0, 0) if text_colour(colour) == "#000" else (255, 255, 255)
    assert contrast(colour, text) >= 4.5
