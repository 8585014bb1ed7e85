"""Where files that outlive a process are kept: a folder, or a bucket named by a URI, behind one small interface."""

from __future__ import annotations

import errno
import fcntl
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

from pyarrow import fs
from safetensors import SafetensorError

from rlaif.deadline import Late, within
from rlaif.errors import ConfigError, StorageError
from rlaif.io.writable import is_full

_CHUNK = 8 * 2**20


REACH_S = 15.0
"""Seconds in which a bucket must answer for the first time. Its client alone would try for a minute or more."""

_BUCKETS = ("s3", "gs", "gcs")
_FORBIDDEN = ("access_denied", "accessdenied", "access denied", "403", "permission_denied")


@lru_cache(maxsize=64)
def _filesystem(root: str) -> tuple[fs.FileSystem, str]:
    """Return one connection per storage root, not per file.

    Raises ConfigError when the storage does not answer, and for a URI with a password in it.
    """
    if _holds_password(root):
        raise ConfigError(
            "a storage URI without credentials: it goes into the run's files and logs",
            _shown(root),
            "Remove them, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what your storage's client reads",
        )
    try:
        return within(lambda: _connected(root), REACH_S, f"reach {_shown(root)}")
    except Late as error:
        raise _unreachable(root, str(error)) from None


def _holds_password(root: str) -> bool:
    """Return whether a URI names more than user, host and port. A `/` inside a secret ends what URIs count as the host."""
    user, _, host = urlsplit(root).netloc.rpartition("@")
    return ":" in user or not re.fullmatch(r"(\[.*\]|[^:]*)(:\d*)?", host)


def _connected(root: str) -> tuple[fs.FileSystem, str]:
    """Open a storage and ask for its bucket once: a name that does not exist is found here, not at the first checkpoint."""
    try:
        filesystem, path = fs.FileSystem.from_uri(root)
    except (OSError, ValueError) as error:
        raise _unreachable(root, str(error)) from error
    if urlsplit(root).scheme in _BUCKETS and "allow_bucket_creation=" not in root:
        _check_bucket(filesystem, path.partition("/")[0], root)
    return filesystem, path


def _check_bucket(filesystem: fs.FileSystem, bucket: str, root: str) -> None:
    try:
        kind = filesystem.get_file_info(bucket).type
    except OSError as error:
        # whoever may write below a prefix need not be allowed to look at the bucket
        if any(word in str(error).lower() for word in _FORBIDDEN):
            return
        raise _unreachable(root, str(error)) from error
    if kind == fs.FileType.NotFound:
        raise _unreachable(root, f"no bucket {bucket!r}")


def _unreachable(root: str, found: str) -> ConfigError:
    change = "Correct the URI (bucket name, `?region=`, `?endpoint_override=`), the credentials, or the network"
    return ConfigError(f"a storage that answers at {_shown(root)}", _shown(" ".join(found.split())), change)


def _shown(root: str) -> str:
    """Return a URI, or a text with URIs in it, without the credentials that they may hold."""
    return re.sub(r"//([^/@\s]*|[^@\s]+:[^@\s]+)@", "//***@", root)


@dataclass(frozen=True)
class Location:
    """A file or folder below a storage root. It holds only text, so it travels between processes and nodes."""

    root: str
    """Absolute path, or URI as `pyarrow.fs.FileSystem.from_uri` reads it (options may follow a `?`)."""
    parts: tuple[str, ...] = ()

    def __truediv__(self, relative: str) -> Location:
        return Location(self.root, (*self.parts, *(part for part in relative.split("/") if part)))

    def __str__(self) -> str:
        if self.local:
            return str(self.local)
        base, mark, options = self.root.partition("?")
        return "/".join((base.removesuffix("/"), *self.parts)) + mark + options

    @property
    def local(self) -> Path | None:
        """The path, where the storage is an ordinary (perhaps shared) file system; None for a bucket."""
        return None if "://" in self.root else Path(self.root, *self.parts)

    @property
    def name(self) -> str:
        return (self.parts or (self.root.rstrip("/").rsplit("/", 1)[-1],))[-1]

    def on(self) -> tuple[fs.FileSystem, str]:
        """(file system, path on it), as pyarrow and `ray.train.Checkpoint` take them."""
        if self.local:
            return fs.LocalFileSystem(), str(self.local)
        filesystem, path = _filesystem(self.root)
        return filesystem, "/".join((path.rstrip("/"), *self.parts))

    def reach(self) -> None:
        """Raise ConfigError unless the storage answers: called before anything starts that would be lost otherwise."""
        self.on()

    def exists(self) -> bool:
        filesystem, path = self.on()
        return filesystem.get_file_info(path).type != fs.FileType.NotFound

    def children(self) -> list[str]:
        """Return the sorted names of what is directly in this folder; nothing if the folder is missing."""
        filesystem, path = self.on()
        return sorted(info.base_name for info in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)))

    def files(self) -> dict[str, fs.FileInfo]:
        """Every file below this folder, by its path relative to it."""
        filesystem, path = self.on()
        infos = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
        return {info.path[len(path) :].lstrip("/"): info for info in infos if info.type == fs.FileType.File}

    def read(self) -> bytes:
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
        """(bytes, SHA-256) of this file, as it is read back from the storage."""
        filesystem, path = self.on()
        size, digest = 0, hashlib.sha256()
        with filesystem.open_input_stream(path) as stream:
            while chunk := stream.read(_CHUNK):
                size += len(chunk)
                digest.update(chunk)
        return size, digest.hexdigest()

    def write(self, data: bytes) -> None:
        """Replace this file as a whole: a reader, or a crash, meets the old bytes or the new ones, never a mixture."""
        if self.local:
            return replace_file(self.local, data)
        filesystem, path = self.on()
        with filesystem.open_output_stream(path) as stream:  # buckets show an object only when it is complete
            stream.write(data)

    def remove(self) -> None:
        """Delete this file or tree; nothing happens where it is missing."""
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
        if self.local:
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
    # safetensors raises errors of its own, with the system's text inside
    if is_full(error) or os.strerror(errno.ENOSPC) in str(error):
        return f"free space at {place}, or set storage= to a larger disk"
    return f"check that {place} exists and can be written, or set storage="


@contextmanager
def writing(place: Location, what: str) -> Iterator[None]:
    """Turn a failure of the storage (full, over quota, read-only, gone) into a StorageError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"storage that takes {what}", f"{reason}: {place}", storage_fix(error, place)) from error


def locate(text: str | Path | Location) -> Location:
    """The location that a path (made absolute here) or URI names. Raises ConfigError for a URI that names no place."""
    if isinstance(text, Location):
        return text
    text = str(text)
    if text.startswith("file://"):
        if urlsplit(text).netloc not in ("", "localhost"):
            raise ConfigError(
                "three slashes in the URI of a local folder", text, "Write file:///path, or just the path"
            )
        text = urlsplit(text).path
    elif "://" in text and not text.partition("://")[2].strip("/"):
        raise ConfigError("a bucket in a URI", text, "Write s3://bucket/folder")
    return Location(text if "://" in text else os.path.abspath(os.path.expanduser(text)))


def replace_file(path: Path, data: bytes) -> None:
    """Write a local file aside, flush it to disk and rename it into place."""
    with writing_aside(path) as file:
        file.write(data)


@contextmanager
def writing_aside(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` on leaving, flushed to disk; on an error nothing changes."""
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
    """Make a file's content, or renames in a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cache_folder() -> Path:
    """This user's folder on this node for copies of what is in a bucket, and for adapters merged into their bases."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlaif"


@contextmanager
def replacing(target: Location) -> Iterator[Path]:
    """A local folder to write into; on leaving it takes the place of `target`, which stays as it is until then.

    On an error nothing changes.
    """
    beside = target.local.parent if target.local else None
    if beside:
        beside.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".tmp-", dir=beside))
    try:
        yield folder
        if beside is None:
            target.remove()
            target.upload(folder)
            return
        old = beside / f"{folder.name}.old"
        if target.local.exists():
            target.local.rename(old)
        folder.chmod(0o755)
        folder.rename(target.local)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fetch(text: str) -> str:
    """A path that libraries can open: a URI's folder is copied to this node once; paths and hub names come back as given.

    The copy is keyed by names, sizes and times of the files, so a folder that was rewritten is fetched again.
    """
    if "://" not in text:
        return text
    source = locate(text)
    listing = sorted((name, info.size, info.mtime_ns) for name, info in source.files().items())
    if not listing:
        raise FileNotFoundError(f"{text}: no files there")
    key = hashlib.sha256(repr((text, listing)).encode()).hexdigest()[:16]
    return str(once(cache_folder() / "fetched" / key, source.download))


def once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, a folder of this node's cache; where it is missing, `make` is given an empty folder that becomes it.

    Several processes may ask at the same time: one makes it and the others wait. What fails leaves nothing behind, and what
    a killed one left is removed by the next that asks.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.with_name(f".{target.name}.lock")) as alone:
        if alone:
            for left in target.parent.glob(f".{target.name}.part-*"):
                shutil.rmtree(left, ignore_errors=True)
        if not target.exists():
            _make(target, make)
    return target


def _make(target: Path, make: Callable[[Path], None]) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.part-", dir=target.parent))
    try:
        make(aside)
        for parent, _, names in os.walk(aside):  # after a power cut what has this name is whole
            for file in names:
                flush(Path(parent) / file)
            flush(Path(parent))
        aside.rename(target)
        flush(target.parent)
    except OSError:
        if not target.exists():  # where locks do not hold, another process of this user may have been faster
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Held by one process at a time; a process that ends lets go. False where the file system has no locks."""
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True
