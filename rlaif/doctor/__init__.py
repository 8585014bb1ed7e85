"""Checks of this machine, with a fix for each that fails: `python -m rlaif.doctor`.

Every check is a function that returns one Check. An exception that it raises is reported as its failure, because a
broken library is a finding here. So nothing outside the standard library is imported before a check that needs it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence

from rlaif.doctor import libraries, machine
from rlaif.doctor.check import REINSTALL, Check

CHECKS: tuple[Callable[[], Check], ...] = (
    libraries.check_python,
    libraries.check_packages,
    libraries.check_torch,
    libraries.check_gpus,
    libraries.check_vllm,
    libraries.check_torchvision,
    libraries.check_transformers,
    libraries.check_video,
    machine.check_compiler,
    libraries.check_deepspeed,
    libraries.check_ray,
    machine.check_disk,
    machine.check_caches,
    machine.check_sockets,
    machine.check_memory,
    machine.check_cores,
    machine.check_wandb,
)


def guarded(check: Callable[[], Check]) -> Check:
    """Run one check; an exception becomes a failed Check with its message."""
    try:
        return check()
    except Exception as error:  # a broken library may raise anything, and to report it is this module's purpose
        name = check.__name__.removeprefix("check_")
        return Check(name, "fail", f"{type(error).__name__}: {error}", REINSTALL)


def run() -> Iterator[Check]:
    """Yield the findings of all checks, in order, each as soon as it is known; about a quarter of a minute for all."""
    for check in CHECKS:
        yield guarded(check)


def row(check: Check) -> str:
    """Return one finding as a line of the table."""
    return f"{check.status:<5}{check.name:<13}{check.detail}"


def fixes(checks: Sequence[Check]) -> str:
    """Return what to do about the findings that are not ok; empty if all are."""
    lines = [f"{check.name}: {check.fix}" for check in checks if check.fix]
    if not lines:
        return ""
    return "\n".join(["", "What to do", *lines])


def run_doctor(argv: Sequence[str] = ()) -> int:
    """Print each finding as soon as it is known, or with `--json`, for scripts, all at the end.

    Returns the exit status: 1 if something that every run needs is broken, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m rlaif.doctor", description="What works on this machine", allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print a list of objects instead of a table")
    arguments = parser.parse_args(argv)
    checks = []
    for check in run():
        checks.append(check)
        if not arguments.json:
            print(row(check), flush=True)
    if arguments.json:
        print(json.dumps([vars(check) for check in checks], indent=2))
    elif any(check.fix for check in checks):
        print(fixes(checks))
    return int(any(check.status == "fail" for check in checks))
