"""The places in which the base of an export may be stored, also after the run directory was moved or copied.

An adapter is of no use without its base, and the path in `adapter_config.json`, which PEFT reads, is absolute. So our exports
have a record beside it, `rlaif.json`: the base's path, its path relative to the export if both are in one storage, and its
fingerprint. The relative path wins if it leads to a model with that fingerprint (`find_base` in rlaif/models/model_dir.py).
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlaif.io.storage import Location, locate

RECORD = "rlaif.json"
CONFIG = "config.json"
EXPORT = "export"


@dataclass(frozen=True)
class BaseRecord:
    """What an export knows about its base."""

    path: str
    """As it was when the export was written: an absolute path, a URI or a hub name."""
    relative: str | None
    """From the export's folder, if both are in one storage."""
    fingerprint: str


def read_record(export: str) -> BaseRecord | None:
    """Return the record of an export; None without one, as in exports of others and of earlier versions."""
    try:
        record = json.loads((locate(export) / RECORD).read())["base"]
        return BaseRecord(record["path"], record["relative"], record["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def absolute_path(path: str) -> str:
    """Return the path of a local folder in full, as others may read it from another one; URIs and hub names as they are."""
    return os.path.abspath(path) if "://" not in path and Path(path).is_dir() else path


def base_candidates(export: str, named: str, record: BaseRecord | None) -> Iterator[str]:
    """Yield the paths that hold a model and may be the base, the most likely first.

    named: the base's path when the export was written.
    """
    if record is not None and record.relative is not None:
        yield from _beside(export, record.relative)
    if _holds_model(named):
        yield named
    if "://" not in export + named:
        for folder in _beside_or_moved(Path(os.path.abspath(export)), named):
            yield str(folder)


def _beside(export: str, relative: str) -> Iterator[str]:
    """Yield the base at its path relative to the export."""
    exports = [export]
    if "://" not in export:
        # a link to the export may be stored elsewhere than the export itself
        exports.append(os.path.realpath(export))
    for place in exports:
        path = join_path(place, relative)
        if _holds_model(path):
            yield path


def _beside_or_moved(export: Path, named: str) -> Iterator[Path]:
    """Yield a base that is named by a path relative to the export's folder; or one that was moved together with the export.

    Then the end of its old path leads to it from one of the folders above the export: the longest such end is tried first.
    A bare name is an end only in the run directory and beside it, and never is EXPORT, as every stage has such a folder.
    """
    if not os.path.isabs(named):
        if _holds_model(str(export / named)):
            yield (export / named).resolve()
        return
    parts = Path(named).parts
    # the nearest folder above with a run's own files
    run = next((folder for folder in export.parents if _is_run(folder)), None)
    places_of_a_bare_name = (run, run.parent) if run else ()
    # the longest end first; the root itself is no part of any
    for start in range(1, len(parts)):
        end = Path(*parts[start:])
        is_bare = start == len(parts) - 1
        if is_bare and end.name == EXPORT:
            continue
        for above in export.parents:
            if is_bare and above not in places_of_a_bare_name:
                continue
            if _holds_model(str(above / end)):
                yield above / end


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl"))


def _holds_model(path: str) -> bool:
    if "://" in path:
        return (locate(path) / CONFIG).exists()
    return (Path(path) / CONFIG).is_file()


def relative_path(base: str, target: Location) -> str | None:
    """Return the way from an export at `target` to its base; None if the base is outside of the export's storage."""
    if not target.local:
        # a bucket: options after the `?` (an endpoint, a region) are no part of the path
        root, export = target.root.partition("?")[0], str(target).partition("?")[0]
        is_inside = base.partition("?")[0].startswith(root.rstrip("/") + "/")
        return posixpath.relpath(_path_of_uri(base), _path_of_uri(export)) if is_inside else None
    if "://" in base or not os.path.isabs(base):
        return None
    for real in (os.path.abspath, os.path.realpath):  # as it is spelt, and behind symlinks
        root, folder, export = real(target.root), real(base), real(target.local)
        if os.path.commonpath([root, folder]) == root:
            return os.path.relpath(folder, export)
    return None


def join_path(export: str, relative: str) -> str:
    """Return the path or URI that a relative path leads to from an export; options of a URI (`?...`) stay at its end."""
    if "://" not in export:
        return os.path.normpath(os.path.join(os.path.abspath(export), relative))
    scheme, _, rest = export.partition("://")
    path, mark, options = rest.partition("?")
    return f"{scheme}://{posixpath.normpath(posixpath.join(path, relative))}{mark}{options}"


def _path_of_uri(uri: str) -> str:
    return "/" + uri.partition("://")[2].partition("?")[0]
