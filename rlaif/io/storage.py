"""Storage of files that outlive a process: a folder, or a bucket named by a URI, behind one small interface."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from filelock import FileLock
from pyarrow import fs
from safetensors import SafetensorError

from rlaif.deadline import LateError, within
from rlaif.errors import ConfigError, StorageError
from rlaif.io.writable import is_full

_CHUNK = 8 * 2**20
"""Bytes that are read at a time, so that a file of many GiB needs little memory."""

REACH_S = 15.0
"""Seconds in which a bucket must answer for the first time. Its client alone would try for a minute or more."""

_BUCKETS = ("s3", "gs", "gcs")
_FORBIDDEN = ("access_denied", "accessdenied", "access denied", "403", "permission_denied")


@lru_cache(maxsize=64)
def _filesystem(root: str) -> tuple[fs.FileSystem, str]:
    """Return (file system, path on it) of a storage root: one connection per root, not per file.

    Raises ConfigError if the storage does not answer, and for a URI with a password in it.
    """
    if _holds_password(root):
        raise ConfigError(
            "a storage URI without credentials: it goes into the run's files and logs",
            _shown(root),
            "Remove them, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what your storage's client reads.",
        )
    try:
        return within(lambda: _connected(root), REACH_S, f"reach {_shown(root)}")
    except LateError as error:
        raise _unreachable(root, str(error)) from None


def _holds_password(root: str) -> bool:
    """Return whether a URI names more than user, host and port."""
    user, _, host = urlsplit(root).netloc.rpartition("@")
    # A `/` inside a secret ends the part of a URI that counts as the host, which then looks like `KEY:a`.
    return ":" in user or not re.fullmatch(r"(\[.*\]|[^:]*)(:\d*)?", host)


def _connected(root: str) -> tuple[fs.FileSystem, str]:
    """Open a storage and look for its bucket once, so that a wrong name fails here and not at the first checkpoint."""
    try:
        filesystem, path = fs.FileSystem.from_uri(root)
    except (OSError, ValueError) as error:
        raise _unreachable(root, str(error)) from error
    if urlsplit(root).scheme in _BUCKETS and "allow_bucket_creation=" not in root:
        _check_bucket(filesystem, path.partition("/")[0], root)
    return filesystem, path


def _check_bucket(filesystem: fs.FileSystem, bucket: str, root: str) -> None:
    """Raise ConfigError unless the bucket exists."""
    try:
        kind = filesystem.get_file_info(bucket).type
    except OSError as error:
        # An account that may write below a prefix need not be allowed to look at the bucket.
        if any(word in str(error).lower() for word in _FORBIDDEN):
            return
        raise _unreachable(root, str(error)) from error
    if kind == fs.FileType.NotFound:
        raise _unreachable(root, f"no bucket {bucket!r}")


def _unreachable(root: str, found: str) -> ConfigError:
    """Return the error for a storage that does not answer, in one line and without credentials."""
    fix = "Correct the URI (bucket name, `?region=`, `?endpoint_override=`), the credentials, or the network."
    reason = " ".join(found.split())
    return ConfigError(f"a storage that answers at {_shown(root)}", _shown(reason), fix)


def _shown(root: str) -> str:
    """Return a URI, or a text with URIs in it, without the credentials that they may contain."""
    return re.sub(r"//([^/@\s]*|[^@\s]+:[^@\s]+)@", "//***@", root)


@dataclass(frozen=True)
class Location:
    """A file or folder below a storage root. It holds only text, so it can be sent between processes and nodes."""

    root: str
    """An absolute path, or a URI as `pyarrow.fs.FileSystem.from_uri` reads it (options may follow a `?`)."""
    parts: tuple[str, ...] = ()

    def __truediv__(self, relative: str) -> Location:
        added = filter(None, relative.split("/"))
        return Location(self.root, (*self.parts, *added))

    def __str__(self) -> str:
        if self.local:
            return str(self.local)
        base, mark, options = self.root.partition("?")
        return "/".join((base.removesuffix("/"), *self.parts)) + mark + options

    @property
    def local(self) -> Path | None:
        """Return the path if the storage is an ordinary (perhaps shared) file system, None for a bucket."""
        return None if "://" in self.root else Path(self.root, *self.parts)

    @property
    def name(self) -> str:
        """Return the last part of the path."""
        return self.parts[-1] if self.parts else self.root.rstrip("/").rsplit("/", 1)[-1]

    def on(self) -> tuple[fs.FileSystem, str]:
        """Return (file system, path on it), as pyarrow and `ray.train.Checkpoint` take them."""
        if self.local:
            return fs.LocalFileSystem(), str(self.local)
        filesystem, path = _filesystem(self.root)
        return filesystem, "/".join((path.rstrip("/"), *self.parts))

    def reach(self) -> None:
        """Raise ConfigError unless the storage answers: called before work starts that would be lost otherwise."""
        self.on()

    def exists(self) -> bool:
        """Return whether there is a file or folder."""
        filesystem, path = self.on()
        return filesystem.get_file_info(path).type != fs.FileType.NotFound

    def children(self) -> list[str]:
        """Return the sorted names of the files and folders directly in this folder; none if the folder is missing."""
        filesystem, path = self.on()
        infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return sorted(info.base_name for info in infos)

    def files(self) -> dict[str, fs.FileInfo]:
        """Return every file below this folder, by its path relative to it."""
        filesystem, path = self.on()
        files = {}
        # One listing with sizes and times, which is a single request to a bucket; one per file would take minutes.
        for info in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True)):
            if info.type == fs.FileType.File:
                relative = info.path[len(path) :].lstrip("/")
                files[relative] = info
        return files

    def read(self) -> bytes:
        """Return the content of this file. Raises OSError if it is missing."""
        filesystem, path = self.on()
        with filesystem.open_input_stream(path) as stream:
            return stream.read()

    def copy_to(self, path: Path) -> None:
        """Copy this file to a local one."""
        filesystem, source = self.on()
        path.parent.mkdir(parents=True, exist_ok=True)
        with filesystem.open_input_stream(source) as stream, open(path, "wb") as file:
            shutil.copyfileobj(stream, file, _CHUNK)

    def digest(self) -> tuple[int, str]:
        """Return (bytes, SHA-256) of this file, as it is read back from the storage."""
        filesystem, path = self.on()
        size, digest = 0, hashlib.sha256()
        with filesystem.open_input_stream(path) as stream:
            while chunk := stream.read(_CHUNK):
                size += len(chunk)
                digest.update(chunk)
        return size, digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Replace this file as a whole: a reader, also after a crash, sees the old bytes or the new ones, never a mix."""
        if self.local:
            replace_file(self.local, data)
            return
        filesystem, path = self.on()
        # A bucket shows an object only when it is complete.
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def remove(self) -> None:
        """Delete this file or tree; do nothing if it is missing."""
        filesystem, path = self.on()
        kind = filesystem.get_file_info(path).type
        if kind == fs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind != fs.FileType.NotFound:
            filesystem.delete_file(path)

    def move_to(self, target: Location) -> None:
        """Move this file or tree within its storage; do nothing if it is missing.

        One rename on a file system. A bucket cannot rename, so everything is copied before anything is deleted.
        """
        if not self.exists():
            return
        if self.local and target.local:
            target.local.parent.mkdir(parents=True, exist_ok=True)
            os.rename(self.local, target.local)
            flush(target.local.parent)
            return
        (filesystem, path), (_, new) = self.on(), target.on()
        if filesystem.get_file_info(path).type == fs.FileType.Directory:
            filesystem.create_dir(new, recursive=True)
        fs.copy_files(path, new, source_filesystem=filesystem, destination_filesystem=filesystem)
        self.remove()

    def upload(self, folder: Path) -> None:
        """Copy everything in a local folder into this one."""
        filesystem, path = self.on()
        filesystem.create_dir(path, recursive=True)
        fs.copy_files(str(folder), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)

    def download(self, folder: Path) -> None:
        """Copy everything in this folder into a local one."""
        filesystem, path = self.on()
        folder.mkdir(parents=True, exist_ok=True)
        fs.copy_files(path, str(folder), source_filesystem=filesystem, destination_filesystem=fs.LocalFileSystem())


def storage_fix(error: Exception, place: Location | Path | str) -> str:
    """Return what to do about a file that could not be written at `place`."""
    # safetensors raises errors of its own class, with the system's text in their message.
    if is_full(error) or os.strerror(errno.ENOSPC) in str(error):
        return f"Free space at {place}, or set storage= to a larger disk."
    return f"Check that {place} exists and can be written, or set storage= to another folder."


@contextmanager
def writing(place: Location, what: str) -> Iterator[None]:
    """Turn a failure of the storage (full, over quota, read-only, gone) into a StorageError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"storage that takes {what}", f"{reason}: {place}", storage_fix(error, place)) from error


def locate(text: str | Path | Location) -> Location:
    """Return the location of a path, which is made absolute, or URI. Raises ConfigError for a URI that names no place."""
    if isinstance(text, Location):
        return text
    text = str(text)
    if text.startswith("file://"):
        if urlsplit(text).netloc not in ("", "localhost"):
            fix = "Write `file:///path`, or just the path."
            raise ConfigError("three slashes in the URI of a local folder", text, fix)
        text = urlsplit(text).path
    if "://" not in text:
        return Location(os.path.abspath(os.path.expanduser(text)))
    if not text.partition("://")[2].strip("/"):
        raise ConfigError("a bucket in a URI", text, "Write `s3://bucket/folder`.")
    return Location(text)


def replace_file(path: Path, data: bytes) -> None:
    """Write a local file aside, flush it to disk and rename it into place."""
    with writing_aside(path) as file:
        file.write(data)


@contextmanager
def writing_aside(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that replaces `path` on leaving, flushed to disk; on an error nothing changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(aside, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Flush a file's content, or the renames in a folder, so that they survive a power cut."""
    # A rename is in its folder, so the folder itself has to be flushed.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cache_folder() -> Path:
    """Return this user's folder on this node for copies from buckets, and for adapters merged into their bases."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlaif"


@contextmanager
def replacing(target: Location) -> Iterator[Path]:
    """Yield a local folder to write into; on leaving it replaces `target`, which stays as it is until then.

    On an error nothing changes.
    """
    path = target.local
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, because a rename works only within a file system.
    folder = Path(tempfile.mkdtemp(prefix=".tmp-", dir=path.parent if path else None))
    try:
        yield folder
        if path is None:
            target.remove()
            target.upload(folder)
            return
        # Two renames, because a folder cannot be replaced by another one in a single step.
        old = path.with_name(f"{folder.name}.old")
        if path.exists():
            path.rename(old)
        folder.chmod(0o755)  # mkdtemp makes a folder that only its owner may read
        folder.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fetch(text: str) -> str:
    """Return a path that libraries can open: a URI's folder is copied to this node once.

    Paths and hub names are returned unchanged. The copy is keyed by names, sizes and times of the files, so a folder that
    was rewritten is fetched again. Raises FileNotFoundError if there are no files.
    """
    if "://" not in text:
        return text
    source = locate(text)
    listing = []
    for name, info in sorted(source.files().items()):
        listing.append((name, info.size, info.mtime_ns))
    if not listing:
        raise FileNotFoundError(f"{text}: no files there")
    key = hashlib.sha256(repr((text, listing)).encode()).hexdigest()[:16]
    return str(once(cache_folder() / "fetched" / key, source.download))


def once(target: Path, make: Callable[[Path], None]) -> Path:
    """Return `target`, a folder of this node's cache; if it is missing, `make` fills an empty folder that becomes it.

    Several processes may call this at the same time: one makes the folder and the others wait. If `make` fails, nothing
    stays behind; what a killed process left behind is removed by the next call.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.with_name(f".{target.name}.lock")) as alone:
        if alone:
            for abandoned in target.parent.glob(f".{target.name}.part-*"):
                shutil.rmtree(abandoned, ignore_errors=True)
        # Another process may have made it while this one waited for the lock.
        if not target.exists():
            _make(target, make)
    return target


def _make(target: Path, make: Callable[[Path], None]) -> None:
    """Let `make` fill a folder beside `target`, flush it, and rename it into place."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.part-", dir=target.parent))
    try:
        make(aside)
        # Flushed before the rename: after a power cut a folder with the target's name is complete.
        for parent, _, names in os.walk(aside):
            for name in names:
                flush(Path(parent) / name)
            flush(Path(parent))
        aside.rename(target)
        flush(target.parent)
    except OSError:
        # On a file system without locks another process of this user may have been faster.
        if not target.exists():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Hold a lock file that one process at a time can hold; yield False if the file system has no locks.

    It waits as long as another process holds the lock. The kernel drops the lock with its process.
    """
    # Outside the `try`: a file that cannot be created is an error, not a file system without locks.
    path.touch()
    # filelock's substitute for a file system without flock is a marker file, which a killed process leaves behind.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
