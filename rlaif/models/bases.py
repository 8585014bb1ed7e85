"""Where the base of an export is, also after the run directory was moved or copied.

An adapter is of no use without its base, and the path in `adapter_config.json`, which PEFT reads, is absolute. So our exports
have a record beside it, `rlaif.json`: the base's path, its path relative to the export if both are in one storage, and its
fingerprint. The relative path wins if it leads to a model with that fingerprint.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rlaif.io.storage import Location, locate
from rlaif.models.digest import whole_fingerprint

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


def record_text(base: str, target: Location) -> str:
    """Return what RECORD holds in an export that is to be stored at `target`."""
    record = BaseRecord(absolute(base), _relative(absolute(base), target), whole_fingerprint(base))
    return json.dumps({"base": asdict(record)}, indent=2)


def read_record(export: str) -> BaseRecord | None:
    """Return the record of an export; None without one, as in exports of others and of earlier versions."""
    try:
        base = json.loads((locate(export) / RECORD).read())["base"]
        return BaseRecord(**{name: base[name] for name in ("path", "relative", "fingerprint")})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def absolute(path: str) -> str:
    """Return the path of a local folder in full, as others may read it from another one; URIs and hub names as they are."""
    return os.path.abspath(path) if "://" not in path and Path(path).is_dir() else path


def find_base(export: str, named: str) -> str:
    """Return the path of an export's base, which was called `named` when the export was written.

    With a record, only a model that has its fingerprint counts. Without one, the first place that holds a model does. If
    there is none, the result is `named`: a hub name, or a path for `require_base` to complain about.
    """
    record = read_record(export)
    for candidate in _candidates(export, named, record):
        if record is None or _fingerprint(candidate) == record.fingerprint:
            return candidate
    return named


def _candidates(export: str, named: str, record: BaseRecord | None) -> Iterator[str]:
    """Places that hold a model, the likeliest first."""
    if record is not None and record.relative is not None:
        # a link to the export may be stored elsewhere than the export itself
        for folder in (export,) if "://" in export else (export, os.path.realpath(export)):
            beside = _beside(folder, record.relative)
            if _holds_model(beside):
                yield beside
    if _holds_model(named):
        yield named
    if "://" not in export + named:
        yield from map(str, _beside_or_moved(Path(os.path.abspath(export)), named))


def _beside_or_moved(export: Path, named: str) -> Iterator[Path]:
    """A base that is named by a path relative to the export's folder; or one whose folder was moved together with it.

    Then the end of its old path leads to it from one of the folders above the export: the longest such end is tried first.
    A bare name is an end only in the run directory and beside it, and never is EXPORT, as every stage has such a folder.
    """
    if not os.path.isabs(named):
        if _holds_model(str(export / named)):
            yield (export / named).resolve()
        return
    parts = Path(named).parts
    run = next((folder for folder in export.parents if _is_run(folder)), None)
    for start in range(1, len(parts)):
        end = Path(*parts[start:])
        bare = start == len(parts) - 1
        for above in () if bare and end.name == EXPORT else export.parents:
            if _holds_model(str(above / end)) and (not bare or (run and above in (run, run.parent))):
                yield above / end


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl"))


def _holds_model(path: str) -> bool:
    return (locate(path) / CONFIG).exists() if "://" in path else (Path(path) / CONFIG).is_file()


def _fingerprint(path: str) -> str | None:
    try:
        return whole_fingerprint(path)
    except OSError:
        return None


def _relative(base: str, target: Location) -> str | None:
    """The way from an export to its base; None if the base is outside of the export's storage."""
    if not target.local:
        root, export = (text.partition("?")[0] for text in (target.root, str(target)))
        inside = base.partition("?")[0].startswith(root.rstrip("/") + "/")
        return posixpath.relpath(_path(base), _path(export)) if inside else None
    if "://" in base or not os.path.isabs(base):
        return None
    for real in (os.path.abspath, os.path.realpath):  # as it is spelt, and behind symlinks
        root, folder, export = real(target.root), real(base), real(target.local)
        if os.path.commonpath([root, folder]) == root:
            return os.path.relpath(folder, export)
    return None


def _beside(export: str, relative: str) -> str:
    if "://" not in export:
        return os.path.normpath(os.path.join(os.path.abspath(export), relative))
    scheme, _, rest = export.partition("://")
    path, mark, options = rest.partition("?")
    return f"{scheme}://{posixpath.normpath(posixpath.join(path, relative))}{mark}{options}"


def _path(uri: str) -> str:
    return "/" + uri.partition("://")[2].partition("?")[0]
