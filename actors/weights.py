"""The weights of one engine: which version is in place, and how the next one gets in whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.weight_check import WeightCheck
from cluster.publish import Bucket, Manifest, from_wire, unpack_weights
from rlaif.errors import ContractError
from rlaif.io.tempdirs import Scratch
from rlaif.models.model_dir import SETTINGS, ModelDir
from rlaif.models.vlm import ADAPTER

ADAPTERS = "rlaif-adapter-"
"""Prefix of the folders of published adapters."""


@dataclass(frozen=True)
class Published:
    """Receipt of a publish."""

    version: int
    tensors: int
    nbytes: int
    seconds: float


class EngineWeights:
    """The weights of a vLLM instance. Version 0 is the model directory as it stands.

    Full weights arrive as arrays (`publish`) or over one of vLLM's transports between GPUs (`open`, then per version
    `begin`, `receive` for each part, `commit`). Either way nothing is applied before everything is checked.
    """

    def __init__(self, llm: Any, check: WeightCheck):
        """Begin with the weights that vLLM has loaded; check: of every version that is published."""
        self.llm, self._check, self._base = llm, check, ModelDir(check.path).fingerprint
        self.version: int | None = 0
        """None after a publish that failed half-way or a sleep without weights: only a later publish makes it usable."""
        self.kind = "full" if check.rank is None else "adapter"
        self.adapter: Any = None
        """The LoRARequest that every answer is sampled with."""
        self._tower: dict[str, int] = {}
        """Checksums of vision tower and projector as published last; empty: as in the model directory."""
        self._folder = Scratch(ADAPTERS) if check.rank is not None else None
        self._asleep = False
        self.encoder_resets = 0
        """How often vLLM has forgotten the visual features that it had cached."""

    def check_version(self, version: int) -> None:
        """Wake the engine; raise ContractError unless `version` is in place."""
        self._wake()
        if version == self.version:
            return
        present = f"version {self.version}"
        if self.version is None:
            present = "no usable weights (a publish failed half-way, or they were put to sleep)"
        raise ContractError(
            f"weights of version {version} in the engine",
            present,
            "Publish that version to this engine before sampling from it.",
        )

    def publish(self, manifest: Manifest, buckets: Sequence[Bucket]) -> Published:
        """Verify, apply and commit one version that has arrived as arrays.

        Raises:
            ContractError: naming the tensor that is damaged, missing, unknown or of another shape or dtype; the old version stays.
        """
        start = time.perf_counter()
        self._check_fits(manifest)
        self._wake("weights")
        # checksums are compared here: on a CPU vLLM repacks what it loads, so nothing can be read back afterwards
        arrays = unpack_weights(manifest, buckets)
        if self.kind == "adapter":
            self._load_adapter(manifest, arrays)
        else:
            wire = []
            for name, array in arrays.items():
                wire.append((name, manifest.tensors[name].dtype, array))
            self._load(manifest, "load_published", wire)
        return self._committed(manifest, start)

    def open(self, backend: str, info: Mapping) -> None:
        """Join a transport for full weights; `info` is what its sender gives its receivers."""
        self.llm.collective_rpc("open_transfer", args=(backend, dict(info)))

    def begin(self) -> None:
        """Prepare for a version that comes in parts; what has arrived of an unfinished one is dropped."""
        self._wake("weights")
        self.llm.collective_rpc("begin_transfer")

    def receive(self, info: Mapping | list) -> None:
        """Receive one part of the version, beside the weights in use."""
        self.llm.collective_rpc("receive_transfer", args=(info,))

    def commit(self, manifest: Manifest) -> Published:
        """Verify, apply and commit what has been received since `begin`. Raises as `publish`."""
        start = time.perf_counter()
        self._check_fits(manifest)
        # every rank checks its own part before any rank loads: a model of half-new weights would answer without an error
        for problem in self.llm.collective_rpc("check_transfer", args=(manifest,)):
            if problem is not None:
                # ranks without a problem hold their parts still: drop them everywhere
                self.llm.collective_rpc("begin_transfer")
                raise problem
        self._load(manifest, "load_transfer")
        return self._committed(manifest, start)

    def _check_fits(self, manifest: Manifest) -> None:
        if manifest.kind != self.kind:
            raise ContractError(
                f"{self.kind} weights, as this engine was built for",
                f"{manifest.kind} weights",
                "Set ppo.lora alike for learners and rollout actors.",
            )
        # names and shapes of another model of the same size would fit; empty: the sender does not say
        if manifest.base not in ("", self._base):
            raise ContractError(
                f"weights that were trained from this engine's model, {self._check.path} ({self._base})",
                f"weights of another base ({manifest.base})",
                "Start learners and rollout actors from the same model directory.",
            )
        self._check.check(manifest)

    def _load(self, manifest: Manifest, method: str, *args: Any) -> None:
        """Load verified tensors into the live model: all of them, or there is no version afterwards."""
        self.version = None  # until the new weights are complete there is no version
        # vLLM loads full weights in place and cannot go back: hence the checks before, and the look at what it left out
        try:
            ranks = self.llm.collective_rpc(method, args=args)
        except Exception as error:  # an error of vLLM names the tensor; the pool must see a refused publish
            raise _not_loaded(_version(manifest), error) from error
        untouched = sorted(set().union(*ranks))
        if untouched:
            problem = f"nothing for {untouched[0]!r} ({len(untouched)} parameters of the engine left as they were)"
            raise _not_loaded(_version(manifest), problem)

    def _load_adapter(self, manifest: Manifest, arrays: Bucket) -> None:
        """Write the adapter into this engine's folder (gone with the engine) and load it in place of the last one."""
        from safetensors.torch import save_file

        folder = Path(tempfile.mkdtemp(prefix=f"{manifest.version}-", dir=self._folder.path))
        tensors = {}
        for name, array in arrays.items():
            tensors[name] = from_wire(array, manifest.tensors[name].dtype)
        save_file(tensors, folder / ADAPTER)
        (folder / SETTINGS).write_text(json.dumps(manifest.lora))
        self._use(folder, _version(manifest))

    def serve(self, adapter: str) -> None:
        """Serve the adapter in a folder, in place of the last one, as part of the version that is in place."""
        folder = Path(tempfile.mkdtemp(prefix="own-", dir=self._folder.path))
        for file in (ADAPTER, SETTINGS):
            shutil.copy(Path(adapter) / file, folder)
        self._use(folder, f"the adapter at {adapter}")
        self.reset_prefix_cache()

    def _use(self, folder: Path, name: str) -> None:
        from vllm.lora.request import LoRARequest

        # The id stays the same, so without `load_inplace` vLLM would go on with the adapter that it has under it. It reads
        # the new one before it drops the old one: an error here leaves the old one in place.
        try:
            loaded = self.llm.llm_engine.add_lora(LoRARequest("policy", 1, str(folder), load_inplace=True))
        except Exception as error:
            raise _not_loaded(name, error) from error
        if not loaded:
            raise _not_loaded(name, "declined without a reason")
        if self.adapter is not None:
            shutil.rmtree(self.adapter.lora_path)
        # requests carry no `load_inplace`: each of them would load the adapter again
        self.adapter = LoRARequest("policy", 1, str(folder))

    def _committed(self, manifest: Manifest, start: float) -> Published:
        self.version = None  # new weights and old caches are no version either
        self._wake()
        # features stay valid while the tower does: with a frozen one each video is encoded once, not once per version
        tower = _tower_checksums(manifest)
        if tower != self._tower:
            self.reset_encoder_cache()
            self._tower = tower
        self.reset_prefix_cache()
        self.version = manifest.version
        seconds = time.perf_counter() - start
        return Published(manifest.version, len(manifest.tensors), manifest.nbytes, seconds)

    def sleep(self, level: int) -> None:
        """Leave the GPU to others until the next use.

        Level 1 keeps the weights in host memory, 2 forgets them, so that only a publish of full weights makes the engine
        usable again. Cached keys, values and features are gone.
        """
        if level == 2:
            self.version = None
        self.llm.sleep(level)
        self._asleep = True
        self.encoder_resets += 1

    def _wake(self, part: str | None = None) -> None:
        """Wake the engine, or only its `weights`: then the memory of the cache is taken when it is needed."""
        if self._asleep:
            self.llm.wake_up([part] if part else None)
            self._asleep = part is not None

    def reset_encoder_cache(self) -> None:
        """Forget the visual features of the old weights."""
        # without this a repeated video keeps using the old tower's output, in all families
        self.llm.llm_engine.reset_encoder_cache()
        self.encoder_resets += 1

    def reset_prefix_cache(self) -> None:
        """Forget the keys and values of the old weights."""
        # vLLM returns False, without an error, while requests hold blocks: the old keys would then serve the new weights
        if not self.llm.reset_prefix_cache():
            raise ContractError(
                "an idle engine to publish to", "requests in progress", "Publish after generate has returned."
            )


def _tower_checksums(manifest: Manifest) -> dict[str, int]:
    """Return the checksums of vision tower and projector. An adapter has nothing there."""
    text = ("model.language_model.", "base_model.model.model.language_model.", "lm_head.")
    checksums = {}
    for name, info in manifest.tensors.items():
        if not name.startswith(text):
            checksums[name] = info.checksum
    return checksums


def _version(manifest: Manifest) -> str:
    return f"{manifest.kind} weights of version {manifest.version}"


def _not_loaded(name: str, error: Exception | str) -> ContractError:
    return ContractError(
        f"{name} that vLLM can load",
        str(error),
        "Publish names, shapes and adapter targets of the model directory that the engine was started with.",
    )
