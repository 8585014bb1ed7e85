"""The learner's Ray actor: one rank of the group. One class serves every objective."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import ray
import torch

from cluster.checkpoint import CheckpointRef, Checkpoints
from cluster.publish import Manifest, pack_weights
from cluster.remote import free_port
from cluster.staging import Staging
from cluster.transfer import Receivers, WeightReceipt
from learners import losses, parity, sequences
from learners.export import adapter_config, export_role
from learners.learner import Learner, Unit
from learners.ppo import critic_report, train_on
from learners.ppo_state import PpoState
from learners.spec import LearnerSpec
from learners.state import load_role, published_weights, save_role
from rlaif.config.schema import Ppo, Reward
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import Conversation
from rlaif.errors import ContractError
from rlaif.io.storage import Location, replacing, writing
from rlaif.models.bases import RECORD
from rlaif.models.encode import Encoded
from rlaif.models.model_dir import SETTINGS, ModelDir
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.models.video_features import Frames
from rlaif.models.vision import SharedFeatures
from rlaif.objectives.metrics import Metrics, mean_metrics
from rlaif.records import Experience, Probe, Probed

StepReport = tuple[dict[str, float], list[str]]
"""Metrics of a step over all ranks, and the rows that this rank left out, each with the reason."""


def join_ranks(device: torch.device, timeout: timedelta) -> None:
    """Join the process group that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    Args:
        device: A CUDA device joins by NCCL, any other by gloo.
        timeout: The longest that a collective may take. A rank that dies leaves the others waiting in one.
    """
    import deepspeed

    if device.type == "cpu":
        # DeepSpeed would take half a minute to build a collective that only its inference engine calls
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(backend, timeout=timeout, verbose=False)


class LearnerWorker:
    """One rank. All ranks must be called together for every method (they are collective) but `address` and `memory`."""

    def __init__(self, spec: LearnerSpec, rank: int, world: int):
        self.spec = spec
        self.rank = rank
        self.world = world
        self.sender: Any = None
        """Open transport for full weights between GPUs."""

    def address(self) -> tuple[str, int]:
        """Return this node's address and a free port: on rank 0 the place at which the ranks meet."""
        return ray.util.get_node_ip_address(), free_port()

    def start(
        self,
        address: tuple[str, int],
        make_frames: Callable[[], Frames],
        ppo: Ppo | None = None,
        make_features: Callable[[], SharedFeatures] | None = None,
    ) -> None:
        """Join the process group and build networks and engines."""
        device = _device(self.spec.model.device)
        # ranks share a machine's cores with engines: torch's default, all of them for each, makes every step slower
        torch.set_num_threads(max(1, self.spec.cluster.learner.threads))
        self._set_environment(address)
        if self.spec.deterministic:
            # read when cuBLAS is first used; without it, deterministic algorithms raise on a GPU
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        join_ranks(device, timedelta(seconds=self.spec.cluster.collective_timeout_s))
        features = make_features() if make_features else None
        self.learner = Learner(self.spec, make_frames(), device, features)
        self.ppo_state = PpoState.of(ppo) if ppo else None

    def _set_environment(self, address: tuple[str, int]) -> None:
        """Set the variables by which `torch.distributed` finds the group."""
        host, port = address
        settings = {
            "RANK": self.rank,
            "WORLD_SIZE": self.world,
            # Ray shows an actor its own GPU only, so that each rank's is number 0
            "LOCAL_RANK": 0,
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
        }
        for name, value in settings.items():
            os.environ[name] = str(value)

    def step_conversations(self, rows: Sequence[Conversation], prompt_weight: float = 0.0) -> StepReport:
        """Take one SFT step on this rank's conversations."""
        encoder = self.learner.encoder("policy")
        limit = self.spec.max_tokens
        units, skipped = sequences.conversation_units(encoder, rows, limit, prompt_weight)
        step = self.learner.step("policy", units, losses.SUPERVISED)
        return self._means(step.metrics), skipped

    def step_pairs(self, rows: Sequence[PreferencePair], config: Reward) -> StepReport:
        """Take one Bradley-Terry step on this rank's pairs."""
        units, skipped = self._preferences(rows, config)
        step = self.learner.step("reward", units, losses.preference_objective(config))
        return self._means(step.metrics), skipped

    def score_pairs(self, rows: Sequence[PreferencePair], config: Reward) -> tuple[dict[str, np.ndarray], list[str]]:
        """Return {pair_id: float64 [2, K]}, scores of `chosen` and `rejected` by dimension, and why any pair has none."""
        units, skipped = self._preferences(rows, config)
        items: list[Encoded] = []
        for unit in units:
            items += unit
        # both answers of a pair in one list: a forward holds what fits, wherever it comes from
        scores = self.learner.infer("reward", items, "score")
        shape = (len(units), 2, len(config.dimensions))
        by_pair = np.asarray(scores, np.float64).reshape(shape)
        names = [unit[0].name for unit in units]
        return dict(zip(names, by_pair, strict=True)), skipped

    def _preferences(self, rows: Sequence[PreferencePair], config: Reward) -> tuple[list[Unit], list[str]]:
        encoder = self.learner.encoder("reward")
        prompt = RewardPrompt.of(config)
        limit = self.spec.max_tokens
        return sequences.preference_units(encoder, prompt, rows, limit, config.dimensions)

    def train_ppo(self, experience: Experience, config: Ppo, seed: int) -> tuple[dict[str, float], list[dict]]:
        """Run one PPO iteration on this rank's part; metrics over all ranks, and a report of each of its samples."""
        metrics, reports = train_on(self.learner, self.ppo_state, experience, config, seed)
        gathered = self.learner.collectives.gather_metrics(metrics)
        return mean_metrics(gathered) | critic_report(gathered), reports

    def probe(self, role: str, probes: Sequence[Probe], hypothesis: str | None = None) -> list[Probed]:
        """Return log-probs of fixed responses: see `learners/parity.py`."""
        return parity.probe_role(self.learner, role, probes, hypothesis)

    def logprobs(self, rows: Sequence[tuple], role: str) -> list[np.ndarray]:
        """Return the log-probs [T] of the responses in rows of (video, question, response ids)."""
        encoder = self.learner.encoder(role)
        items: list[Encoded] = []
        for video, question, response_ids in rows:
            features = encoder.video(video)
            items.append(encoder.prompt_and_response(question, response_ids, features))
        return self.learner.infer(role, items, "logprobs")

    def publish(self, role: str, version: int, bucket_bytes: int) -> tuple[Manifest, list[ray.ObjectRef]] | None:
        """Return, on rank 0, the manifest and buckets of the role's newest weights, under the engine's names."""
        target = self.learner.roles[role]
        weights = published_weights(target)
        if self.rank != 0:
            # under ZeRO-3 each weight is gathered from all ranks, so that the others must walk along
            for _ in weights:
                pass
            return None
        base = ModelDir(target.spec.base).fingerprint
        lora = adapter_config(target) if target.adapter else None
        kind = "adapter" if target.adapter else "full"
        return pack_weights(weights, bucket_bytes, version=version, kind=kind, lora=lora, base=base, put=ray.put)

    def open_transfer(
        self, role: str, receivers: Receivers, address: tuple[str, int], bucket_bytes: int
    ) -> WeightReceipt | None:
        """Open a transport for the role's full weights, all ends meeting at `address`.

        Returns None, or a delivery to no receiver that says why none joined.
        """
        # here, because it imports vLLM, which no other way of publishing needs in a learner
        from learners.transfer import WeightSender

        self._close_sender()
        try:
            target = self.learner.roles[role]
            self.sender = WeightSender(target, receivers, self.rank, address, bucket_bytes)
        except ContractError as error:
            return WeightReceipt(None, {}, dict.fromkeys(receivers.actors, error.found))

    def transfer(self, version: int) -> WeightReceipt:
        """Send the newest weights over the open transport, which a failure closes."""
        try:
            return self.sender.send(version)
        except ContractError as error:
            failed = dict.fromkeys(self.sender.receivers.actors, error.found)
            self._close_sender()
            return WeightReceipt(None, {}, failed)

    def _close_sender(self) -> None:
        if self.sender is not None:
            self.sender.close()
            self.sender = None

    def save(self, staging: Staging) -> dict:
        """Write every trained role into an unfinished checkpoint; return the scalar state."""
        destination = staging.writer() if self.rank == 0 else nullcontext()
        with destination as folder:
            for role in self.learner.roles.values():
                if role.engine is not None:
                    save_role(role, folder)
        return {"ppo": self.ppo_state.state_dict()} if self.ppo_state else {}

    def load(self, checkpoints: Checkpoints, ref: CheckpointRef, state: dict) -> None:
        """Load what `save` wrote, also on another number of ranks."""
        folder = checkpoints.load(ref)
        for role in self.learner.roles.values():
            if role.engine is not None:
                load_role(role, folder)
        if self.ppo_state:
            self.ppo_state.load_state_dict(state["ppo"])

    def export(self, role: str, target: Location, merge: bool, card: dict[str, str]) -> None:
        """Write a role's export to the storage; an older export stays until the new one is complete.

        card: further files by name.
        """
        destination = replacing(target) if self.rank == 0 else nullcontext()
        with writing(target, "the export"), destination as folder:
            export_role(self.learner, role, folder, merge)
            if folder is None:
                return
            # an adapter or a reward model needs its base, and may be moved together with it
            if (folder / SETTINGS).is_file() or card:
                base = ModelDir(self.learner.roles[role].spec.base)
                card = {RECORD: base.record_text(target), **card}
            for name, text in card.items():
                (folder / name).write_text(text)

    def memory(self) -> dict[str, float]:
        """Return the peak GPU bytes of this rank, or nothing without a GPU."""
        if not torch.cuda.is_available():
            return {}
        return {"gpu_bytes": float(torch.cuda.max_memory_allocated())}

    def _means(self, metrics: Metrics) -> dict[str, float]:
        return mean_metrics(self.learner.collectives.gather_metrics(metrics))


def _device(choice: Literal["auto", "cpu", "cuda"]) -> torch.device:
    if choice == "cuda" or (choice == "auto" and torch.cuda.is_available()):
        return torch.device("cuda", 0)
    return torch.device("cpu")
