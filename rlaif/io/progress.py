"""Progress of a stage: on a terminal a bar with the time left, elsewhere a line now and then."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from rlaif.io.terminal import SHORT_S, Screen, screen

T = TypeVar("T")

_LINE = "{desc}: {n_fmt}/{total_fmt} ({percentage:.0f}%) in {elapsed}, {remaining} left{postfix}"


class Progress:
    """A count up to `total`. A resumed stage starts at `done`, which does not count for the speed.

    It is shown on `display`, by default the screen of the running command (see rlaif/io/terminal.py).
    """

    def __init__(self, total: int, desc: str, done: int = 0, display: Screen | None = None):
        self.total, self.desc, self.done, self.start = total, desc, done, done
        self.note = ""
        self._printed = done
        """The count of the last line."""
        self._screen = display or screen()
        self._bar: tqdm | None = None
        if self._screen.live:
            # After SHORT_S, as with every other activity.
            options = {"dynamic_ncols": True, "delay": SHORT_S, "leave": False}
            self._bar = tqdm(total=total, desc=desc, initial=done, file=self._screen.err, **options)
        self._open = True
        self._began = self._screen.clock()
        self._screen.begin(self)

    def to(self, done: int, note: str = "") -> None:
        """Set the count. `note` is shown after it."""
        before, self.done, self.note = self.done, done, note
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - before)
        self._screen.tick()

    def close(self) -> None:
        """End the activity. Its last line is printed unless it has been printed already."""
        if not self._open:
            return
        self._open = False
        self._screen.end(self, finished=self.done != self._printed)
        if self._bar is not None:
            self._bar.close()

    def line(self, seconds: float) -> str:
        """Return the line that describes the progress after `seconds`."""
        self._printed = self.done
        return tqdm.format_meter(
            self.done, self.total, seconds, prefix=self.desc, postfix=self.note, bar_format=_LINE, initial=self.start
        )

    def hide(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar is not None:
            self._bar.clear()

    def show(self) -> None:
        """Draw the bar on the terminal, unless the activity is still short."""
        if self._bar is not None and self._screen.clock() - self._began >= SHORT_S:
            self._bar.refresh()


def progress(items: Iterable[T], desc: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and count them as they are used."""
    total = len(items) if total is None else total  # type: ignore[arg-type]
    bar = Progress(total, desc)
    try:
        for count, item in enumerate(items, 1):
            yield item
            bar.to(count)
    finally:
        bar.close()
