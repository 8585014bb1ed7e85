"""Checks of the machine: compiler, disk, memory, cores, and the user's W&B login."""

from __future__ import annotations

import netrc
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from rlaif.doctor.check import Check
from rlaif.io.writable import cache_problems, socket_problem, temporary_folder

GIB = 2**30
# Room for one rollout actor, two learner ranks and their checkpoints.
MEMORY_GIB, DISK_GIB = 6, 10
COMPILER = "install a C++ compiler and the Python headers (Debian: apt-get install g++ python3-dev)"


def check_compiler() -> Check:
    """Check for a C++ compiler that finds Python's headers: DeepSpeed builds an operator at its first use."""
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        return Check("compiler", "fail", f"no {compiler}", COMPILER)
    include = sysconfig.get_path("include")
    # Only the preprocessor and the parser run: the check is about the headers.
    command = [compiler, "-x", "c++", "-fsyntax-only", f"-I{include}", "-"]
    result = subprocess.run(
        command, input="#include <Python.h>\n", capture_output=True, text=True, timeout=60, check=False
    )
    if result.returncode != 0:
        return Check("compiler", "fail", result.stderr.strip().splitlines()[0], COMPILER)
    return Check("compiler", "ok", f"{compiler} with the headers of {include}")


def check_disk() -> Check:
    """Check the free space of two folders: the default one of runs, and the one of Ray's sessions."""
    places = {"here": Path.cwd(), "temporary": Path(tempfile.gettempdir())}
    sizes, texts = [], []
    for name, path in places.items():
        gib = shutil.disk_usage(path).free / GIB
        sizes.append(gib)
        texts.append(f"{name} ({path}) {gib:.0f} GiB free")
    detail = ", ".join(texts)
    if min(sizes) < DISK_GIB:
        return Check("disk", "warn", detail, f"free {DISK_GIB} GiB, or set storage= and TMPDIR to a larger disk")
    return Check("disk", "ok", detail)


def check_caches() -> Check:
    """Check that the folders can be written that libraries use by default."""
    problems = cache_problems()
    if problems:
        detail = "; ".join(f"{problem.user}: {problem.found}" for problem in problems)
        fixes = dict.fromkeys(problem.fix for problem in problems)
        return Check("caches", "fail", detail, " ".join(fixes))
    return Check("caches", "ok", f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'} and others can be written")


def check_sockets() -> Check:
    """Check that the paths of Ray's sockets are short enough below the folder of temporary files."""
    problem = socket_problem()
    if problem:
        return Check("sockets", "fail", problem.found, problem.fix)
    folder, _ = temporary_folder()
    return Check("sockets", "ok", f"the path {folder} is short enough for Ray's sockets")


def container_limit() -> int | None:
    """Return the bytes of memory that the container (cgroup v2) may use, None without a limit."""
    path = Path("/sys/fs/cgroup/memory.max")
    text = path.read_text().strip() if path.exists() else "max"
    return None if text == "max" else int(text)


def check_memory() -> Check:
    """Check the memory that is free now; inside a container, at most what the container may use."""
    import psutil

    # /proc/meminfo, which psutil reads, shows the machine's memory inside a container too.
    memory = psutil.virtual_memory()
    total = min(memory.total, container_limit() or memory.total)
    available = min(memory.available, total) / GIB
    detail = f"{available:.1f} of {total / GIB:.1f} GiB available"
    if available < MEMORY_GIB:
        return Check("memory", "warn", detail, f"the demo wants {MEMORY_GIB} GiB: close other programs")
    return Check("memory", "ok", detail)


def check_cores() -> Check:
    """Count the CPU cores that this process may use."""
    # Batch systems limit a process to some of the machine's cores.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        return Check("cores", "warn", f"{cores}", "it works, slowly: actors and learners share one core")
    return Check("cores", "ok", f"{cores}")


def wandb_login() -> str:
    """Return the place that holds a key for W&B's server ('' if there is none), and never the key itself."""
    if os.environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY"
    # A key belongs to a server: another one, of `wandb login --host`, does not count.
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc").expanduser()
    return str(path) if path.exists() and netrc.netrc(str(path)).authenticators(server) else ""


def check_wandb() -> Check:
    """Report whether runs would be logged online."""
    mode = os.environ.get("WANDB_MODE")
    if mode in ("offline", "disabled", "dryrun"):
        return Check("wandb", "ok", f"WANDB_MODE={mode}")
    try:
        source = wandb_login()
    except netrc.NetrcParseError as error:
        # The error's message can quote the file, and with it a key, so only the line is printed.
        detail = f"{error.filename} is malformed near line {error.lineno}"
        return Check("wandb", "warn", detail, "repair that line, then 'wandb login'")
    if source:
        return Check("wandb", "ok", f"logged in ({source})")
    return Check("wandb", "ok", "not logged in: runs are logged offline ('wandb login' changes that)")
