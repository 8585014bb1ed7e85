"""What a command shows: its own lines, phases with their times and progress. Foreign output goes to a log file.

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
"""Seconds between the lines of a running activity: less than the 30 promised, because threads and steps can be late."""
SHORT_S = 2.0
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
        """With the time each began; the last one is shown."""
        self._printed_at = clock()
        """When an activity last printed a line. The begin of another one does not count: it prints nothing."""
        self._lock = threading.RLock()

    def say(self, text: str = "", stream: TextIO | None = None) -> None:
        """Write a line, to `out` by default."""
        with self._lock:
            if self.live and self._activities:
                self._activities[-1][0].hide()
            try:
                print(text, file=stream or self.out, flush=True)
            except BrokenPipeError:  # `rlaif ... | head`: whoever read the lines has gone, the work goes on
                log.info("not shown, the reader has gone: %s", text)
            if self.live and self._activities:
                self._activities[-1][0].show()

    def begin(self, activity: Activity) -> None:
        with self._lock:
            if self.live and self._activities:
                self._activities[-1][0].hide()
            self._activities.append((activity, self.clock()))
            if self.live:
                activity.show()

    def end(self, activity: Activity, finished: bool = True) -> None:
        """Remove the activity; print its last line if it took long enough. `finished`: false after an error."""
        with self._lock:
            if self.live and self._activities and self._activities[-1][0] is activity:
                activity.hide()
            began = next(start for other, start in self._activities if other is activity)
            self._activities = [(other, start) for other, start in self._activities if other is not activity]
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
        self.say(activity.line(seconds), self.err)
        self._printed_at = self.clock()


class Phase:
    """A step of a command without a count, such as the start of the actors."""

    def __init__(self, text: str, screen: Screen):
        self.text, self.screen, self.finished = text, screen, False

    def line(self, seconds: float) -> str:
        return f"{self.text} ... {seconds:.0f} s" + ("" if self.finished else " so far")

    def hide(self) -> None:
        self.screen.err.write("\r\x1b[2K")

    def show(self) -> None:
        self.screen.err.write(f"{self.text} ...")
        self.screen.err.flush()


_current: Screen | None = None


def screen() -> Screen:
    """Return the screen of the running command, or one on the standard streams as they are now."""
    return _current or Screen(sys.stdout, sys.stderr)


def say(text: str = "") -> None:
    """Write a line of the command itself. In a stage, `print` would end in the log file."""
    screen().say(text)


def reader_left() -> bool:
    """Return whether nobody reads standard output any more, as after `rlaif options | head`; the rest is then dropped."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)  # errors are reported without being asked for
    if not any(event & select.POLLERR for _, event in pipe.poll(0)):
        return False
    drop_output()
    return True


def drop_output() -> None:
    """Send the rest of standard output nowhere: the interpreter flushes once more at its exit, and would fail then."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def headline(text: str) -> None:
    """Begin a part of a command that has several."""
    say(f"\n== {text}")


@contextmanager
def phase(text: str) -> Iterator[None]:
    """Show what takes time, and at its end how long it took."""
    where = screen()
    step = Phase(text, where)
    where.begin(step)
    try:
        yield
        step.finished = True
    finally:
        where.end(step, step.finished)


@contextmanager
def shown(command: str, run: Path, foreign: bool = False) -> Iterator[Screen]:
    """Show one command that works on the run directory `run`; its log is `logs/<command>.log` there."""
    file = run / "logs" / f"{command.replace(' ', '-')}.log"
    with quiet(file, foreign) as where:
        where.say(f"rlaif {command}: run directory {run} (log: {file.relative_to(run)})", where.err)
        whole = Phase(f"rlaif {command}: working", where)  # what is shown between two phases
        where.begin(whole)
        try:
            yield where
        finally:
            where.end(whole, finished=False)


@contextmanager
def quiet(log: Path, foreign: bool = False) -> Iterator[Screen]:
    """Send what libraries, subprocesses and Ray's actors print to the file `log`, which grows from start to start.

    The file descriptors 1 and 2 themselves are redirected, because C++ code and subprocesses do not ask Python. `say`,
    `phase`, progress bars and the warnings of our own loggers still reach the terminal. When an error leaves the block,
    the path of the log is printed.

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
    """Open the log. It stays open until the process ends, because libraries keep handlers on it."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return open(log, "a", buffering=1, errors="replace")
    except OSError as error:
        change = "set `storage` to a folder that you may write to, on a disk with room left"
        raise ConfigError(f"a run directory that can be written: {log.parent.parent}", str(error), change) from error


class Plain:
    """A text stream into a log file, without colours and cursor movements."""

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, text: str) -> int:
        self._file.write(_ANSI.sub("", text).replace("\r", "\n"))
        return len(text)

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def _tick(where: Screen, stop: threading.Event) -> None:
    while not stop.wait(1.0):
        where.tick()


def _private_copy(stream: TextIO) -> TextIO:
    """Return a stream to the same place that a redirection of descriptors 1 and 2 does not touch."""
    stream.flush()
    try:
        descriptor = os.dup(stream.fileno())
    except (OSError, ValueError):  # an object in memory, as in tests
        return stream
    return open(descriptor, "w", buffering=1, encoding=getattr(stream, "encoding", None), errors="replace")


def _redirect(file: TextIO) -> list[int]:
    """Point descriptors 1 and 2 and Python's streams at `file`; returns copies of the descriptors."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ.setdefault("RAY_COLOR_PREFIX", "0")
    copies = [os.dup(1), os.dup(2)]
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = Plain(file)  # type: ignore[assignment]
    return copies


def _restore(streams: tuple[TextIO, TextIO], copies: list[int], file: TextIO) -> None:
    for number, copy in enumerate(copies, 1):
        os.dup2(copy, number)
        os.close(copy)
    sys.stdout, sys.stderr = streams
    if streams[1] is sys.__stderr__:  # a process of its own: libraries still print when the interpreter ends
        atexit.register(_leave_to, file)


def _leave_to(file: TextIO) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)


def _redirect_logging(file: TextIO, where: Screen, foreign: bool) -> Callable[[], None]:
    """Send all records to the file and warnings of our own to the terminal; returns a function that undoes it."""
    root = logging.getLogger()
    console = [handler for handler in root.handlers if type(handler) is logging.StreamHandler]
    everything = logging.StreamHandler(file)
    everything.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    added = [everything, *([] if foreign else [_Warnings(where)])]
    for handler in [] if foreign else console:
        root.removeHandler(handler)
    for handler in added:
        root.addHandler(handler)

    def undo() -> None:
        for handler in added:
            root.removeHandler(handler)
        for handler in [] if foreign else console:
            root.addHandler(handler)

    return undo


class _Warnings(logging.Handler):
    """Warnings of our own packages, as lines on the terminal."""

    def __init__(self, where: Screen):
        super().__init__(logging.WARNING)
        self._where = where

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name.split(".")[0] in OWN_LOGGERS

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._where.say(f"{record.levelname.lower()}: {record.getMessage()}", self._where.err)
        except Exception:
            self.handleError(record)
