"""Errors of a run that cannot create its directory or start its cluster: the likely causes and what to do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rlaif.errors import ConfigError
from rlaif.io.rundir import RunDir
from rlaif.io.storage import Location
from rlaif.io.writable import Obstacle, is_full, socket_problem, temporary_folder, why_not_writable

_BUSY = 4.0
"""Load per core above which Ray's processes may not start in time."""
_SMALL_SHM = 64 * 2**20
"""Bytes: Docker's default for /dev/shm, which is too small for an object store."""
_GIB = 2**30
_NEXT_LINE = "\n           "
"""Starts another line of an error's `found`, below its first one."""


def make_run_directory(run_dir: RunDir) -> None:
    """Create the run directory (of a bucket: its mirror on this node). Raises ConfigError if that cannot be done."""
    try:
        run_dir.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(run_dir.location, error) from error


def storage_error(location: Location, error: OSError) -> ConfigError:
    """Return the error for storage that cannot be written, with a fix for its cause."""
    if is_full(error):
        fix = "Free space there, or set `storage` to another disk."
    else:
        fix = "Set `storage` to a folder that can be written, or change its permissions."
    return ConfigError(f"`storage` that can be written: {location}", str(error), fix)


def check_socket_path(address: str) -> None:
    """Raise ConfigError if the sockets of a private cluster would have longer paths than the kernel takes."""
    problem = socket_problem() if address == "local" else None
    if problem:
        raise ConfigError("a folder for Ray's sockets whose path is short enough", problem.found, problem.fix)


def not_started(reason: str) -> ConfigError:
    """Return the error for a private cluster that did not start: Ray's message, and what is unusual on this machine."""
    obstacles = suspects()
    lines = [_short(reason)]
    for obstacle in obstacles:
        lines.append(obstacle.found)
    fix = " ".join(obstacle.fix for obstacle in obstacles) or (
        "Look into the newest log below /tmp/ray/session_latest/logs, or run `rlaif doctor`; "
        "to use a cluster that runs already, set cluster.address or RAY_ADDRESS."
    )
    return ConfigError("a private Ray cluster that starts on this machine", _NEXT_LINE.join(lines), fix)


def suspects() -> list[Obstacle]:
    """Return the conditions of this machine that are known to keep Ray from starting."""
    candidates = (_temporary_folder_obstacle(), _shared_memory_obstacle(), _load_obstacle())
    return list(filter(None, candidates))


def _temporary_folder_obstacle() -> Obstacle | None:
    folder, name = temporary_folder()
    reason = why_not_writable(folder)
    if reason:
        fix = f"Set {name or 'TMPDIR'} to a folder that can be written."
        return Obstacle("Ray", f"its folder cannot be written: {reason}", fix)
    # Ray writes its logs and its sockets there, and spills objects to it.
    free = _free(folder)
    if free < _GIB:
        fix = f"Free space in {folder}, or set TMPDIR to another folder."
        return Obstacle("Ray", f"{free / _GIB:.1f} GiB free in {folder}", fix)
    return None


def _shared_memory_obstacle() -> Obstacle | None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or why_not_writable(shm):
        fix = "Mount /dev/shm (containers: --shm-size=4g)."
        return Obstacle("Ray", "/dev/shm cannot be written", fix)
    free = _free(shm)
    if free < _SMALL_SHM:
        fix = "Free or enlarge /dev/shm (containers: --shm-size=4g)."
        return Obstacle("Ray", f"{free / 2**20:.0f} MiB free in /dev/shm", fix)
    return None


def _load_obstacle() -> Obstacle | None:
    # Ray gives its processes a fixed time to start, and then ends with a message that names no cause.
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > _BUSY * cores:
        fix = "Wait until the machine is less busy, then start again."
        return Obstacle("Ray", f"a load of {load:.0f} on {cores} cores", fix)
    return None


def _free(folder: str | Path) -> int:
    """Return the free bytes of a folder's disk, 0 if they cannot be read."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _short(reason: str) -> str:
    """Return the first lines of Ray's message, which can have pages of a log after them."""
    lines = []
    for line in reason.splitlines():
        if line.strip():
            lines.append(line.strip()[:300])
    return _NEXT_LINE.join(lines[:3])
