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
from cluster.publish import Manifest, pack
from cluster.remote import free_port
from cluster.staging import Staging
from cluster.transfer import Delivery, Receivers
from learners import losses, parity, sequences
from learners.export import adapter_config, export_role
from learners.learner import Learner, Unit
from learners.ppo import PpoState, critic_report, train_on
from learners.spec import LearnerSpec
from learners.state import load_role, published_weights, save_role
from rlaif.config.schema import Ppo, Reward
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import Conversation
from rlaif.errors import ContractError
from rlaif.io.storage import Location, replacing, writing
from rlaif.models.adapter import SETTINGS
from rlaif.models.bases import RECORD, record_text
from rlaif.models.check import fingerprint
from rlaif.models.encode import Frames
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.models.vision import Shared
from rlaif.objectives.metrics import Metrics, means
from rlaif.records import Probe, Probed, Sample


def join_ranks(device: torch.device, timeout: timedelta) -> None:
    """Join the process group that the environment names (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    Args:
        timeout: of every collective.
    """
    import deepspeed

    if device.type == "cpu":
        # DeepSpeed would take half a minute to build a collective that only its inference engine calls
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", timeout=timeout, verbose=False)


class LearnerWorker:
    """Methods come in two kinds: those every rank must be called for together (collective), and `address`."""

    def __init__(self, spec: LearnerSpec, rank: int, world: int):
        self.spec, self.rank, self.world = spec, rank, world
        self.sender: Any = None
        """Open transport for full weights between GPUs."""

    def address(self) -> tuple[str, int]:
        """Where the other ranks meet rank 0."""
        return ray.util.get_node_ip_address(), free_port()

    def start(
        self,
        address: tuple[str, int],
        make_frames: Callable[[], Frames],
        ppo: Ppo | None = None,
        make_features: Callable[[], Shared] | None = None,
    ) -> None:
        """Join the process group and build networks and engines."""
        device = _device(self.spec.model.device)
        torch.set_num_threads(max(1, self.spec.cluster.learner.threads))
        settings = {
            "RANK": self.rank,
            "WORLD_SIZE": self.world,
            "LOCAL_RANK": 0,
            "MASTER_ADDR": address[0],
            "MASTER_PORT": address[1],
        }
        os.environ.update({name: str(value) for name, value in settings.items()})
        if self.spec.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
            torch.use_deterministic_algorithms(True)
        join_ranks(device, timedelta(seconds=self.spec.cluster.collective_timeout_s))
        self.learner = Learner(self.spec, make_frames(), device, make_features() if make_features else None)
        self.ppo_state = PpoState.of(ppo) if ppo else None

    def step_conversations(
        self, rows: Sequence[Conversation], prompt_weight: float = 0.0
    ) -> tuple[dict[str, float], list[str]]:
        """One SFT step on this rank's conversations: metrics over all ranks, and rows this rank left out."""
        encoder, limit = self.learner.encoder("policy"), self.spec.max_tokens
        units, skipped = sequences.conversations(encoder, rows, limit, prompt_weight)
        return self._means(self.learner.step("policy", units, "logprobs", losses.supervised, losses.tokens)), skipped

    def step_pairs(self, rows: Sequence[PreferencePair], config: Reward) -> tuple[dict[str, float], list[str]]:
        """One Bradley-Terry step on this rank's pairs: metrics over all ranks, and rows this rank left out."""
        units, skipped = self._preferences(rows, config)
        return self._means(
            self.learner.step("reward", units, "score", losses.preference(config), losses.pairs)
        ), skipped

    def score_pairs(self, rows: Sequence[PreferencePair], config: Reward) -> tuple[dict[str, np.ndarray], list[str]]:
        """{pair_id: float64 [2, K]}, the scores of `chosen` and `rejected` by dimension, and why any pair has none."""
        units, skipped = self._preferences(rows, config)
        scores = np.asarray(
            self.learner.infer("reward", [item for unit in units for item in unit], "score"), np.float64
        )
        shaped = scores.reshape(len(units), 2, len(config.dimensions))
        return {unit[0].name: pair for unit, pair in zip(units, shaped, strict=True)}, skipped

    def _preferences(self, rows: Sequence[PreferencePair], config: Reward) -> tuple[list[Unit], list[str]]:
        encoder, prompt = self.learner.encoder("reward"), RewardPrompt.of(config)
        return sequences.preferences(encoder, prompt, rows, self.spec.max_tokens, config.dimensions)

    def train_ppo(
        self, samples: Sequence[Sample], scores: Sequence[float], config: Ppo, seed: int
    ) -> tuple[dict[str, float], list[dict]]:
        """One PPO iteration on this rank's samples; metrics over all ranks, and a report per sample."""
        metrics, report = train_on(self.learner, self.ppo_state, samples, scores, config, seed)
        gathered = self.learner.gather(metrics)
        return means(gathered) | critic_report(gathered), report

    def probe(self, role: str, probes: Sequence[Probe], hypothesis: str | None = None) -> list[Probed]:
        """Log-probs of fixed responses: see `learners/parity.py`."""
        return parity.probe(self.learner, role, probes, hypothesis)

    def logprobs(self, role: str, rows: Sequence[tuple[str, str, np.ndarray]]) -> list[np.ndarray]:
        """Log-probs of given responses: rows of (video, question, response ids)."""
        encoder = self.learner.encoder(role)
        items = [encoder.prompt_and_response(question, ids, encoder.video(video)) for video, question, ids in rows]
        return self.learner.infer(role, items, "logprobs")

    def publish(self, role: str, version: int, bucket_bytes: int) -> tuple[Manifest, list[ray.ObjectRef]] | None:
        """Rank 0: manifest and buckets of the role's newest weights, under the engine's names."""
        target = self.learner.roles[role]
        weights = published_weights(target)
        if self.rank != 0:
            for _ in weights:  # the gathers are collective
                pass
            return None
        kind, lora = ("adapter", adapter_config(target)) if target.adapter else ("full", None)
        base = fingerprint(target.spec.base)
        return pack(weights, bucket_bytes, version=version, kind=kind, lora=lora, base=base, put=ray.put)

    def open_transfer(
        self, role: str, receivers: Receivers, address: tuple[str, int], bucket_bytes: int
    ) -> Delivery | None:
        """Open a transport for the role's full weights, all ends meeting at `address`; None, or why nobody came."""
        from learners.transfer import Sender  # vLLM, which no other way of publishing needs here

        self._close_sender()
        try:
            self.sender = Sender(self.learner.roles[role], receivers, self.rank, address, bucket_bytes)
        except ContractError as error:
            return Delivery(None, {}, dict.fromkeys(receivers.actors, error.found))

    def transfer(self, version: int) -> Delivery:
        """Send the newest weights over the open transport, which a failure closes. Collective."""
        try:
            return self.sender.send(version)
        except ContractError as error:
            failed = dict.fromkeys(self.sender.receivers.actors, error.found)
            self._close_sender()
            return Delivery(None, {}, failed)

    def _close_sender(self) -> None:
        if self.sender is not None:
            self.sender.close()
            self.sender = None

    def save(self, staging: Staging) -> dict:
        """Write every trained role into a checkpoint in the making; returns the scalar state."""
        with staging.writer() if self.rank == 0 else nullcontext() as folder:
            for role in self.learner.roles.values():
                if role.engine is not None:
                    save_role(role, folder)
        return {"ppo": self.ppo_state.state_dict()} if self.ppo_state else {}

    def load(self, checkpoints: Checkpoints, ref: CheckpointRef, state: dict) -> None:
        """The inverse of `save`, also on another number of ranks."""
        folder = checkpoints.load(ref)
        for role in self.learner.roles.values():
            if role.engine is not None:
                load_role(role, folder)
        if self.ppo_state:
            self.ppo_state.load_state_dict(state["ppo"])

    def export(self, role: str, target: Location, merge: bool, card: dict[str, str]) -> None:
        """Write a role's export to the storage; `card`: further files by name. An older export stays until it is complete."""
        with writing(target, "the export"), replacing(target) if self.rank == 0 else nullcontext() as folder:
            export_role(self.learner, role, folder, merge)
            if folder is not None:
                if (folder / SETTINGS).is_file() or card:  # an adapter or a reward model: it may be moved with its base
                    card = {RECORD: record_text(self.learner.roles[role].spec.base, target), **card}
                for name, text in card.items():
                    (folder / name).write_text(text)

    def memory(self) -> dict[str, float]:
        """Peak GPU bytes of this rank, where it has a GPU."""
        return {"gpu_bytes": float(torch.cuda.max_memory_allocated())} if torch.cuda.is_available() else {}

    def _means(self, metrics: Metrics) -> dict[str, float]:
        return means(self.learner.gather(metrics))


def _device(choice: Literal["auto", "cpu", "cuda"]) -> torch.device:
    use_cuda = choice == "cuda" or (choice == "auto" and torch.cuda.is_available())
    return torch.device("cuda", 0) if use_cuda else torch.device("cpu")
