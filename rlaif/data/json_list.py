"""Read a file that is one JSON list, element by element, in memory for a few elements.

This is our own reader because the streaming parsers that others use (ijson, for one) stop at the first value that is not
valid: one NaN, one byte that is not UTF-8 or one number of 5,000 digits in a list of 100,000 rows would cost all rows
after it. Here an element that is whole as JSON goes but holds such a value becomes `Unusable`, and reading goes on; a
list that was cut gives every element before the cut, and the byte.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from rlaif.data.strict_json import check_unicode, strict_decoder
from rlaif.errors import DataError

CHUNK = 2**20
LARGEST = 2**28
"""Characters of the largest element: beyond them the file is taken to be damaged."""
_SPACE = re.compile(r"[ \t\n\r]*")
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}]', re.DOTALL)
"""Strings, so that the brackets inside them do not count, and brackets."""
_SLACK = 16
"""A parser may stop this far before the end of a text that was cut inside a literal or an escape."""


class Damaged(Exception):
    """The list does not go on as JSON at a byte of the (uncompressed) file; elements before it are whole."""

    def __init__(self, offset: int, found: str):
        super().__init__(offset, found)
        self.offset, self.found = offset, found

    def __str__(self) -> str:
        return f"at byte {self.offset:,}: {self.found}"


class Cut(Damaged):
    """The file ends inside the list."""


@dataclass(frozen=True)
class Unusable:
    """Stands for an element with a value that JSON does not allow, or that no file could hold."""

    found: str
    value: Any = None
    """The element without that value, if the rest of it is known."""


def elements(file: BinaryIO, name: str) -> Iterator[Any]:
    """The elements of the list in `file`. Raises DataError where it is no list, Damaged where it stops being JSON."""
    text = _Window(file)
    mark = text.mark()
    if mark != "[":
        found = f"{mark!r} at its start" if mark else f"an empty file{text.ended or ''}"
        change = "Name a file of one row per line .jsonl. If an object holds the list, write the list alone"
        if not mark:
            change = "Give a file with rows in it"
        raise DataError(f"one JSON list in {name}", found, change)
    mark = text.mark(skip=1)
    if mark == "]":
        return text.finish()
    while True:
        yield text.element()
        mark = text.mark()
        if mark == "]":
            return text.finish()
        if mark != ",":
            raise text.unfinished("',' or ']' expected after an element")
        text.mark(skip=1)


class _Window:
    """The part of the file that is being parsed."""

    def __init__(self, file: BinaryIO):
        self.ended: str | None = None
        """Once the file has ended: what there is to say about it."""
        self._file, self._text, self._at, self._before = file, "", 0, 0
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._scan = strict_decoder(self._refuse).raw_decode
        self._refused: list[str] = []
        """What is wrong with the element that is being parsed, although it is whole."""
        self._more(CHUNK)
        if self._text.startswith("\ufeff"):
            self._at = 1

    def mark(self, skip: int = 0) -> str:
        """The next character that is no white space, after `skip` of them; "" at the end of the file."""
        self._at += skip
        while True:
            self._at = _SPACE.match(self._text, self._at).end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(CHUNK):
                return ""

    def element(self) -> Any:
        size = CHUNK
        while True:
            self._refused.clear()
            try:
                value, end = self._scan(self._text, self._at)
            except RecursionError:
                return self._skip()
            except ValueError as problem:
                error = problem
            else:
                error = None
                if self.ended is not None or self._is_whole(value, end):
                    return self._take(value, end)
            if self._is_wrong(error):
                raise Damaged(self._offset(getattr(error, "pos", self._at)), getattr(error, "msg", str(error)))
            if not self._more(size) and error is not None:
                raise self.unfinished(error.msg, error.pos)
            size *= 2  # one element larger than a chunk is parsed again a few times, not hundreds of times

    def _skip(self) -> Unusable:
        """Pass over an element that is nested too deeply to be parsed, by its brackets alone."""
        depth, at, found = 0, self._at, "nested too deeply (recursion)"
        while True:
            for token in _BRACKETS.finditer(self._text, at):
                at = token.end()
                depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token.group(), 0)
                if depth == 0:
                    self._at = at
                    return Unusable(found)
            # a string at the end of the text may go on: it is looked at again with what follows
            parsed = at - self._at
            if len(self._text) - self._at > LARGEST or not self._more(CHUNK):
                raise Damaged(self._offset(len(self._text)), found)
            at = self._at + parsed

    def unfinished(self, found: str, at: int | None = None) -> Damaged:
        """The file is at its end, or something stands where it must not."""
        if self.ended is None or self._text.rstrip().endswith("]"):
            return Damaged(self._offset(self._at if at is None else at), found)
        return Cut(self._offset(len(self._text)), f"the file ends inside the list{self.ended}")

    def finish(self) -> None:
        """After the closing bracket."""
        if self.mark(skip=1):
            raise Damaged(self._offset(self._at), "something follows the end of the list")
        if self.ended:
            raise Damaged(self._offset(self._at), f"the list is whole, the compressed file is not{self.ended}")

    def _take(self, value: Any, end: int) -> Any:
        source, self._at = self._text[self._at : end], end
        if self._refused:
            return Unusable(self._refused[0], value)
        try:
            source.encode()
        except UnicodeEncodeError:
            return Unusable("bytes that are not UTF-8")
        try:
            check_unicode(value, source)
        except ValueError as error:
            return Unusable(str(error), value)
        return value

    def _is_whole(self, value: Any, end: int) -> bool:
        """Whether the next chunk could not go on with it: `4` may become `4.5`, and so may `4.`."""
        after = self._text[end : end + 1]
        return bool(after) and (not isinstance(value, int | float) or after in ",] \t\n\r")

    def _is_wrong(self, error: Exception | None) -> bool:
        """Whether more text could not mend it."""
        if not isinstance(error, json.JSONDecodeError):
            return error is not None
        if len(self._text) - self._at > LARGEST:
            return True
        return error.pos < len(self._text) - _SLACK and not error.msg.startswith("Unterminated string")

    def _more(self, size: int) -> bool:
        """Read on, and drop what was parsed; False at the end of the file, where nothing moves."""
        if self.ended is not None:
            return False
        data = self._read(size)
        self._before = self._offset(self._at)
        self._text = self._text[self._at :] + self._decode(data, final=self.ended is not None)
        self._at = 0
        return bool(data)

    def _read(self, size: int) -> bytes:
        """What can be read before the end, also where a compressed file breaks off."""
        parts: list[bytes] = []
        while size > 0 and self.ended is None:
            try:
                parts.append(self._file.read1(size))
                self.ended = None if parts[-1] else ""
            except (EOFError, OSError, zlib.error) as error:
                self.ended = f" ({error})"
                break
            size -= len(parts[-1])
        return b"".join(parts)

    def _offset(self, at: int) -> int:
        return self._before + len(self._text[:at].encode("utf-8", "surrogateescape"))

    def _refuse(self, found: str) -> None:
        # raising here would lose the place in the file where the element ends
        self._refused.append(found)
