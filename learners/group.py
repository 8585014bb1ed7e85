"""The learner group as the driver sees it: start the ranks, deal the work, gather the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray

from cluster.checkpoint import CheckpointRef, Checkpoints
from cluster.env import actor_env
from cluster.publish import Manifest
from cluster.remote import ask
from cluster.staging import Staging
from cluster.transfer import Delivery, Receivers
from learners.spec import LearnerSpec
from learners.worker import LearnerWorker
from rlaif.config.schema import Ppo, Reward
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import Conversation
from rlaif.io.storage import Location
from rlaif.models.packing import chunks, deal
from rlaif.records import Probe, Probed, Sample


class LearnerGroup:
    """All ranks together. A dead rank ends the run: its collectives can't finish; `--resume` starts a new group."""

    def __init__(
        self,
        spec: LearnerSpec,
        make_frames: Callable,
        options: Sequence[dict],
        device: str,
        ppo: Ppo | None = None,
        make_features: Callable | None = None,
    ):
        """`options`: Ray actor options of each rank (placement, CPUs, GPUs)."""
        env = {"env_vars": actor_env(spec.cluster.learner.threads, device, spec.model.dtype)}
        world = len(options)
        actor = ray.remote(LearnerWorker)
        self.ranks = [
            actor.options(runtime_env=env, **options[rank]).remote(spec, rank, world) for rank in range(world)
        ]
        self.timeout_s = spec.cluster.learner_timeout_s
        """How long one call may take."""
        self._joined: tuple | None = None
        """Role, backend and receivers of the transport that is open."""
        address = self._ask(self.ranks[0].address.remote())
        self._ask([rank.start.remote(address, make_frames, ppo, make_features) for rank in self.ranks])

    def step_conversations(self, rows: Sequence[Conversation], prompt_weight: float = 0.0) -> list[ray.ObjectRef]:
        """One SFT step; every reference resolves to (metrics over all ranks, rows left out)."""
        lengths = [sum(len(text) for _, text in row.messages) for row in rows]
        return [
            rank.step_conversations.remote(part, prompt_weight)
            for rank, part in zip(self.ranks, self._deal(rows, lengths), strict=True)
        ]

    def step_pairs(self, rows: Sequence[PreferencePair], config: Reward) -> list[ray.ObjectRef]:
        """One reward-model step; every reference resolves to (metrics over all ranks, rows left out)."""
        lengths = [len(row.chosen) + len(row.rejected) for row in rows]
        return [
            rank.step_pairs.remote(part, config)
            for rank, part in zip(self.ranks, self._deal(rows, lengths), strict=True)
        ]

    def score_pairs(self, rows: Sequence[PreferencePair], config: Reward) -> tuple[dict[str, np.ndarray], list[str]]:
        """{pair_id: float64 [2, K]}, the scores of `chosen` and `rejected` by dimension, and why any pair has none."""
        parts = chunks(rows, len(self.ranks))
        found = self._ask([rank.score_pairs.remote(part, config) for rank, part in zip(self.ranks, parts, strict=True)])
        scores = {pair_id: pair for part, _ in found for pair_id, pair in part.items()}
        return scores, [reason for _, skipped in found for reason in skipped]

    def train_ppo(
        self,
        samples: Sequence[Sample],
        scores: Sequence[float],
        config: Ppo,
        seed: int,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> tuple[dict[str, float], dict]:
        """One PPO iteration; metrics, and {key: report} of every sample. `meanwhile` is called now and then."""
        order = sorted(range(len(samples)), key=lambda i: samples[i].key)
        lengths = [len(samples[i].prompt_ids) + len(samples[i].response_ids) for i in order]
        shares = [[order[i] for i in hand] for hand in deal(lengths, len(self.ranks))]
        calls = [
            rank.train_ppo.remote([samples[i] for i in share], [scores[i] for i in share], config, seed)
            for rank, share in zip(self.ranks, shares, strict=True)
        ]
        answers = self._ask(calls, meanwhile)
        return answers[0][0], {row["key"]: row for _, report in answers for row in report}

    def logprobs(self, role: str, rows: Sequence[tuple]) -> list:
        """Log-probs of given responses: rows of (video, question, response ids), in order."""
        parts = chunks(rows, len(self.ranks))
        return sum(
            self._ask([rank.logprobs.remote(role, part) for rank, part in zip(self.ranks, parts, strict=True)]), []
        )

    def probe(self, role: str, probes: Sequence[Probe], hypothesis: str | None = None) -> list[list[Probed]]:
        """What every rank makes of the same probes, by rank: see `learners/parity.py`."""
        return self._ask([rank.probe.remote(role, probes, hypothesis) for rank in self.ranks])

    def publishable(
        self, role: str, version: int, bucket_bytes: int = 512 * 1024**2
    ) -> tuple[Manifest, list[ray.ObjectRef]]:
        """Manifest and bucket references of a role's newest weights."""
        return self._ask([rank.publish.remote(role, version, bucket_bytes) for rank in self.ranks])[0]

    def transfer(self, role: str, version: int, receivers: Receivers, bucket_bytes: int = 512 * 1024**2) -> Delivery:
        """Send a role's newest full weights over a transport between GPUs, and wait until they are in place.

        The transport stays open for the next version, while its receivers are the same and it has not failed.
        """
        members = (role, receivers.backend, tuple(receivers.actors))
        if self._joined != members:
            self._joined, address = None, self._ask(self.ranks[0].address.remote())
            opened = self._ask(
                [rank.open_transfer.remote(role, receivers, address, bucket_bytes) for rank in self.ranks]
            )
            if opened[0] is not None:
                return opened[0]
        delivery = self._ask([rank.transfer.remote(version) for rank in self.ranks])[0]
        self._joined = members if delivery.receipts else None
        return delivery

    def save(self, staging: Staging) -> dict:
        """Write all trained roles into a checkpoint in the making; returns the scalar state for its meta data."""
        return self._ask([rank.save.remote(staging) for rank in self.ranks])[0]

    def load(self, checkpoints: Checkpoints, ref: CheckpointRef) -> None:
        """Continue from a checkpoint; its meta data hold the scalar state under `learner`."""
        self._ask([rank.load.remote(checkpoints, ref, ref.meta["learner"]) for rank in self.ranks])

    def export(self, role: str, target: Location, merge: bool = False, card: dict[str, str] | None = None) -> str:
        """Write a role to the storage as transformers, PEFT and vLLM load it; returns its path or URI."""
        self._ask([rank.export.remote(role, target, merge, card or {}) for rank in self.ranks])
        return str(target)

    def stop(self) -> None:
        for rank in self.ranks:
            ray.kill(rank)

    def _ask(self, refs: Any, meanwhile: Callable[[], None] | None = None) -> Any:
        return ask(refs, self.timeout_s, "the learner ranks", meanwhile)

    def _deal(self, rows: Sequence, lengths: Sequence[int]) -> list[list]:
        return [[rows[i] for i in hand] for hand in deal(lengths, len(self.ranks))]
