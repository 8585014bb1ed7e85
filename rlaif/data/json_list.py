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
from io import BufferedIOBase
from typing import Any

from rlaif.data.strict_json import check_unicode, strict_decoder
from rlaif.errors import DataError

CHUNK = 2**20
LARGEST = 2**28
"""Characters of the largest element: beyond them the file is taken to be damaged."""
_SPACE = re.compile(r"[ \t\n\r]*")  # the white space of JSON, which is less than that of Python
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|[][{}]', re.DOTALL)
"""Strings, so that the brackets inside them do not count, and brackets."""
_DEPTHS = {"[": 1, "{": 1, "]": -1, "}": -1}
_SLACK = 16
"""A parser may stop this far before the end of a text that was cut inside a literal or an escape."""


class DamagedError(Exception):
    """The list does not go on as JSON at a byte of the (uncompressed) file; elements before it are whole."""

    def __init__(self, offset: int, problem: str):
        super().__init__(offset, problem)
        self.offset, self.problem = offset, problem

    def __str__(self) -> str:
        return f"at byte {self.offset:,}: {self.problem}"


class CutError(DamagedError):
    """The file ends inside the list."""


@dataclass(frozen=True)
class Unusable:
    """Stands for an element with a value that JSON does not allow, or that no file could hold."""

    problem: str
    value: Any = None
    """The element without that value, if the rest of it is known."""


def elements(file: BufferedIOBase, name: str) -> Iterator[Any]:
    """Yield the elements of the list in `file`. Raise DataError if it is no list, DamagedError as soon as it is no JSON."""
    text = _Window(file)
    mark = text.mark()
    if not mark:
        raise DataError(f"one JSON list in {name}", f"an empty file{text.ended or ''}", "Give a file with rows in it")
    if mark != "[":
        fix = "Name a file of one row per line .jsonl. If an object holds the list, write the list alone"
        raise DataError(f"one JSON list in {name}", f"{mark!r} at its start", fix)
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

    def __init__(self, file: BufferedIOBase):
        self.ended: str | None = None
        """After the end of the file: the error that ended it, or an empty text."""
        self._file, self._text = file, ""
        self._at = 0
        """Where parsing goes on in `_text`."""
        self._before = 0
        """Bytes of the file before `_text`."""
        # bytes that are no UTF-8 cost their own element only, and byte offsets can be counted back
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._problems: list[str] = []
        """What is wrong with the element that is being parsed, although it is whole."""
        # raising here would lose the place in the file at which the element ends
        self._scan = strict_decoder(self._problems.append).raw_decode
        self._more(CHUNK)
        if self._text.startswith("\ufeff"):
            self._at = 1

    def mark(self, skip: int = 0) -> str:
        """Return the next character that is no white space, after `skip` characters; "" at the end of the file."""
        self._at += skip
        while True:
            space = _SPACE.match(self._text, self._at)
            # for the type checker: the pattern matches an empty text, too
            assert space is not None
            self._at = space.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(CHUNK):
                return ""

    def element(self) -> Any:
        """Return the next element, or `Unusable`. Raise DamagedError if there is none."""
        size = CHUNK
        while True:
            self._problems.clear()
            error: ValueError | None = None
            try:
                value, end = self._scan(self._text, self._at)
            except RecursionError:
                return self._skip()
            except ValueError as raised:
                error = raised
            else:
                if self.ended is not None or self._is_whole(value, end):
                    return self._take(value, end)
            # more of the file may complete the element, unless it is wrong already
            if self._is_wrong(error):
                raise DamagedError(self._offset(getattr(error, "pos", self._at)), getattr(error, "msg", str(error)))
            if not self._more(size) and isinstance(error, json.JSONDecodeError):
                raise self.unfinished(error.msg, error.pos)
            # one element larger than a chunk is parsed again a few times, not hundreds of times
            size *= 2

    def _skip(self) -> Unusable:
        """Pass over an element that is nested too deeply to be parsed, by its brackets alone."""
        problem = "nested too deeply (recursion)"
        depth, at = 0, self._at
        while True:
            for token in _BRACKETS.finditer(self._text, at):
                at = token.end()
                depth += _DEPTHS.get(token.group(), 0)
                if depth == 0:
                    self._at = at
                    return Unusable(problem)
            # a string at the end of the text may go on: it is looked at again with what follows
            parsed = at - self._at
            if len(self._text) - self._at > LARGEST or not self._more(CHUNK):
                raise DamagedError(self._offset(len(self._text)), problem)
            at = self._at + parsed

    def unfinished(self, problem: str, at: int | None = None) -> DamagedError:
        """Return the error for a file that is at its end too early, or has a character that must not be there."""
        if self.ended is None or self._text.rstrip().endswith("]"):
            return DamagedError(self._offset(self._at if at is None else at), problem)
        return CutError(self._offset(len(self._text)), f"the file ends inside the list{self.ended}")

    def finish(self) -> None:
        """Check that nothing follows the closing bracket."""
        if self.mark(skip=1):
            raise DamagedError(self._offset(self._at), "something follows the end of the list")
        if self.ended:
            raise DamagedError(self._offset(self._at), f"the list is whole, the compressed file is not{self.ended}")

    def _take(self, value: Any, end: int) -> Any:
        source = self._text[self._at : end]
        self._at = end
        if self._problems:
            return Unusable(self._problems[0], value)
        # bytes that are no UTF-8 came through the decoder as lone surrogates
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
        """Return whether the next chunk could not go on with it: `4` may become `4.5`, and so may `4.`."""
        after = self._text[end : end + 1]
        return bool(after) and (not isinstance(value, int | float) or after in ",] \t\n\r")

    def _is_wrong(self, error: Exception | None) -> bool:
        """Return whether more text could not mend it."""
        if not isinstance(error, json.JSONDecodeError):
            return error is not None
        if len(self._text) - self._at > LARGEST:
            return True
        in_string = error.msg.startswith("Unterminated string")
        return error.pos < len(self._text) - _SLACK and not in_string

    def _more(self, size: int) -> bool:
        """Read on, and drop what was parsed; return False at the end of the file, when nothing changes."""
        if self.ended is not None:
            return False
        data = self._read(size)
        self._before = self._offset(self._at)
        self._text = self._text[self._at :] + self._decode(data, final=self.ended is not None)
        self._at = 0
        return bool(data)

    def _read(self, size: int) -> bytes:
        """Return what can be read before the end, also of a compressed file that breaks off."""
        parts: list[bytes] = []
        while size > 0 and self.ended is None:
            try:
                # `read` of a damaged gzip file would raise before it gives the bytes ahead of the damage
                part = self._file.read1(size)
            except (EOFError, OSError, zlib.error) as error:
                self.ended = f" ({error})"
                break
            if not part:
                self.ended = ""
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _offset(self, at: int) -> int:
        """Return the byte of the file at a character of the text."""
        return self._before + len(self._text[:at].encode("utf-8", "surrogateescape"))
