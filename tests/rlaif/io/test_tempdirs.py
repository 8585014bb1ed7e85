"""Folders of killed processes are removed, those in use are not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile

import pytest

from rlaif.io.tempdirs import Scratch

HOLD = """
import sys
from rlaif.io.tempdirs import Scratch
scratch = Scratch("rlaif-test-")
(scratch.path / "weights").write_text("w")
print(scratch.path, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_gone_with_its_owner(temporary):
    scratch = Scratch("rlaif-test-")
    assert scratch.path.is_dir() and scratch.path.stat().st_mode & 0o077 == 0
    scratch.close()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(temporary):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        held = holder.stdout.readline().strip()
        other = temporary / "rlaif-test-mine"
        other.mkdir()  # nobody's lock says that it is abandoned
        scratch = Scratch("rlaif-test-")
        assert os.path.exists(f"{held}/weights")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert os.path.exists(f"{held}/weights")
    again = Scratch("rlaif-test-")
    assert not os.path.exists(held) and not os.path.exists(f"{held}.lock")
    assert scratch.path.is_dir() and again.path.is_dir() and other.is_dir()
