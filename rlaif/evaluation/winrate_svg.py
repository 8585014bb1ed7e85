"""Win matrices as one picture, readable on light and on dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from xml.sax.saxutils import escape, quoteattr

from rlaif.evaluation.winrate import WinMatrix

CELL, GAP, FONT = 76, 2, 13
"""Pixels; so are all lengths here. FONT is the size of labels."""
COLUMNS = 3
"""Panels side by side."""
TITLE = 24
"""Height of the picture's title."""
LETTER = 0.62 * FONT
"""Width of a letter, on the safe side."""
LABEL = "#7a7a7a"
"""Contrast above 4 on white and on black."""
LOSS, EVEN, WIN = (178, 84, 36), (236, 236, 232), (33, 102, 172)
"""Colours of 0, 1/2 and 1: apart for colour-blind readers too."""
UNKNOWN = (150, 150, 150)


def svg(matrices: Mapping[str, WinMatrix], title: str = "Win rate: row beats column") -> str:
    """A panel per matrix under its name, COLUMNS side by side; all matrices are of the same models.

    One cell per pair of models with its rate; interval and number of prompts in the tooltip.
    """
    panels = [_panel(matrix, name) for name, matrix in matrices.items()]
    across, down = max(width for _, width, _ in panels), max(height for _, _, height in panels)
    columns = min(COLUMNS, len(panels))
    width = max(columns * across, len(title) * LETTER + 12)
    height = TITLE + -(-len(panels) // columns) * down
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label={quoteattr(title)} font-family="sans-serif" font-size="{FONT}">',
        f'<text x="6" y="20" fill="{LABEL}" font-weight="bold">{escape(title)}</text>',
    ]
    for number, (parts, _, _) in enumerate(panels):
        x, y = number % columns * across, TITLE + number // columns * down
        lines += [f'<g transform="translate({x:.1f} {y:.1f})">', *parts, "</g>"]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _panel(matrix: WinMatrix, name: str) -> tuple[list[str], float, float]:
    """(elements, width, height)."""
    longest = max((len(model) for model in matrix.models), default=0) * LETTER
    side, size = longest + 12, CELL * len(matrix.models)
    top = 34 + longest * math.sin(math.radians(40)) + FONT
    overhang = longest * math.cos(math.radians(40))  # the last column's label leans out to the right
    parts = [f'<text x="6" y="20" fill="{LABEL}" font-weight="bold">{escape(name)}</text>']
    for number, model in enumerate(matrix.models):
        middle = (number + 0.5) * CELL
        parts.append(_row_label(side - 8, top + middle, model))
        parts.append(_column_label(side + middle, top - 8, model))
    for i in range(len(matrix.models)):
        parts += [_cell(matrix, i, j, side + j * CELL, top + i * CELL) for j in range(len(matrix.models))]
    return parts, max(side + size + overhang, len(name) * LETTER) + 12, top + size + 12


def _row_label(x: float, y: float, name: str) -> str:
    return f'<text x="{x:.1f}" y="{y + FONT / 3:.1f}" fill="{LABEL}" text-anchor="end">{escape(name)}</text>'


def _column_label(x: float, y: float, name: str) -> str:
    return f'<text transform="translate({x:.1f} {y:.1f}) rotate(-40)" fill="{LABEL}">{escape(name)}</text>'


def _cell(matrix: WinMatrix, i: int, j: int, x: float, y: float) -> str:
    rate = float(matrix.wins[i, j])
    colour = _colour(rate)
    shown = "–" if math.isnan(rate) else f"{rate:.2f}"
    side = CELL - GAP
    return (
        f"<g><title>{escape(_tooltip(matrix, i, j))}</title>"
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{side}" height="{side}" rx="3" fill="rgb{colour}"/>'
        f'<text x="{x + side / 2:.1f}" y="{y + side / 2 + 5:.1f}" text-anchor="middle" font-size="{FONT + 2}" '
        f'fill="{_ink(colour)}">{shown}</text></g>'
    )


def _tooltip(matrix: WinMatrix, i: int, j: int) -> str:
    names = f"{matrix.models[i]} against {matrix.models[j]}"
    low, high = float(matrix.low[i, j]), float(matrix.high[i, j])
    interval = "" if math.isnan(low) else f", 95 % interval {low:.2f} to {high:.2f}"
    return f"{names}: {matrix.prompts[i, j]} prompts{interval}"


def _colour(rate: float) -> tuple[int, int, int]:
    if math.isnan(rate):
        return UNKNOWN
    end, share = (WIN, 2 * rate - 1) if rate >= 0.5 else (LOSS, 1 - 2 * rate)
    return tuple(round(a + (b - a) * share) for a, b in zip(EVEN, end, strict=True))


def _ink(colour: tuple[int, int, int]) -> str:
    """Black or white, whichever stands out more (relative luminance, WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
    luminance = sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "#fff"
