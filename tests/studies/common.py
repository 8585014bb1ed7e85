"""Run a study and record its figures: `python tests/studies/common.py NAME` (`make study NAME`).

A study is a script `tests/studies/NAME.py` that takes `--json FILE` and writes its figures there as one JSON object. They
are stored in `docs/studies/NAME.json` with the command, the commit, the machine and the minutes it took. A study that
exits with another status than 0 is not recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import psutil

STUDIES = Path(__file__).parent
ROOT = STUDIES.parents[1]
RECORDS = ROOT / "docs" / "studies"
SHARED = ("common", "bases")
"""Files here that are no studies."""
LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "ray")


def names() -> list[str]:
    """Return the names of all studies."""
    return sorted(file.stem.replace("_", "-") for file in STUDIES.glob("*.py") if file.stem not in SHARED)


def machine() -> dict[str, object]:
    """Describe this machine without naming it."""
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "cpu": _cpu_model(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def libraries() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def commit() -> str:
    """Return the commit of the working tree, with `-dirty` appended if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else "unknown: not a git repository"


def write_figures(
    measure: Callable[[argparse.Namespace], Mapping[str, object]], parser: argparse.ArgumentParser
) -> int:
    """Run a study's command line: measure, print the figures, and write them to `--json`."""
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args()
    figures = measure(args)
    text = json.dumps(figures, indent=1) + "\n"
    print(text)
    if args.json:
        args.json.write_text(text)
    return 0 if figures.get("passed", True) else 1


def run_study(name: str, arguments: list[str], records: Path = RECORDS) -> int:
    """Run a study, record it, and return its exit status."""
    script = STUDIES / f"{name.replace('-', '_')}.py"
    if name.replace("_", "-") not in names():
        print(f"no study {name!r}; there are: {', '.join(names())}", file=sys.stderr)
        return 2
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        status = subprocess.run([sys.executable, str(script), "--json", str(file), *arguments], cwd=ROOT).returncode
        if not file.is_file():
            print(f"the study {name} wrote no figures (exit status {status})", file=sys.stderr)
            return status or 1
        figures = json.loads(file.read_text())
    record = {
        "command": " ".join(["make study", name.replace("_", "-"), *arguments]),
        "commit": commit(),
        "machine": machine(),
        "libraries": libraries(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "figures": figures,
    }
    target = records / f"{name.replace('_', '-')}.json"
    if status == 0:
        records.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(record, indent=1) + "\n")
        print(f"recorded in {target}")
    else:
        print(f"not recorded: the study {name} ended with status {status}", file=sys.stderr)
    return status


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: make study NAME, where NAME is one of: {', '.join(names())}")
    sys.exit(run_study(sys.argv[1], sys.argv[2:]))
