"""Storages that do not answer: one clear error within seconds, whichever function uses them first."""

from __future__ import annotations

import errno
import fcntl
import os
import threading

import pytest

from rlaif.errors import ConfigError
from rlaif.io import storage
from rlaif.io.storage import fetch, locate, once

CLOSED = "s3://no-such-bucket/runs?region=x&endpoint_override=localhost:1&scheme=http"


@pytest.mark.parametrize(
    ("uri", "words", "uses"),
    [
        (CLOSED, "NETWORK_CONNECTION", [fetch]),
        ("nosuch://bucket/runs", "nosuch", [fetch, lambda uri: locate(uri).reach(), lambda uri: locate(uri).exists()]),
    ],
)
def test_an_unreachable_storage_is_an_error_with_its_uri_and_a_fix(uri, words, uses):
    for use in uses:
        with pytest.raises(ConfigError) as caught:
            use(uri)
        assert uri in caught.value.expected and words in caught.value.found
        assert "bucket name" in caught.value.fix and "network" in caught.value.fix


def test_a_storage_that_never_answers_is_an_error_after_the_deadline(monkeypatch):
    never = threading.Event()
    monkeypatch.setattr(storage, "REACH_S", 0.05)
    monkeypatch.setattr(storage, "_connected", lambda root: never.wait())
    with pytest.raises(ConfigError, match="no answer within 0.05 s"):
        locate("s3://silent/runs").reach()
    never.set()


@pytest.mark.parametrize("secret", ["KEY:hidden", "KEY:a/hidden"])
def test_a_uri_with_a_secret_is_refused_without_showing_it(secret):
    """The secret would be in the run's configuration, its logs and every checkpoint."""
    with pytest.raises(ConfigError, match="without credentials") as caught:
        locate(f"s3://{secret}@bucket/runs?region=x").reach()
    assert "hidden" not in str(caught.value) and "s3://***@bucket" in caught.value.found
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.fix


def test_errors_hide_the_user_of_a_uri():
    with pytest.raises(ConfigError) as caught:
        locate("nosuch://USER@[::1]:9000/runs").reach()
    assert "USER" not in str(caught.value) and "nosuch://***@[::1]:9000" in caught.value.expected


def test_a_storage_that_answers_can_be_reached(tmp_path):
    locate(tmp_path).reach()
    locate("mock://bucket/runs").reach()


@pytest.mark.parametrize("uri", ["s3://", "file://tmp/runs"])
def test_a_uri_without_a_bucket_or_an_absolute_path_is_refused(uri):
    with pytest.raises(ConfigError, match="in a URI|in the URI"):
        locate(uri)


def test_once_works_on_a_file_system_without_locks(monkeypatch, tmp_path):
    """Another process may be at work, so folders that look abandoned stay."""

    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".copy.part-of-another").mkdir()
    copy = once(tmp_path / "copy", lambda folder: (folder / "file").write_text("x"))
    assert (copy / "file").read_text() == "x"
    assert (tmp_path / ".copy.part-of-another").is_dir()
