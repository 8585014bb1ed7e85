"""Cutting a text into sentences and list items, without a language model."""

from __future__ import annotations

import re

_MARK = r"(?:[-*•–—]+|\(?\d{1,3}[.)])\s+"
_ITEM = re.compile(r"\A\s*" + _MARK)
_BLOCK = re.compile(r"\n\s*\n|\n(?=\s*" + _MARK + ")")
"""A blank line, or a line that begins a list item; any other line break may stand inside a sentence."""
_END = re.compile(r"""(?P<mark>[.!?…]+)(?P<closing>["'”’)\]]*)(?=\s|$)|[。！？]+[”’」』）]*""")
_NEVER = frozenset("mr mrs ms dr prof st vs e.g i.e eg ie cf approx al".split())
"""A dot after these ends no sentence."""
_NUMBERED = frozenset("no nos fig figs p pp vol ch sec".split())
"""Nor after these where a number follows."""
_UNSURE = re.compile(r"etc|jr|sr|inc|ltd|co|ft|min|[a-z](?:\.[a-z])+")
"""After these it does where the next word begins with a capital: a.m. and its like."""
_LETTERS = re.compile(r"[A-HJ-Z]|[A-Z](?:\.[A-Z])+")
"""An initial, or letters like U.S.: what follows is more often a name than a new sentence."""


def sentences(text: str) -> list[str]:
    """The sentences and list items of a text, in order, with single spaces and without list marks.

    Every word of the text is in one of them. What holds no letter or digit is left out.
    """
    pieces = [piece for block in _BLOCK.split(text) for piece in _sentences(_ITEM.sub("", block))]
    return [piece for piece in (_ITEM.sub("", " ".join(piece.split())) for piece in pieces) if re.search(r"\w", piece)]


def _sentences(block: str) -> list[str]:
    pieces, start = [], 0
    for end in _END.finditer(block):
        if not end["mark"] or _ends(block[start : end.start()].strip(), end, block[end.end() :].lstrip()):
            pieces.append(block[start : end.end()])
            start = end.end()
    return [*pieces, block[start:]]


def _ends(before: str, end: re.Match[str], after: str) -> bool:
    """Does this mark end the sentence? `before`: the sentence so far; `after`: the text that follows."""
    if not after:
        return True
    if end["mark"] != "." or end["closing"]:
        pause = end["closing"] or end["mark"] in ("...", "…")  # he said "stop!" and left; well ... then
        return not (pause and after[0].islower())
    word = re.sub(r"^\W+", "", before.split()[-1]) if before else ""
    folded = word.casefold()
    if before.isdigit() or folded in _NEVER or _LETTERS.fullmatch(word):  # the first: a list's number
        return False
    if folded in _NUMBERED and after[0].isdigit():
        return False
    return not _UNSURE.fullmatch(word) or after[0].isupper()
