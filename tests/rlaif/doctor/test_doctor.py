"""The doctor: on this machine as it is, and each finding in a situation that causes it."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from rlaif import doctor
from rlaif.doctor import libraries, machine, torchvision_shim
from rlaif.doctor.check import Check, ProbeError, run_probe


@pytest.fixture(scope="module")
def findings() -> dict[str, Check]:
    return {check.name: check for check in doctor.run()}


def test_this_machine_can_run_everything(findings):
    assert [check for check in findings.values() if check.status == "fail"] == []
    assert list(findings) == [check.__name__.removeprefix("check_") for check in doctor.CHECKS]


def test_every_finding_that_is_not_ok_has_a_fix(findings):
    for check in findings.values():
        assert check.detail
        assert bool(check.fix) == (check.status != "ok"), check


def broken() -> Check:
    raise OSError("the cable is out")


def test_an_exception_becomes_a_finding():
    check = doctor.guarded(broken)
    assert (check.status, check.detail) == ("fail", "OSError: the cable is out")


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_exit_status_and_the_table_show_the_finding(monkeypatch, capsys, status, code):
    check = Check("thing", status, "as found", "" if status == "ok" else "mend [it]")
    monkeypatch.setattr(doctor, "CHECKS", (lambda: check,))
    assert doctor.run_doctor([]) == code
    printed = capsys.readouterr().out
    assert "thing" in printed and "as found" in printed
    assert ("thing: mend [it]" in printed) == (status != "ok")


def test_each_finding_is_printed_before_the_next_check(monkeypatch, capsys):
    """A user does not wait for the slowest check to read the first finding."""
    printed = []

    def second() -> Check:
        printed.append(capsys.readouterr().out)
        return Check("second", "ok", "late")

    monkeypatch.setattr(doctor, "CHECKS", (lambda: Check("first", "ok", "early"), second))
    assert doctor.run_doctor([]) == 0
    assert "first" in printed[0] and "second" not in printed[0]


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("XDG_CACHE_HOME", "rlaif"),
        ("HOME", ".cache"),
        ("TORCH_EXTENSIONS_DIR", ""),
        ("TRITON_CACHE_DIR", ""),
        ("VLLM_CACHE_ROOT", ""),
        ("TMPDIR", ""),
    ],
)
def test_an_unwritable_cache_is_reported(monkeypatch, tmp_path, variable, below):
    for name in (
        "XDG_CACHE_HOME",
        "TORCH_EXTENSIONS_DIR",
        "TRITON_CACHE_DIR",
        "TRITON_HOME",
        "VLLM_CACHE_ROOT",
        "TMPDIR",
    ):
        monkeypatch.delenv(name, raising=False)
    assert machine.check_caches().status == "ok"
    monkeypatch.setenv(variable, "/proc/nothing")
    check = machine.check_caches()
    assert check.status == "fail" and str(Path("/proc/nothing") / below) in check.detail and variable in check.fix


def test_a_path_too_long_for_sockets_fails(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert machine.check_sockets().status == "ok"
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 60)
    assert machine.check_sockets().status == "fail" and "RAY_TMPDIR" in machine.check_sockets().fix


def test_json_lists_the_findings(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", (lambda: Check("thing", "warn", "as found", "mend it"),))
    doctor.run_doctor(["--json"])
    expected = [{"name": "thing", "status": "warn", "detail": "as found", "fix": "mend it"}]
    assert json.loads(capsys.readouterr().out) == expected


def test_run_probe_returns_or_raises_the_last_line():
    assert run_probe("print('noise'); print('answer')") == "answer"
    with pytest.raises(ProbeError, match="ValueError: no"):
        run_probe("raise ValueError('no')")


@pytest.mark.parametrize(
    ("requirement", "status", "detail"),
    [
        ("a-package-that-nobody-made>=1", "fail", "missing: a-package-that-nobody-made"),
        ("torch>=99", "warn", "(wants >=99)"),
        ("torch>=2; python_version < '3'", "ok", "all 0"),
        ("torch>=2", "ok", "all 1"),
    ],
)
def test_packages_are_compared_with_their_ranges(monkeypatch, requirement, status, detail):
    monkeypatch.setattr(libraries, "declared_requirements", lambda: [requirement])
    check = libraries.check_packages()
    assert check.status == status and detail in check.detail


def test_requirements_come_from_pyproject_if_the_project_is_not_installed(monkeypatch):
    def not_installed(name):
        raise libraries.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(libraries.metadata, "requires", not_installed)
    assert any(line.startswith("deepspeed") for line in libraries.declared_requirements())


@pytest.mark.parametrize(("cuda", "device"), [(False, "cuda"), (True, "cpu"), (False, "")])
def test_vllm_on_another_platform_than_torch_fails(monkeypatch, cuda, device):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr(libraries, "run_probe", lambda code: f"0.32.0 {device}".strip())
    check = libraries.check_vllm()
    assert check.status == "fail"
    assert f"EXTRA={'gpu' if cuda else 'cpu'}" in check.fix


def test_gpus_that_torch_cannot_use_are_reported(monkeypatch):
    monkeypatch.setattr(libraries, "nvidia_gpus", lambda: ["NVIDIA H100, 81559 MiB"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", None)
    assert libraries.check_torch().status == "warn"
    monkeypatch.setattr("torch.version.cuda", "13.0")
    assert libraries.check_torch().status == "ok"
    assert libraries.check_gpus().status == "fail"


def test_torchvision_fix_depends_on_the_error(monkeypatch):
    monkeypatch.setattr(torchvision_shim, "import_error", lambda: torchvision_shim.KNOWN_ERROR)
    assert "torchvision_shim install" in libraries.check_torchvision().fix
    monkeypatch.setattr(torchvision_shim, "import_error", lambda: "another")
    assert "torchvision_shim" not in libraries.check_torchvision().fix


def test_a_broken_torchaudio_is_to_be_uninstalled(monkeypatch):
    def fail(code):
        raise ProbeError("OSError: Could not load this library: torchaudio/lib/_torchaudio.abi3.so")

    monkeypatch.setattr(libraries, "run_probe", fail)
    assert "uninstall torchaudio" in libraries.check_transformers().fix


def test_a_video_that_cannot_be_read_fails(monkeypatch):
    monkeypatch.setattr(libraries, "write_probe_video", lambda path: Path(path).write_bytes(b"no video"))
    check = doctor.guarded(libraries.check_video)
    assert check.status == "fail" and "do not decode" in check.detail


def test_a_missing_compiler_fails(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    check = machine.check_compiler()
    assert check.status == "fail" and "no-such-compiler" in check.detail and "g++" in check.fix


def test_missing_python_headers_fail(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda name: str(tmp_path))
    check = machine.check_compiler()
    assert check.status == "fail" and "Python.h" in check.detail


Usage = namedtuple("Usage", "total used free")


def test_little_disk_space_or_shared_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100 * 2**30, 99 * 2**30, 2**30))
    monkeypatch.setattr(libraries, "run_probe", lambda code: "2.60.0")
    assert machine.check_disk().status == "warn"
    assert "shm" in libraries.check_ray().fix


def test_a_container_limit_counts_as_the_memory(monkeypatch):
    monkeypatch.setattr(machine, "container_limit", lambda: 2 * 2**30)
    check = machine.check_memory()
    assert check.status == "warn" and "of 2.0 GiB" in check.detail


@pytest.fixture
def no_wandb(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_wandb_without_a_login_is_ok(no_wandb):
    check = machine.check_wandb()
    assert check.status == "ok" and "offline" in check.detail


def test_wandb_login_never_shows_the_key(no_wandb, monkeypatch):
    no_wandb.write_text("machine api.wandb.ai login user password SECRET\n")
    assert "logged in" in machine.check_wandb().detail
    monkeypatch.setenv("WANDB_API_KEY", "SECRET")
    assert machine.check_wandb() == Check("wandb", "ok", "logged in (WANDB_API_KEY)")
    monkeypatch.delenv("WANDB_API_KEY")
    no_wandb.write_text("machine api.wandb.ai login user passwort SECRET\n")
    check = machine.check_wandb()
    assert check.status == "warn" and "SECRET" not in check.detail + check.fix


def test_wandb_login_is_per_server(no_wandb, monkeypatch):
    no_wandb.write_text("machine api.wandb.ai login user password SECRET\n")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8443")
    assert "not logged in" in machine.check_wandb().detail
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert machine.check_wandb().detail == "WANDB_MODE=offline"
