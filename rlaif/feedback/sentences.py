"""Split a text into sentences and list items, without a language model."""

from __future__ import annotations

import re

_MARK = r"(?:[-*•–—]+|\(?\d{1,3}[.)])\s+"
_ITEM = re.compile(r"\A\s*" + _MARK)
_BLOCK = re.compile(r"\n\s*\n|\n(?=\s*" + _MARK + ")")
"""A blank line, or a line that begins a list item; any other line break may be inside a sentence."""
# A mark ends a sentence only before a space or the end of the text, so that 3.5 stays whole.
_END = re.compile(r"""(?P<mark>[.!?…]+)(?P<closing>["'”’)\]]*)(?=\s|$)|[。！？]+[”’」』）]*""")
_NEVER = frozenset(("mr", "mrs", "ms", "dr", "prof", "st", "vs", "e.g", "i.e", "eg", "ie", "cf", "approx", "al"))
"""A dot after these ends no sentence."""
_NUMBERED = frozenset(("no", "nos", "fig", "figs", "p", "pp", "vol", "ch", "sec"))
"""Nor after these, if a number follows."""
_UNSURE = re.compile(r"etc|jr|sr|inc|ltd|co|ft|min|[a-z](?:\.[a-z])+")
"""A dot after these ends a sentence if the next word begins with a capital: a.m. and its like."""
_LETTERS = re.compile(r"[A-HJ-Z]|[A-Z](?:\.[A-Z])+")
"""An initial, or letters like U.S.: what follows is more often a name than a new sentence."""


def sentences(text: str) -> list[str]:
    """Return the sentences and list items of a text, in order, with single spaces and without list marks.

    Every word of the text is in one of them. Pieces without a letter or digit are left out.
    """
    pieces: list[str] = []
    for block in _BLOCK.split(text):
        for piece in _sentences(_ITEM.sub("", block)):
            # A list mark may also follow the end of a sentence inside the block.
            plain = _ITEM.sub("", " ".join(piece.split()))
            if re.search(r"\w", plain):
                pieces.append(plain)
    return pieces


def _sentences(block: str) -> list[str]:
    pieces, start = [], 0
    for end in _END.finditer(block):
        before = block[start : end.start()].strip()
        after = block[end.end() :].lstrip()
        # A Chinese or Japanese full stop (no `mark`) always ends a sentence.
        if not end["mark"] or _ends_sentence(before, end, after):
            pieces.append(block[start : end.end()])
            start = end.end()
    return [*pieces, block[start:]]


def _ends_sentence(before: str, end: re.Match[str], after: str) -> bool:
    """Tell whether a mark ends the sentence. `before`: the sentence so far; `after`: the text that follows."""
    if not after:
        return True
    if end["mark"] != "." or end["closing"]:
        # No end before a small letter: he said "stop!" and left; well ... then.
        pause = end["closing"] or end["mark"] in ("...", "…")
        return not (pause and after[0].islower())
    if before.isdigit():  # a list's number
        return False
    word = re.sub(r"^\W+", "", before.split()[-1]) if before else ""
    folded = word.casefold()
    if folded in _NEVER or _LETTERS.fullmatch(word):
        return False
    if folded in _NUMBERED and after[0].isdigit():
        return False
    return not _UNSURE.fullmatch(word) or after[0].isupper()
