"""How far a stage is: a bar with the time left on a terminal, a line every tenth of the way elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")

_LINE = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f}%) in {elapsed}, {remaining} left{postfix}"


class Progress:
    """Counts up to `total` on a stream; `done` is where a resumed stage starts (it does not count into the speed)."""

    def __init__(self, total: int, desc: str, done: int = 0, stream: TextIO | None = None):
        self.total, self.desc, self.done, self.start = total, desc, done, done
        self._stream = stream or sys.stderr
        self._began = time.monotonic()
        self._bar: tqdm | None = None
        if self._stream.isatty():
            self._bar = tqdm(total=total, desc=desc, initial=done, file=self._stream, dynamic_ncols=True)

    def to(self, done: int, note: str = "") -> None:
        """Set the count. `note` is shown behind it."""
        before, self.done = self.done, done
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - before)
        elif self._tenth(done) > self._tenth(before):
            self._print(note)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _tenth(self, done: int) -> int:
        return 10 * done // max(1, self.total)

    def _print(self, note: str) -> None:
        elapsed = time.monotonic() - self._began
        line = tqdm.format_meter(
            self.done, self.total, elapsed, prefix=self.desc, postfix=note, bar_format=_LINE, initial=self.start
        )
        print(line, file=self._stream, flush=True)


def progress(items: Iterable[T], desc: str, total: int | None = None) -> Iterator[T]:
    """`items`, counted as they are used."""
    total = len(items) if total is None else total  # type: ignore[arg-type]
    bar = Progress(total, desc)
    try:
        for done, item in enumerate(items, 1):
            yield item
            bar.to(done)
    finally:
        bar.close()
