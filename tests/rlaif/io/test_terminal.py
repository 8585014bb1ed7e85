"""Output of a command: phases and progress by the clock, and foreign output only in the log."""

from __future__ import annotations

import ast
import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlaif.errors import ConfigError
from rlaif.io import terminal
from rlaif.io.progress import Progress
from rlaif.io.terminal import Phase, Screen


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def screen(clock) -> Screen:
    return Screen(io.StringIO(), io.StringIO(), clock)


def lines(screen: Screen) -> list[str]:
    """Return the lines that a screen has written to standard error."""
    return screen.err.getvalue().splitlines()


@pytest.mark.parametrize(
    ("steps", "seconds_each", "printed"),
    [
        (400, 3.0, 60),  # twenty minutes: every 20 s
        (4, 300.0, 60),  # steps of five minutes: the ticks in between print
        (1000, 0.05, 3),  # 50 s: two lines and the last
        (400, 0.02, 1),  # 8 s: the last line alone
        (400, 0.004, 0),  # 1.6 s: nothing
    ],
)
def test_progress_prints_by_time_and_not_by_count(screen, clock, steps, seconds_each, printed):
    bar = Progress(steps, "demo sft", display=screen)
    times = [0.0]
    for count in range(1, steps + 1):
        for _ in range(max(1, round(seconds_each))):
            clock.now += seconds_each / max(1, round(seconds_each))
            before = len(lines(screen))
            screen.tick()
            times += [clock.now] * (len(lines(screen)) - before)
        bar.to(count, "loss 0.5")
    bar.close()
    assert len(lines(screen)) == pytest.approx(printed, abs=1 if printed > 3 else 0)
    assert all(later - earlier <= 30 for earlier, later in zip(times, times[1:], strict=False))
    if printed:
        assert lines(screen)[-1].startswith(f"demo sft: {steps}/{steps} (100%) in ")
        assert lines(screen)[-1].endswith("loss 0.5")


def test_progress_of_a_resumed_stage_counts_from_where_it_starts(screen, clock):
    bar = Progress(10, "ppo", done=5, display=screen)
    clock.now = 40
    bar.to(6)
    assert lines(screen) == ["ppo: 6/10 (60%) in 00:40, 02:40 left"]


def test_the_last_line_is_printed_once(screen, clock):
    bar = Progress(2, "ppo", display=screen)
    clock.now = 30
    bar.to(2, "kl 0.1")
    bar.close()
    assert len(lines(screen)) == 1


def test_progress_that_ends_early_prints_its_count(screen, clock):
    bar = Progress(10, "ppo", display=screen)
    clock.now = 5
    bar.to(3)
    bar.close()
    bar.close()
    assert [line.split(" in ")[0] for line in lines(screen)] == ["ppo: 3/10 (30%)"]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1, []),
        (14, ["starting Ray ... 14 s"]),
        (50, ["starting Ray ... 20 s so far", "starting Ray ... 40 s so far", "starting Ray ... 50 s"]),
    ],
)
def test_a_phase_is_one_line_with_its_time(screen, clock, seconds, expected):
    step = Phase("starting Ray", screen)
    screen.begin(step)
    for _ in range(seconds):
        clock.now += 1
        screen.tick()
    step.finished = True
    screen.end(step)
    assert lines(screen) == expected


def test_a_command_prints_lines_between_its_phases(tmp_path, monkeypatch, clock):
    with terminal.show_command("sft", tmp_path) as screen:
        monkeypatch.setattr(screen, "clock", clock)
        monkeypatch.setattr(screen, "err", io.StringIO())
        screen._printed_at = clock.now = 100.0
        for _ in range(50):
            clock.now += 1
            screen.tick()
        printed = lines(screen)
    assert len(printed) == 2 and all(line.startswith("rlaif sft: working ...") for line in printed)


def test_many_short_phases_still_print_lines(screen, clock):
    for number in range(40):
        step = Phase(f"part {number}", screen)
        screen.begin(step)
        clock.now += 1.5
        screen.tick()
        step.finished = True
        screen.end(step)
    assert [line.split(" ... ")[1] for line in lines(screen)] == ["2 s so far"] * 2


def test_a_phase_that_fails_prints_no_time(monkeypatch, screen, clock):
    monkeypatch.setattr(terminal, "_current", screen)
    with pytest.raises(RuntimeError), terminal.phase("starting Ray"):
        clock.now = 10
        raise RuntimeError
    assert lines(screen) == []


def test_the_inner_activity_is_the_one_shown(screen, clock):
    bar = Progress(10, "ppo", display=screen)
    step = Phase("evaluating", screen)
    screen.begin(step)
    clock.now = 25
    screen.tick()
    step.finished = True
    screen.end(step)
    clock.now = 50
    bar.to(1)
    assert lines(screen) == [
        "evaluating ... 25 s so far",
        "evaluating ... 25 s",
        "ppo: 1/10 (10%) in 00:50, 07:30 left",
    ]


def test_a_line_on_a_terminal_redraws_the_activity(clock):
    screen = Screen(io.StringIO(), Tty(), clock)
    step = Phase("starting Ray", screen)
    screen.begin(step)
    screen.say("a line", screen.err)
    clock.now = 3
    step.finished = True
    screen.end(step)
    clear = "\r\x1b[2K"
    assert screen.err.getvalue() == (f"starting Ray ...{clear}a line\nstarting Ray ...{clear}starting Ray ... 3 s\n")


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    screen = Screen(io.StringIO(), Tty())
    monkeypatch.setattr("rlaif.io.progress.SHORT_S", 0)
    bar = Progress(4, "ppo", display=screen)
    bar.to(4, "kl 0.1")
    bar.show()
    assert "4/4" in screen.err.getvalue() and "kl 0.1" in screen.err.getvalue()
    bar.close()


COMMAND = """
import logging, os, subprocess, sys, threading
from pathlib import Path
from rlaif.io import terminal

logging.basicConfig(level=logging.INFO)
with terminal.show_command("eval context", Path(sys.argv[1])):
    terminal.say("a result")
    print("foreign: python")
    print("foreign: \\x1b[36mcolour\\x1b[0m", file=sys.stderr)
    os.write(1, b"foreign: descriptor 1\\n")
    os.write(2, b"foreign: descriptor 2\\n")
    subprocess.run(["sh", "-c", "echo foreign: subprocess; echo foreign: subprocess >&2"])
    thread = threading.Thread(target=lambda: print("foreign: thread"))
    thread.start()
    thread.join()
    logging.getLogger("deepspeed").warning("foreign: logger")
    logging.getLogger("rlaif.data.rows").warning("rows left out")
    logging.getLogger("rlaif.data.rows").info("foreign to the terminal: own information")
    if len(sys.argv) > 2:
        raise RuntimeError("broken")

class Late:
    def __del__(self):
        raise ValueError("foreign: at the end")

late = Late()
late.cycle = late
print("after the command")
"""


def run_command(folder: Path, *more: str) -> tuple[str, str, str]:
    """Run COMMAND in a process of its own; return its standard output, its standard error and its log."""
    result = subprocess.run([sys.executable, "-c", COMMAND, str(folder), *more], capture_output=True, text=True)
    return result.stdout, result.stderr, (folder / "logs" / "eval-context.log").read_text()


def test_foreign_output_goes_to_the_log_and_nowhere_else(tmp_path):
    out, err, log = run_command(tmp_path)
    assert out.splitlines() == ["a result", "after the command"]
    assert err.splitlines() == [
        f"rlaif eval context: run directory {tmp_path} (log: logs/eval-context.log)",
        "warning: rows left out",
    ]
    kinds = ("python", "colour", "descriptor 1", "descriptor 2", "subprocess", "thread", "logger", "at the end")
    assert not [kind for kind in kinds if f"foreign: {kind}" not in log]
    assert "own information" in log and "rows left out" in log and "\x1b" not in log


def test_an_error_prints_the_path_of_the_log(tmp_path):
    _, err, _ = run_command(tmp_path, "fail")
    assert f"log: {tmp_path}/logs/eval-context.log" in err.splitlines()
    assert "RuntimeError: broken" in err


def test_the_log_grows_from_start_to_start(tmp_path):
    for _ in range(2):
        _, _, log = run_command(tmp_path)
    assert log.count("foreign: thread") == 2


def test_streams_and_loggers_are_restored_after_a_command(tmp_path, capfd):
    handlers = list(logging.getLogger().handlers)
    with terminal.show_command("sft", tmp_path):
        os.write(1, b"foreign\n")
        terminal.say("own")
    print("afterwards")
    os.write(1, b"descriptor\n")
    out = capfd.readouterr().out
    assert "foreign" not in out and all(text in out for text in ("own", "afterwards", "descriptor"))
    assert logging.getLogger().handlers == handlers


def test_foreign_output_can_stay_on_the_terminal(tmp_path, capfd):
    with terminal.show_command("sft", tmp_path, foreign=True):
        os.write(1, b"foreign\n")
    assert "foreign" in capfd.readouterr().out


def test_a_run_directory_that_cannot_be_written_is_a_config_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="run directory that can be written"),
        terminal.show_command("sft", tmp_path / "file"),
    ):
        pass


def test_stages_and_actors_never_call_print():
    """Printed lines go to the log file; `say` shows a line to the user."""
    root = Path(terminal.__file__).parents[2]
    files = []
    for folder in ("rlaif/stages", "actors", "learners", "cluster"):
        files += (root / folder).rglob("*.py")
    printing = []
    for file in files:
        calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        names = [(call.lineno, call.func.id) for call in calls if isinstance(call.func, ast.Name)]
        printing += [f"{file.relative_to(root)}:{line}" for line, name in names if name == "print"]
    assert files and printing == []


def test_a_command_continues_if_the_reader_of_its_output_ends(tmp_path):
    """Print into a closed pipe, as in `rlaif ppo CONFIG 2>&1 | head`."""
    script = "import logging\nfrom pathlib import Path\nfrom rlaif.io.terminal import quiet, say\n"
    script += "logging.basicConfig(level=logging.INFO)\n"
    script += f"with quiet(Path({str(tmp_path / 'x.log')!r})):\n"
    script += f"    [say('line') for _ in range(3)]\n    Path({str(tmp_path / 'end')!r}).touch()\n"
    reader, writer = os.pipe()
    os.close(reader)
    subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=writer, timeout=60)
    os.close(writer)
    assert (tmp_path / "end").exists()
    assert "the reader has gone: line" in (tmp_path / "x.log").read_text()
