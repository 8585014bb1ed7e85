"""The installed package: the wheel's contents, the lock, the commands."""

import email
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("rlaif", "actors", "learners", "cluster")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel_file(tmp_path_factory) -> Path:
    """Build a wheel of the project without a network, with one more configuration than the checkout has."""
    source = tmp_path_factory.mktemp("source")
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", source / "configs", dirs_exist_ok=True)
    (source / "configs" / "planted.yaml").write_text("name: planted\n")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    return next((source / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(wheel_file, tmp_path_factory) -> Path:
    """Unpack the wheel."""
    unpacked = tmp_path_factory.mktemp("wheel")
    zipfile.ZipFile(wheel_file).extractall(unpacked)
    return unpacked


def files_of(root: Path, folders: Iterable[str]) -> set[str]:
    """Return the paths, relative to `root`, of all files in folders below it."""
    files = set()
    for name in folders:
        for path in (root / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                files.add(str(path.relative_to(root)))
    return files


def test_the_wheel_contains_every_source_file_and_nothing_else(wheel):
    """Compare data files too, such as the base model that the demo starts from."""
    assert files_of(wheel, PACKAGES) == files_of(ROOT, PACKAGES)
    assert files_of(wheel, ["configs"]) == files_of(ROOT, ["configs"]) | {"configs/planted.yaml"}
    top = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}
    assert top == {*PACKAGES, "configs"}


def test_the_wheel_contains_the_base_model_of_the_demo(wheel):
    folder = Path("rlaif/worlds/shapes/base")
    files = sorted(path.name for path in (ROOT / folder).iterdir())
    assert "model.safetensors" in files and sorted(path.name for path in (wheel / folder).iterdir()) == files


def test_configurations_are_found_in_the_wheel(wheel, tmp_path):
    """Run from another folder and without the checkout on the path."""
    code = (
        f"import sys; sys.path = [{str(wheel)!r}] + [p for p in sys.path if p not in ('', {str(ROOT)!r})]\n"
        "import importlib.resources as r; print((r.files('configs') / 'planted.yaml').read_text())"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "name: planted", result.stderr


def test_every_folder_of_code_is_a_package():
    """A folder without __init__.py would still import, but the layer rule is not checked there."""
    folders = {(ROOT / file).parent for file in files_of(ROOT, PACKAGES) if file.endswith(".py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_top_package_imports_nothing():
    code = "import sys; before = set(sys.modules); import rlaif; print(set(sys.modules) - before)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "{'rlaif'}"


def test_the_wheel_has_complete_metadata(wheel):
    (info,) = wheel.glob("*.dist-info")
    metadata = email.message_from_string((info / "METADATA").read_text())
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["License-File"] == "LICENSE"
    assert metadata["Keywords"] and metadata.get_all("Classifier")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# rlaif")
    licence = (info / "licenses" / "LICENSE").read_text()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence


def test_the_command_runs_after_the_wheel_is_installed(wheel_file, tmp_path):
    """Run from another folder, with the dependencies of this environment and nothing from an index."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", tmp_path / "site"]
    subprocess.run([*pip, wheel_file], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    script = tmp_path / "site" / "bin" / "rlaif"
    run = partial(subprocess.run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "ppo" in run([script, "--help"]).stdout
    assert run([script, "--version"]).stdout.strip() == f"rlaif {PROJECT['version']}"
    file = run([sys.executable, "-c", "import rlaif.cli.main; print(rlaif.cli.main.__file__)"]).stdout
    assert file.startswith(str(tmp_path / "site"))


def test_all_documents_name_the_same_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[:2] == ["Unreleased", PROJECT["version"]] or versions[0] == PROJECT["version"]


def locked() -> dict[str, str]:
    """Return names and versions of the lock. Every line but comments must be an exact version that any index has."""
    pins = {}
    for line in (ROOT / "requirements" / "cpu.lock").read_text().splitlines():
        if line.startswith("#"):
            continue
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.!]+", line), line
        name, version = line.split("==")
        pins[re.sub(r"[-_.]+", "-", name).lower()] = version
    return pins


def test_the_lock_pins_what_the_project_declares():
    pins = locked()
    extras = PROJECT["optional-dependencies"]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras["cpu"], *extras["dev"]]):
        assert requirement.specifier.contains(pins[requirement.name]), requirement


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["demo"], ".venv/bin/rlaif demo configs/demo.yaml"),
        (["demo", "SEEDS=3"], ".venv/bin/rlaif demo configs/demo.yaml demo.seeds=3"),
        (["demo", "SCRATCH=1"], ".venv/bin/rlaif demo configs/demo.yaml demo.scratch=true"),
        (["study", "scratch"], ".venv/bin/python tests/studies/common.py scratch"),
        (["study", "NAME=scratch"], ".venv/bin/python tests/studies/common.py scratch"),
        (["test"], ".venv/bin/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --durations 10"),
    ],
)
def test_make_runs(arguments, command):
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL")}
    result = subprocess.run(["make", "-n", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [line.strip() for line in result.stdout.splitlines()]
    assert [line for line in lines if line not in ("", ":")][-1] == command, result.stderr
