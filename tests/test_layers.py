"""The layer rule of the four packages; the contracts are in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("rlaif", "actors", "learners", "cluster")
LINT = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache', '--no-logo'])"


def lint(folder: Path) -> subprocess.CompletedProcess:
    """Run import-linter on the packages of `folder`, which come first on the path."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-c", LINT], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> Path:
    """Return a copy of the packages and contracts in which a test may plant a module."""
    root = tmp_path_factory.mktemp("layers")
    shutil.copy(ROOT / "pyproject.toml", root)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def test_packages_keep_the_layer_rule():
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("rlaif/objectives/planted.py", "def use():\n    import ray"),
        ("rlaif/planted.py", "from vllm import LLM"),
        ("rlaif/planted.py", "import deepspeed.comm"),
        ("rlaif/planted.py", "import cluster"),
        ("rlaif/planted.py", "import rlaif.stages"),
        ("rlaif/planted.py", "import rlaif.cli.main"),
        ("actors/planted.py", "import learners"),
        ("learners/planted.py", "import rlaif.stages"),
        ("cluster/planted.py", "import actors"),
    ],
)
def test_a_violation_is_caught(copied, module, line):
    """Plant each kind of violation once: contracts that cannot be broken would pass too."""
    planted = copied / module
    planted.write_text(line + "\n")
    try:
        result = lint(copied)
    finally:
        planted.unlink()
    name = module.removesuffix(".py").replace("/", ".")
    assert result.returncode == 1, result.stdout
    assert f"{name} -> " in result.stdout or f"{name} is not allowed to import" in result.stdout, result.stdout
