"""Our packages are imported although folders or files of the same names are on the path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import importlib.util, sys
from rlaif.isolation import pin_packages, working_directory_last
if "early" in sys.argv:
    import cluster
pin_packages()
working_directory_last()
names = ("actors.pool", "cluster.layout", "learners.spec", "my_functions")
print(*(importlib.util.find_spec(name).origin for name in names), sep="\\n")
"""


@pytest.mark.parametrize("shadow", ["folder", "package", "file"])
@pytest.mark.parametrize("when", ["early", "first"])
def test_our_packages_come_before_others_of_their_name(tmp_path, shadow, when):
    for name in ("actors", "cluster", "learners"):
        if shadow == "file":
            (tmp_path / f"{name}.py").write_text("raise RuntimeError('not ours')" if when == "first" else "")
            continue
        (tmp_path / name).mkdir()
        if shadow == "package":
            (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "my_functions.py").write_text("")
    # The working directory comes first on the path, as with `python -m`.
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = subprocess.run(
        [sys.executable, "-c", CODE, when], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    files = ["actors/pool.py", "cluster/layout.py", "learners/spec.py"]
    assert result.stdout.split() == [*(str(ROOT / file) for file in files), str(tmp_path / "my_functions.py")]
