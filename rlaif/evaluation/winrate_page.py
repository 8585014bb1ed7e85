"""Win matrices as one HTML page with coloured tables. It needs no network and is readable on light and dark screens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from rlaif.evaluation.winrate import WinMatrix

Colour = tuple[int, int, int]
"""sRGB, each part from 0 to 255."""

LOSS: Colour = (178, 84, 36)
EVEN: Colour = (236, 236, 232)
WIN: Colour = (33, 102, 172)
"""Colours of the rates 0, 1/2 and 1. Orange and blue differ for colour-blind readers too."""
UNKNOWN: Colour = (150, 150, 150)
LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue in relative luminance (WCAG 2)."""

# `color-scheme` lets the browser choose light or dark text and background; only the cells set their own colours.
STYLE = """
:root { color-scheme: light dark; font-family: sans-serif; }
table { border-collapse: separate; border-spacing: 2px; }
th { font-weight: normal; padding: 0.4em; }
th[scope=row] { text-align: right; }
td { border-radius: 3px; min-width: 5em; padding: 0.5em; text-align: center; }
small { display: block; white-space: nowrap; }
"""


def winrate_page(matrices: Mapping[str, WinMatrix], title: str = "Win rate: row beats column") -> str:
    """Return an HTML page with one table per matrix, under the matrix's name and in the given order.

    A cell shows the win rate of its row's model against its column's, the 95 % interval and the number of prompts; its
    tooltip says the same in words. Names and title are escaped.
    """
    lines = ["<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8"/>']
    lines += [f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", "</head>", "<body>"]
    lines.append(f"<h1>{escape(title)}</h1>")
    for name, matrix in matrices.items():
        lines.append(f"<h2>{escape(name)}</h2>")
        lines += _table(matrix)
    lines += ["</body>", "</html>"]
    return "\n".join(lines) + "\n"


def _table(matrix: WinMatrix) -> list[str]:
    lines = ["<table>", _row("<td></td>", [_heading(model, "col") for model in matrix.models])]
    for i, model in enumerate(matrix.models):
        cells = [_cell(matrix, i, j) for j in range(len(matrix.models))]
        lines.append(_row(_heading(model, "row"), cells))
    return [*lines, "</table>"]


def _row(heading: str, cells: Sequence[str]) -> str:
    return f"<tr>{heading}{''.join(cells)}</tr>"


def _heading(model: str, scope: str) -> str:
    return f'<th scope="{scope}">{escape(model)}</th>'


def _cell(matrix: WinMatrix, i: int, j: int) -> str:
    rate = float(matrix.wins[i, j])
    colour = cell_colour(rate)
    text = "–" if math.isnan(rate) else f"{rate:.2f}"
    style = f"background: rgb{colour}; color: {text_colour(colour)}"
    tooltip = escape(_tooltip(matrix, i, j))
    return f'<td style="{style}" title="{tooltip}">{text}<small>{_details(matrix, i, j)}</small></td>'


def _details(matrix: WinMatrix, i: int, j: int) -> str:
    """Return the interval and the number of prompts in short; only the number without an interval."""
    low, high = matrix.low[i, j], matrix.high[i, j]
    count = f"n = {matrix.prompts[i, j]}"
    return count if math.isnan(low) else f"{low:.2f} – {high:.2f}, {count}"


def _tooltip(matrix: WinMatrix, i: int, j: int) -> str:
    names = f"{matrix.models[i]} against {matrix.models[j]}"
    low, high = matrix.low[i, j], matrix.high[i, j]
    interval = "" if math.isnan(low) else f", 95 % interval {low:.2f} to {high:.2f}"
    return f"{names}: {matrix.prompts[i, j]} prompts{interval}"


def cell_colour(rate: float) -> Colour:
    """Return the background of a win rate: from LOSS (0) over EVEN (1/2) to WIN (1), UNKNOWN for NaN."""
    if math.isnan(rate):
        return UNKNOWN
    end = WIN if rate >= 0.5 else LOSS
    share = abs(2 * rate - 1)
    parts = []
    for even, extreme in zip(EVEN, end, strict=True):
        parts.append(round(even + (extreme - even) * share))
    return tuple(parts)


def text_colour(background: Colour) -> str:
    """Return black or white, whichever has the higher contrast to the background (WCAG 2)."""
    luminance = 0.0
    for part, weight in zip(background, LUMINANCE, strict=True):
        luminance += weight * _linear(part / 255)
    # Contrast is (lighter + .05) / (darker + .05); black has luminance 0, white 1.
    with_black = (luminance + 0.05) / 0.05
    with_white = 1.05 / (luminance + 0.05)
    return "#000" if with_black > with_white else "#fff"


def _linear(part: float) -> float:
    """Undo the gamma of one sRGB part in 0..1."""
    return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
