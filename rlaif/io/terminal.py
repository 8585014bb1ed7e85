"""Output of a command: its own lines, phases with their times, and progress. Foreign output goes to a log file.

    with quiet(log):                        # everything that libraries and actors print goes to `log`
        say("== 1/5 world")                 # a line of the command itself
        with phase("starting 1 rollout actor"):
            ...                             # one line with the time it took

A terminal shows the current activity live. Elsewhere (a file, a scheduler's log) a running activity prints a line every
`EVERY_S` seconds. Activities shorter than `SHORT_S` seconds print nothing.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TextIO

from rlaif.errors import ConfigError

log = logging.getLogger(__name__)

EVERY_S = 20.0
"""Seconds between the lines of a running activity: less than the 30 that the tests allow, because steps can be late."""
SHORT_S = 2.0
"""Activities that end sooner print nothing."""
OWN_LOGGERS = ("rlaif", "actors", "learners", "cluster", "__main__")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Activity(Protocol):
    """Work that takes time: a phase or a progress bar."""

    def line(self, seconds: float) -> str:
        """Return the line that describes it after `seconds`."""

    def hide(self) -> None:
        """Remove it from the terminal, before another line is written."""

    def show(self) -> None:
        """Draw it on the terminal."""


class Screen:
    """Writes whole lines and keeps the current activity visible. Results go to `out`, everything else to `err`."""

    def __init__(self, out: TextIO, err: TextIO, clock: Callable[[], float] = time.monotonic):
        self.out, self.err, self.clock = out, err, clock
        self.live = err.isatty()
        self._activities: list[tuple[Activity, float]] = []
        """Each with the time at which it began; the last one is shown."""
        self._printed_at = clock()
        """The time of the last line of an activity. The beginning of another one does not count: it prints nothing."""
        self._lock = threading.RLock()

    def say(self, text: str = "", stream: TextIO | None = None) -> None:
        """Write a line, to `out` by default."""
        with self._lock:
            if self.live and self._activities:
                self._activities[-1][0].hide()
            try:
                print(text, file=stream or self.out, flush=True)
            except BrokenPipeError:
                # With `rlaif ... | head` the reader ends early, but the work continues.
                log.info("not shown, the reader has gone: %s", text)
            if self.live and self._activities:
                self._activities[-1][0].show()

    def begin(self, activity: Activity) -> None:
        """Show an activity, until it ends or another one begins."""
        with self._lock:
            if self.live and self._activities:
                self._activities[-1][0].hide()
            self._activities.append((activity, self.clock()))
            if self.live:
                activity.show()

    def end(self, activity: Activity, finished: bool = True) -> None:
        """Remove an activity, and print its last line if it took long enough. `finished` is false after an error."""
        with self._lock:
            if self.live and self._activities and self._activities[-1][0] is activity:
                activity.hide()
            place = next(i for i, (other, _) in enumerate(self._activities) if other is activity)
            _, began = self._activities.pop(place)
            seconds = self.clock() - began
            if finished and seconds >= SHORT_S:
                self._print(activity, seconds)
            elif self.live and self._activities:
                self._activities[-1][0].show()

    def tick(self) -> None:
        """Print the current activity if it has been silent for `EVERY_S` seconds. Called about once a second."""
        with self._lock:
            if self.live or not self._activities or self.clock() - self._printed_at < EVERY_S:
                return
            activity, began = self._activities[-1]
            self._print(activity, self.clock() - began)

    def _print(self, activity: Activity, seconds: float) -> None:
        """Print the line of an activity."""
        self.say(activity.line(seconds), self.err)
        self._printed_at = self.clock()


class Phase:
    """A step of a command without a count, such as the start of the actors."""

    def __init__(self, text: str, screen: Screen):
        self.text, self.screen, self.finished = text, screen, False

    def line(self, seconds: float) -> str:
        """Return the line that describes the phase after `seconds`."""
        line = f"{self.text} ... {seconds:.0f} s"
        return line if self.finished else f"{line} so far"

    def hide(self) -> None:
        """Remove the phase from the terminal: back to the start of the line, and erase it."""
        self.screen.err.write("\r\x1b[2K")

    def show(self) -> None:
        """Draw the phase on the terminal, without a line end, so that it can be removed."""
        self.screen.err.write(f"{self.text} ...")
        self.screen.err.flush()


_current: Screen | None = None


def screen() -> Screen:
    """Return the screen of the running command, or one on the standard streams as they are now."""
    return _current or Screen(sys.stdout, sys.stderr)


def say(text: str = "") -> None:
    """Write a line of the command itself. In a stage the output of `print` goes to the log file."""
    screen().say(text)


def reader_left() -> bool:
    """Return whether the reader of standard output has ended, as with `rlaif options | head`; then drop the rest."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)  # poll always reports errors, also with an empty set of events
    if not any(event & select.POLLERR for _, event in pipe.poll(0)):
        return False
    drop_output()
    return True


def drop_output() -> None:
    """Discard the rest of standard output: the interpreter flushes it at exit, which would fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def headline(text: str) -> None:
    """Print the heading of a part of a command."""
    say(f"\n== {text}")


@contextmanager
def phase(text: str) -> Iterator[None]:
    """Show a step that takes time, and at its end how long it took."""
    display = screen()
    step = Phase(text, display)
    display.begin(step)
    try:
        yield
        step.finished = True
    finally:
        display.end(step, step.finished)


@contextmanager
def show_command(command: str, run: Path, foreign: bool = False) -> Iterator[Screen]:
    """Show a command that works on the run directory `run`; its log is `logs/<command>.log` there."""
    file = run / "logs" / f"{command.replace(' ', '-')}.log"
    with quiet(file, foreign) as display:
        display.say(f"rlaif {command}: run directory {run} (log: {file.relative_to(run)})", display.err)
        # Without it a command would print nothing between two phases, however long that takes.
        whole = Phase(f"rlaif {command}: working", display)
        display.begin(whole)
        try:
            yield display
        finally:
            display.end(whole, finished=False)


@contextmanager
def quiet(log: Path, foreign: bool = False) -> Iterator[Screen]:
    """Redirect what libraries, subprocesses and Ray's actors print to the file `log`, which each start appends to.

    The file descriptors 1 and 2 themselves are redirected, because C++ code and subprocesses do not use Python's streams.
    `say`, `phase`, progress bars and the warnings of our own loggers still go to the terminal. If an error leaves the
    block, the path of the log is printed.

    Args:
        foreign: show foreign output too instead of redirecting it.
    """
    global _current
    outer, streams = _current, (sys.stdout, sys.stderr)
    file = _opened(log)
    file.write(f"\n== {time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(sys.argv)}\n")
    _current = Screen(*streams) if foreign else Screen(*map(_private_copy, streams))
    restore = _redirect_logging(file, _current, foreign)
    descriptors = [] if foreign else _redirect(file)
    stop = threading.Event()
    ticker = threading.Thread(target=_tick, args=(_current, stop), name="terminal", daemon=True)
    ticker.start()
    try:
        yield _current
    except Exception:
        _current.say(f"log: {log}", _current.err)
        raise
    finally:
        stop.set()
        ticker.join()
        if not foreign:
            _restore(streams, descriptors, file)
        restore()
        _current = outer


def _opened(log: Path) -> TextIO:
    """Open the log. It stays open until the process ends, because handlers of libraries write to it.

    Raises ConfigError if it cannot be written.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return open(log, "a", buffering=1, errors="replace")
    except OSError as error:
        fix = "Set `storage` to a folder that you may write to, on a disk with room left."
        raise ConfigError(f"a run directory that can be written: {log.parent.parent}", str(error), fix) from error


class Plain:
    """A text stream into a log file, without colours and cursor movements."""

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, text: str) -> int:
        """Write a text without its escape sequences; a carriage return becomes a line end."""
        self._file.write(_ANSI.sub("", text).replace("\r", "\n"))
        return len(text)

    def isatty(self) -> bool:
        """Return false, so that libraries print lines and no bars."""
        return False

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def _tick(display: Screen, stop: threading.Event) -> None:
    """Let the current activity print its line in time, while the main thread is busy."""
    while not stop.wait(1.0):
        display.tick()


def _private_copy(stream: TextIO) -> TextIO:
    """Return a stream to the same terminal or file that a redirection of descriptors 1 and 2 does not affect."""
    stream.flush()
    try:
        descriptor = os.dup(stream.fileno())
    except (OSError, ValueError):  # a stream in memory, as in tests, has no descriptor
        return stream
    return open(descriptor, "w", buffering=1, encoding=getattr(stream, "encoding", None), errors="replace")


def _redirect(file: TextIO) -> list[int]:
    """Point descriptors 1 and 2 and Python's streams at `file`, and return copies of the descriptors."""
    # What is still in Python's buffers belongs to the terminal.
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    copies = [os.dup(1), os.dup(2)]
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = Plain(file)  # type: ignore[assignment]
    return copies


def _restore(streams: tuple[TextIO, TextIO], copies: list[int], file: TextIO) -> None:
    """Undo `_redirect`."""
    for number, copy in enumerate(copies, 1):
        os.dup2(copy, number)
        os.close(copy)
    sys.stdout, sys.stderr = streams
    # In a process of its own, libraries still print while the interpreter ends.
    if streams[1] is sys.__stderr__:
        atexit.register(_leave_to, file)


def _leave_to(file: TextIO) -> None:
    """Point descriptors 1 and 2 at `file` for the rest of the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)


def _redirect_logging(file: TextIO, display: Screen, foreign: bool) -> Callable[[], None]:
    """Write all records to the file and our own warnings to the terminal; return a function that undoes it."""
    root = logging.getLogger()
    everything = logging.StreamHandler(file)
    everything.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    added: list[logging.Handler] = [everything]
    removed: list[logging.Handler] = []
    if not foreign:
        added.append(_Warnings(display))
        # Exactly this class: its subclasses, such as FileHandler, do not write to the terminal.
        removed = [handler for handler in root.handlers if type(handler) is logging.StreamHandler]
    _exchange(root, removed, added)
    return lambda: _exchange(root, added, removed)


def _exchange(logger: logging.Logger, removed: list[logging.Handler], added: list[logging.Handler]) -> None:
    """Remove some handlers from a logger and add others."""
    for handler in removed:
        logger.removeHandler(handler)
    for handler in added:
        logger.addHandler(handler)


class _Warnings(logging.Handler):
    """A handler that prints warnings of our own packages as lines on the terminal."""

    def __init__(self, display: Screen):
        super().__init__(logging.WARNING)
        self._display = display

    def filter(self, record: logging.LogRecord) -> bool:
        """Accept records of our own packages only."""
        return record.name.split(".")[0] in OWN_LOGGERS

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        try:
            self._display.say(f"{record.levelname.lower()}: {record.getMessage()}", self._display.err)
        except Exception:
            self.handleError(record)
