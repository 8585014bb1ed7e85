"""The torchvision import hook, tried in new processes on a stand-in package that fails as the real one does."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from rlaif.doctor import torchvision_shim
from rlaif.errors import RlaifError

META_REGISTRATIONS = """
import torch
torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
"""
"""What torchvision does at import: its fake kernels need a schema that only the compiled operators define."""


@pytest.fixture
def stand_in(tmp_path) -> Path:
    """Create a folder with a package `torchvision` whose operators do not load."""
    package = tmp_path / "path" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("import torch\nfrom torchvision import _meta_registrations\n")
    (package / "_meta_registrations.py").write_text(META_REGISTRATIONS)
    (package / "extension.py").write_text("def _has_ops():\n    return False\n")
    return package.parent


def run(code: str, path: Path, site: Path | None = None) -> subprocess.CompletedProcess:
    """Run `code` with `path` and the environment's libraries, but of all `.pth` files only those of `site`."""
    start = f"import sys; sys.path[:0] = [{str(path)!r}, {sysconfig.get_path('purelib')!r}]\n"
    if site is not None:
        start += f"import site; site.addsitedir({str(site)!r})\n"
    return subprocess.run([sys.executable, "-S", "-c", start + code], capture_output=True, text=True, cwd=path)


def test_the_hook_makes_the_import_work(stand_in, tmp_path):
    without = run("import torchvision", stand_in)
    assert torchvision_shim.KNOWN_ERROR in without.stderr
    torchvision_shim.write_hook(tmp_path)
    with_hook = run("import torchvision, torch; print(torch.ops.torchvision.qnms)", stand_in, tmp_path)
    assert with_hook.returncode == 0, with_hook.stderr


def test_the_hook_does_nothing_if_operators_load(stand_in, tmp_path):
    """A torchvision that works may be installed later in place of the one that needed the hook."""
    (stand_in / "torchvision" / "extension.py").write_text("def _has_ops():\n    return True\n")
    (stand_in / "torchvision" / "_meta_registrations.py").write_text("")
    torchvision_shim.write_hook(tmp_path)
    code = "import torchvision, torch; print(hasattr(torch.ops.torchvision, 'nms'))"
    assert run(code, stand_in, tmp_path).stdout.strip() == "False"


def test_the_hook_imports_torch_only_when_torchvision_is_imported(stand_in, tmp_path):
    torchvision_shim.write_hook(tmp_path)
    code = "import importlib.util; importlib.util.find_spec('torchvision'); print('torch' in sys.modules)"
    assert run(code, stand_in, tmp_path).stdout.strip() == "False"


def errors(monkeypatch, *answers: str | None) -> None:
    """Let successive import attempts end with `answers` (None for success)."""
    remaining = iter(answers)
    monkeypatch.setattr(torchvision_shim, "import_error", lambda: next(remaining))


def test_install_writes_nothing_if_torchvision_imports(monkeypatch, tmp_path):
    errors(monkeypatch, None)
    assert "nothing to do" in torchvision_shim.install_hook(tmp_path)
    assert not list(tmp_path.iterdir())


def test_install_verifies_and_names_its_files(monkeypatch, tmp_path):
    errors(monkeypatch, f"RuntimeError: {torchvision_shim.KNOWN_ERROR}", None)
    message = torchvision_shim.install_hook(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {torchvision_shim.PTH, f"{torchvision_shim.MODULE}.py"}
    assert all(name in message for name in (*names, str(tmp_path)))


def test_install_raises_other_errors(monkeypatch, tmp_path):
    errors(monkeypatch, "OSError: libsomething.so is missing")
    with pytest.raises(RlaifError, match=r"libsomething\.so"):
        torchvision_shim.install_hook(tmp_path)
    assert not list(tmp_path.iterdir())


def test_install_removes_a_hook_that_does_not_help(monkeypatch, tmp_path):
    errors(monkeypatch, torchvision_shim.KNOWN_ERROR, "still broken")
    with pytest.raises(RlaifError, match="still broken"):
        torchvision_shim.install_hook(tmp_path)
    assert not list(tmp_path.iterdir())


def test_uninstall_removes_both_files(tmp_path):
    torchvision_shim.write_hook(tmp_path)
    assert torchvision_shim.PTH in torchvision_shim.uninstall_hook(tmp_path)
    assert not list(tmp_path.iterdir())
    assert "no hook" in torchvision_shim.uninstall_hook(tmp_path)


def test_torchvision_resizes_in_this_environment():
    import torch
    from torchvision.transforms.v2 import functional

    assert functional.resize(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [4, 4]).shape == (2, 3, 4, 4)
