"""Checks of what is installed: versions, builds, and whether each library works.

Libraries that are slow or can crash on import (vLLM, Ray, DeepSpeed) are imported in processes of their own.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

from rlaif.doctor.check import REINSTALL, Check, ProbeError, run_probe

GIB = 2**30
SHM_GIB = 1.5
"""Room in /dev/shm for the object store of a private cluster, and a little more."""


def check_python() -> Check:
    """Check the interpreter's version."""
    supported = (3, 11) <= sys.version_info[:2] < (3, 14)
    fix = "" if supported else "make a new environment with Python 3.11, 3.12 or 3.13"
    return Check("python", "ok" if supported else "fail", f"{platform.python_version()} ({sys.executable})", fix)


def declared_requirements() -> list[str]:
    """Return the project's requirements: of the installed distribution, else of pyproject.toml beside the package."""
    try:
        return metadata.requires("rlaif") or []
    except metadata.PackageNotFoundError:
        project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
        return project["dependencies"]


def check_packages() -> Check:
    """Compare installed versions with the ranges that the project declares."""
    from packaging.requirements import Requirement

    missing, outside, needed = [], [], 0
    for text in declared_requirements():
        requirement = Requirement(text)
        # A marker limits a requirement to an extra or to some Python versions.
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        needed += 1
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(str(requirement))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            outside.append(f"{requirement.name} {version} (wants {requirement.specifier})")
    if missing:
        return Check("packages", "fail", f"missing: {', '.join(missing)}", REINSTALL)
    if outside:
        return Check("packages", "warn", f"outside the tested range: {', '.join(outside)}", REINSTALL)
    return Check("packages", "ok", f"all {needed} in their ranges")


def nvidia_gpus() -> list[str]:
    """Return the names of the GPUs that the driver sees, even if torch cannot use them."""
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(
        ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return listing.stdout.strip().splitlines() if listing.returncode == 0 else []


def check_torch() -> Check:
    """Compare the build of torch with the hardware."""
    import torch

    build = f"CUDA {torch.version.cuda} build" if torch.version.cuda else "CPU build"
    detail = f"{torch.__version__}, {build}"
    # A CPU build of torch sees no GPU, so the driver tells.
    if torch.version.cuda is None and nvidia_gpus():
        return Check("torch", "warn", f"{detail}, but the driver sees GPUs", "make clean; make EXTRA=gpu install")
    return Check("torch", "ok", detail)


def check_gpus() -> Check:
    """List the GPUs that torch can use, and the version of NCCL, which connects them."""
    import torch

    if not torch.cuda.is_available():
        count = len(nvidia_gpus())
        if count and torch.version.cuda:
            return Check("gpus", "fail", f"the driver sees {count}, torch none", "match the driver to torch's CUDA")
        return Check("gpus", "ok", "none: models run on the CPU")
    cards = []
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        cards.append(f"{card.name} {card.total_memory / GIB:.0f} GiB")
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return Check("gpus", "ok", f"{len(cards)}: {', '.join(cards)}; NCCL {nccl}")


def check_vllm() -> Check:
    """Check that vLLM imports and chooses the same platform as torch."""
    import torch

    code = "import vllm; from vllm.platforms import current_platform as p; print(vllm.__version__, p.device_type)"
    version, _, device = run_probe(code).partition(" ")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    if device != expected:
        fix = f"make clean; make EXTRA={'gpu' if expected == 'cuda' else 'cpu'} install"
        return Check("vllm", "fail", f"{version} runs on {device or 'nothing'}, torch on {expected}", fix)
    return Check("vllm", "ok", f"{version} on {device}")


def check_torchvision() -> Check:
    """Check that torchvision imports: the video processors of transformers need it."""
    # Imported here: `python -m` warns about a module that its own package has imported already.
    from rlaif.doctor import torchvision_shim

    error = torchvision_shim.import_error()
    if error is None:
        return Check("torchvision", "ok", f"{metadata.version('torchvision')} imports")
    # Our import hook helps against one error only.
    known = torchvision_shim.KNOWN_ERROR in error
    return Check(
        "torchvision", "fail", error, "python -m rlaif.doctor.torchvision_shim install" if known else REINSTALL
    )


def check_transformers() -> Check:
    """Check that transformers can load its processors."""
    # transformers imports torchaudio if it is installed, so a torchaudio that cannot load breaks every processor.
    code = "import transformers.audio_utils, transformers; print(transformers.__version__)"
    try:
        return Check("transformers", "ok", f"{run_probe(code)}, processors import")
    except ProbeError as error:
        audio = "torchaudio" in str(error) or "torchcodec" in str(error)
        fix = "pip uninstall torchaudio torchcodec (nothing here needs them)" if audio else REINSTALL
        return Check("transformers", "fail", f"processors do not import: {error}", fix)


def check_video() -> Check:
    """Decode a small MP4 that PyAV has written: 6 frames of 48 x 64, each brighter than the one before."""
    from rlaif.video.decode import decode, sample_spec

    with tempfile.TemporaryDirectory(prefix="rlaif-doctor-") as folder:
        path = str(Path(folder) / "probe.mp4")
        write_probe_video(path)
        frames = decode(path, sample_spec(path, 2))
    dark, bright = frames[0].mean(), frames[1].mean()
    # The first and the last of six grey levels are 200 apart; the codec changes each by a few.
    if frames.shape != (2, 48, 64, 3) or not dark + 100 < bright:
        actual = f"shape {frames.shape}, mean brightness {dark:.0f} and {bright:.0f}"
        return Check("video", "fail", f"PyAV read the wrong pixels: {actual}", REINSTALL)
    return Check("video", "ok", f"PyAV {metadata.version('av')} decodes mp4")


def write_probe_video(path: str) -> None:
    """Write 6 uniform frames, 48 x 64 pixels, with grey levels 20, 60, ..., 220."""
    import av
    import numpy as np

    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(20, 221, 40):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def check_deepspeed() -> Check:
    """Check that DeepSpeed imports and chooses an accelerator."""
    code = (
        "import deepspeed; from deepspeed.accelerator import get_accelerator;"
        "print(deepspeed.__version__, get_accelerator().device_name())"
    )
    version, device = run_probe(code).split()
    return Check("deepspeed", "ok", f"{version} on {device}")


def check_ray() -> Check:
    """Check that Ray imports and that a private cluster's object store fits into shared memory. Starts nothing."""
    version = run_probe("import ray, ray.train; print(ray.__version__)")
    # `import ray.train` fails without Ray's extra `train`, which `import ray` does not notice.
    address = os.environ.get("RAY_ADDRESS")
    cluster = f"joins {address} (RAY_ADDRESS)" if address else "no RAY_ADDRESS: runs start a private cluster"
    shm = Path("/dev/shm")
    if not shm.exists():
        return Check("ray", "ok", f"{version}, {cluster}")
    free = shutil.disk_usage(shm).free / GIB
    detail = f"{version}, {cluster}; {free:.1f} GiB free in /dev/shm"
    if free < SHM_GIB:
        fix = f"free or enlarge /dev/shm to {SHM_GIB} GiB (containers: --shm-size), or lower cluster.object_store_gib"
        return Check("ray", "warn", detail, fix)
    return Check("ray", "ok", detail)
