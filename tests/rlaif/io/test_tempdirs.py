"""Temporary folders: those of killed processes are removed, those in use are not."""

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


def test_the_folder_is_removed_on_close(temporary):
    scratch = Scratch("rlaif-test-")
    assert scratch.path.is_dir() and scratch.path.stat().st_mode & 0o077 == 0
    scratch.close()
    assert list(temporary.iterdir()) == []


def test_a_symbolic_link_among_the_lock_files_is_left_alone(temporary):
    link = temporary / "rlaif-test-link.lock"
    link.symlink_to(temporary / "nothing")
    assert Scratch("rlaif-test-").path.is_dir() and link.is_symlink()


def test_a_folder_of_a_killed_process_is_removed_and_one_in_use_is_not(temporary):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        folder = process.stdout.readline().strip()
        other = temporary / "rlaif-test-mine"
        other.mkdir()  # a folder without a lock file belongs to another program
        scratch = Scratch("rlaif-test-")
        assert os.path.exists(f"{folder}/weights")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert os.path.exists(f"{folder}/weights")
    again = Scratch("rlaif-test-")
    assert not os.path.exists(folder) and not os.path.exists(f"{folder}.lock")
    assert scratch.path.is_dir() and again.path.is_dir() and other.is_dir()
