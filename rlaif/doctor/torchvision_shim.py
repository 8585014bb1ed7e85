"""Make `import torchvision` work on machines that have torch for the CPU and torchvision for CUDA.

Package indexes serve torchvision with CUDA operators; beside a CPU torch they cannot be loaded and the import dies with
"operator torchvision::nms does not exist", although all that video processors use of it (resizing) is plain torch.
`python -m rlaif.doctor.torchvision_shim install` tries the import, and only where it fails that way puts an import hook
(`rlaif.doctor.torchvision_hook`) into site-packages, so that every process of this environment has it, the ones that
vLLM and Ray start included. `uninstall` takes it out again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from rlaif.doctor import torchvision_hook
from rlaif.errors import RlaifError

KNOWN_ERROR = "operator torchvision::nms does not exist"
MODULE = "_rlaif_torchvision_hook"
PTH = "rlaif-torchvision.pth"


def import_error() -> str | None:
    """Import torchvision in a fresh process; None when it works, else the last line of what it printed."""
    probe = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    if probe.returncode == 0:
        return None
    lines = probe.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {probe.returncode}"


def site_packages() -> Path:
    """The folder of this interpreter whose `.pth` files run at start-up."""
    return Path(sysconfig.get_path("purelib"))


def write_hook(site: Path) -> None:
    """Copy the hook next to a `.pth` that starts it; the `.pth` comes last, so it never names a missing module."""
    shutil.copyfile(torchvision_hook.__file__, site / f"{MODULE}.py")
    aside = site / f"{PTH}.new"
    aside.write_text(f"import {MODULE}; {MODULE}.install()\n")
    os.replace(aside, site / PTH)


def remove_hook(site: Path) -> list[str]:
    """Delete the hook's two files and return the names of those that were there."""
    present = [path for path in (site / PTH, site / f"{MODULE}.py") if path.exists()]
    for path in present:
        path.unlink()
    return [path.name for path in present]


def install(site: Path | None = None) -> str:
    """Install the hook if it is needed and return one line saying what was done.

    Raises RlaifError where torchvision fails for another reason, or still fails with the hook (which is then removed).
    """
    site = site or site_packages()
    error = import_error()
    if error is None:
        state = "with the hook installed earlier" if (site / PTH).exists() else "nothing to do"
        return f"torchvision imports: {state}"
    if KNOWN_ERROR not in error:
        raise _broken(error, "install a torchvision that was built for this torch")
    write_hook(site)
    error = import_error()
    if error is not None:
        remove_hook(site)
        raise _broken(f"{error} (also with the import hook)", "install a torchvision that was built for this torch")
    return f"torchvision imports now: wrote {PTH} and {MODULE}.py to {site}"


def uninstall(site: Path | None = None) -> str:
    """Remove the hook and return one line saying what was done."""
    site = site or site_packages()
    removed = remove_hook(site)
    return f"removed {' and '.join(removed)} from {site}" if removed else f"no hook in {site}"


def _broken(found: str, change: str) -> RlaifError:
    return RlaifError("`import torchvision` to work", found, change)


def main(argv: list[str] | None = None) -> int:
    """Command line: `install` or `uninstall`; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rlaif.doctor.torchvision_shim", description=__doc__.splitlines()[0]
    )
    parser.add_argument("verb", choices=["install", "uninstall"])
    verb = parser.parse_args(argv).verb
    try:
        print(install() if verb == "install" else uninstall())
    except RlaifError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
