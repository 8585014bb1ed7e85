"""Why a run does not get as far as a cluster and a directory of its own, and what to do about it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rlaif.errors import ConfigError
from rlaif.io.rundir import RunDir
from rlaif.io.storage import Location
from rlaif.io.writable import is_full, socket_problem, temporary_folder, why_not_writable

_BUSY = 4.0
"""Load per core above which Ray's processes may not start in time."""
_SMALL_SHM = 64 * 2**20
_GIB = 2**30


def make_run_directory(run_dir: RunDir) -> None:
    """Create the run directory (of a bucket: its mirror on this node). Raises ConfigError if that cannot be done."""
    try:
        run_dir.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(run_dir.location, error) from error


def storage_error(location: Location, error: OSError) -> ConfigError:
    """Return the error for storage that cannot be written, with a fix for its cause."""
    if is_full(error):
        change = "free space there, or set `storage` to another disk"
    else:
        change = "set `storage` to a folder that can be written, or change its permissions"
    return ConfigError(f"`storage` that can be written: {location}", str(error), change)


def check_socket_path(address: str) -> None:
    """Raise ConfigError if the sockets of a private cluster would have longer paths than the kernel takes."""
    if address == "local" and (problem := socket_problem()):
        found, change = problem
        raise ConfigError("a folder for Ray's sockets whose path is short enough", found, change)


def not_started(reason: str) -> ConfigError:
    """Return the error for a private cluster that did not start: what Ray says, and what is unusual on this machine."""
    causes = suspects()
    change = "; ".join(fix for _, fix in causes) or (
        "look into the newest log below /tmp/ray/session_latest/logs, or run `rlaif doctor`; "
        "to use a cluster that runs already, set cluster.address or RAY_ADDRESS"
    )
    found = [_short(reason), *(cause for cause, _ in causes)]
    return ConfigError("a private Ray cluster that starts on this machine", "\n           ".join(found), change)


def suspects() -> list[tuple[str, str]]:
    """Return what is known to keep Ray from starting and is the case here: (what, fix)."""
    found = []
    folder, name = temporary_folder()
    if reason := why_not_writable(folder):
        found.append((f"its folder cannot be written: {reason}", f"set {name or 'TMPDIR'} to a folder that can be"))
    elif _free(folder) < _GIB:
        found.append((f"{_free(folder) / _GIB:.1f} GiB free in {folder}", "free space there, or set TMPDIR"))
    shm = Path("/dev/shm")
    if not shm.is_dir() or why_not_writable(shm):
        found.append(("/dev/shm cannot be written", "mount it (containers: --shm-size=4g)"))
    elif _free(shm) < _SMALL_SHM:
        found.append(
            (f"{_free(shm) / 2**20:.0f} MiB free in /dev/shm", "free or enlarge /dev/shm (containers: --shm-size=4g)")
        )
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > _BUSY * cores:
        found.append(
            (f"a load of {load:.0f} on {cores} cores", "wait until the machine is less busy, then start again")
        )
    return found


def _free(folder: str | Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _short(reason: str) -> str:
    """Return the first lines of what Ray says, which can go on with pages of a log."""
    lines = [line.strip() for line in reason.strip().splitlines() if line.strip()]
    return "\n           ".join(line[:300] for line in lines[:3])
