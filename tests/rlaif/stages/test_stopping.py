"""When a signal ends a run: the state machine, without processes."""

from __future__ import annotations

import signal

import pytest

from rlaif.stages.run.stopping import Interrupted, Stopper


class Timer:
    def __init__(self):
        self.asked, self.cancelled = [], False

    def __call__(self, seconds, signum):
        self.asked.append((seconds, signum))
        return self

    def cancel(self):
        self.cancelled = True


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_outside_a_loop_a_signal_ends_the_run_at_once(signum, code):
    stopper = Stopper(20.0, Timer())
    with pytest.raises(Interrupted) as caught:
        stopper.receive(signum)
    assert caught.value.exit_code == code and isinstance(caught.value, KeyboardInterrupt)


def test_inside_a_loop_the_first_signal_waits_for_the_checkpoint_and_the_second_does_not(caplog):
    timer = Timer()
    stopper = Stopper(20.0, timer)
    with pytest.raises(Interrupted), stopper.deferred():
        stopper.check()
        stopper.receive(signal.SIGTERM)
        assert stopper.requested == signal.SIGTERM and timer.asked == [(20.0, signal.SIGTERM)]
        assert "saving a checkpoint after this iteration" in caplog.text
        with pytest.raises(Interrupted):
            stopper.receive(signal.SIGTERM)
        stopper.check()
    assert timer.cancelled


def test_a_signal_after_the_last_checkpoint_of_a_loop_is_not_forgotten():
    timer = Timer()
    stopper = Stopper(20.0, timer)
    with pytest.raises(Interrupted) as caught, stopper.deferred():
        stopper.check()
        stopper.receive(signal.SIGINT)
    assert caught.value.exit_code == 130 and timer.cancelled


def test_an_error_of_another_thread_replaces_the_interrupt():
    stopper = Stopper(20.0, Timer())
    with pytest.raises(RuntimeError, match="the head"), stopper.installed(), stopper.explained():
        stopper.fail(RuntimeError("the head"))
        signal.pause()


def test_an_interrupt_that_a_library_converted_is_restored():
    """Ray's calls raise a plain KeyboardInterrupt, whatever the handler has raised."""
    stopper = Stopper(20.0, Timer())
    with pytest.raises(Interrupted) as caught, stopper.explained():
        with pytest.raises(Interrupted):
            stopper.receive(signal.SIGTERM)
        raise KeyboardInterrupt
    assert caught.value.exit_code == 143


def test_signal_handlers_are_restored_and_can_be_installed_again(monkeypatch):
    def other(signum, frame):
        raise AssertionError

    before = signal.getsignal(signal.SIGTERM)
    stopper = Stopper(20.0, Timer())
    with stopper.installed():
        signal.signal(signal.SIGTERM, other)
        stopper.install()
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_reminder_sends_the_signal_again():
    stopper = Stopper(0.05)
    with pytest.raises(Interrupted), stopper.installed(), stopper.deferred():
        signal.raise_signal(signal.SIGTERM)
        while True:
            signal.pause()
