"""Make `import torchvision` work on machines that have torch for the CPU and torchvision for CUDA.

Package indexes have torchvision with CUDA operators. Beside a CPU torch these cannot be loaded, and the import fails with
"operator torchvision::nms does not exist", although all that video processors use of it (resizing) is plain torch.
`python -m rlaif.doctor.torchvision_shim install` tries the import, and only if it fails that way puts an import hook
(`rlaif.doctor.torchvision_hook`) into site-packages. So every process of this environment has it, including those that vLLM
and Ray start. `uninstall` removes it.
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
    """Import torchvision in a new process; return None if it works, else the last line of the error."""
    probe = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    if probe.returncode == 0:
        return None
    lines = probe.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {probe.returncode}"


def site_packages() -> Path:
    """Return the folder of this interpreter whose `.pth` files run at start-up."""
    return Path(sysconfig.get_path("purelib"))


def write_hook(site: Path) -> None:
    """Copy the hook, and write a `.pth` beside it that starts it."""
    # The `.pth` comes last, so that it never names a missing module, which would print an error in every process.
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


def install_hook(site: Path | None = None) -> str:
    """Install the hook if it is needed, and return a line that says what was done.

    Raises RlaifError if torchvision fails for another reason, or still fails with the hook (which is then removed).
    """
    site = site or site_packages()
    error = import_error()
    if error is None:
        state = "with the hook installed earlier" if (site / PTH).exists() else "nothing to do"
        return f"torchvision imports: {state}"
    if KNOWN_ERROR not in error:
        raise _broken(error, "Install a torchvision that was built for this torch.")
    write_hook(site)
    error = import_error()
    if error is not None:
        remove_hook(site)
        raise _broken(f"{error} (also with the import hook)", "Install a torchvision that was built for this torch.")
    return f"torchvision imports now: wrote {PTH} and {MODULE}.py to {site}"


def uninstall_hook(site: Path | None = None) -> str:
    """Remove the hook, and return a line that says what was done."""
    site = site or site_packages()
    removed = remove_hook(site)
    return f"removed {' and '.join(removed)} from {site}" if removed else f"no hook in {site}"


def _broken(found: str, fix: str) -> RlaifError:
    return RlaifError("`import torchvision` to work", found, fix)


def run_shim(argv: list[str] | None = None) -> int:
    """Run the command line, `install` or `uninstall`, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m rlaif.doctor.torchvision_shim", description=__doc__.splitlines()[0]
    )
    parser.add_argument("verb", choices=["install", "uninstall"])
    verb = parser.parse_args(argv).verb
    try:
        print(install_hook() if verb == "install" else uninstall_hook())
    except RlaifError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_shim())
