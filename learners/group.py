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
from rlaif.data import Conversation, Pair
from rlaif.models.packing import chunks, deal
from rlaif.records import Experience, Key, Probe, Probed
from rlaif.storage import Location

BUCKET_BYTES = 512 * 1024**2
"""Default size of the parts in which weights are sent."""


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
        """Start one rank for each entry of `options`: Ray actor options (placement, CPUs, GPUs)."""
        env = {"env_vars": actor_env(spec.cluster.learner.threads, device, spec.model.dtype)}
        actor = ray.remote(LearnerWorker)
        self.ranks: list[Any] = []
        for rank, own in enumerate(options):
            self.ranks.append(actor.options(runtime_env=env, **own).remote(spec, rank, len(options)))
        self.timeout_s = spec.cluster.learner_timeout_s
        """How long one call may take."""
        self._joined: tuple | None = None
        """Role, backend and receivers of the transport that is open."""
        address = self._ask(self.ranks[0].address.remote())
        self._ask([rank.start.remote(address, make_frames, ppo, make_features) for rank in self.ranks])

    def step_conversations(self, rows: Sequence[Conversation], prompt_weight: float = 0.0) -> list[ray.ObjectRef]:
        """Start one SFT step; every reference resolves to (metrics over all ranks, rows left out)."""
        lengths: list[int] = []
        for row in rows:
            lengths.append(sum(len(text) for _, text in row.messages))
        return self._start("step_conversations", self._deal(rows, lengths), prompt_weight)

    def step_pairs(self, rows: Sequence[Pair], config: Reward) -> list[ray.ObjectRef]:
        """Start one reward-model step; every reference resolves to (metrics over all ranks, rows left out)."""
        lengths = [len(row.chosen) + len(row.rejected) for row in rows]
        return self._start("step_pairs", self._deal(rows, lengths), config)

    def score_pairs(self, rows: Sequence[Pair], config: Reward) -> tuple[dict[str, np.ndarray], list[str]]:
        """Return {pair_id: float64 [2, K]}, scores of `chosen` and `rejected` by dimension, and why any pair has none."""
        scores: dict[str, np.ndarray] = {}
        skipped: list[str] = []
        for rank_scores, rank_skipped in self._ask(self._start("score_pairs", self._chunks(rows), config)):
            scores |= rank_scores
            skipped += rank_skipped
        return scores, skipped

    def train_ppo(
        self, experience: Experience, config: Ppo, seed: int, meanwhile: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, float], dict[Key, dict]]:
        """Run one PPO iteration; `meanwhile` is called now and then.

        Returns metrics over all ranks and, by key, the report of every sample: `kl` (k1, nats, summed over the response)
        and `advantage_mean`.
        """
        answers = self._ask(self._start("train_ppo", self._shares(experience), config, seed), meanwhile)
        metrics, _ = answers[0]
        reports: dict[Key, dict] = {}
        for _, rank_reports in answers:
            for report in rank_reports:
                reports[report["key"]] = report
        return metrics, reports

    def _shares(self, experience: Experience) -> list[Experience]:
        """Return each rank's part of the experience."""
        # by key: what a rank gets must not depend on the order in which samples arrived
        order = sorted(range(len(experience)), key=lambda index: experience.samples[index].key)
        lengths: list[int] = []
        for index in order:
            sample = experience.samples[index]
            lengths.append(len(sample.prompt_ids) + len(sample.response_ids))
        shares: list[Experience] = []
        for hand in deal(lengths, len(self.ranks)):
            shares.append(experience.part([order[place] for place in hand]))
        return shares

    def logprobs(self, role: str, rows: Sequence[tuple[str, str, np.ndarray]]) -> list[np.ndarray]:
        """Return the log-probs [T] of given responses: rows of (video, question, response ids), in order."""
        calls = [rank.logprobs.remote(role, part) for rank, part in zip(self.ranks, self._chunks(rows), strict=True)]
        logprobs: list[np.ndarray] = []
        for part in self._ask(calls):
            logprobs += part
        return logprobs

    def probe(self, role: str, probes: Sequence[Probe], hypothesis: str | None = None) -> list[list[Probed]]:
        """Return what every rank computes for the same probes, by rank: see `learners/parity.py`."""
        return self._ask([rank.probe.remote(role, probes, hypothesis) for rank in self.ranks])

    def publishable(
        self, role: str, version: int, bucket_bytes: int = BUCKET_BYTES
    ) -> tuple[Manifest, list[ray.ObjectRef]]:
        """Return the manifest and the bucket references of a role's newest weights."""
        return self._ask([rank.publish.remote(role, version, bucket_bytes) for rank in self.ranks])[0]

    def transfer(self, role: str, version: int, receivers: Receivers, bucket_bytes: int = BUCKET_BYTES) -> Delivery:
        """Send a role's newest full weights over a transport between GPUs, and wait until they are in place.

        The transport stays open for the next version, while its receivers are the same and it has not failed.
        """
        members = (role, receivers.backend, tuple(receivers.actors))
        if self._joined != members:
            self._joined = None
            address = self._ask(self.ranks[0].address.remote())
            opening = [rank.open_transfer.remote(role, receivers, address, bucket_bytes) for rank in self.ranks]
            failure = self._ask(opening)[0]
            if failure is not None:
                return failure
        delivery = self._ask([rank.transfer.remote(version) for rank in self.ranks])[0]
        self._joined = members if delivery.receipts else None
        return delivery

    def save(self, staging: Staging) -> dict:
        """Write all trained roles into an unfinished checkpoint; return the scalar state for its meta data."""
        return self._ask([rank.save.remote(staging) for rank in self.ranks])[0]

    def load(self, checkpoints: Checkpoints, ref: CheckpointRef) -> None:
        """Continue from a checkpoint; its meta data hold the scalar state under `learner`."""
        self._ask([rank.load.remote(checkpoints, ref, ref.meta["learner"]) for rank in self.ranks])

    def export(self, role: str, target: Location, merge: bool = False, card: dict[str, str] | None = None) -> str:
        """Write a role to the storage as transformers, PEFT and vLLM load it; return its path or URI."""
        self._ask([rank.export.remote(role, target, merge, card or {}) for rank in self.ranks])
        return str(target)

    def stop(self) -> None:
        """Kill the ranks."""
        for rank in self.ranks:
            ray.kill(rank)

    def _ask(self, refs: Any, meanwhile: Callable[[], None] | None = None) -> Any:
        return ask(refs, self.timeout_s, "the learner ranks", meanwhile)

    def _start(self, method: str, parts: Sequence, *arguments: Any) -> list[ray.ObjectRef]:
        """Call a method of `LearnerWorker` on every rank, with the rank's part and the arguments."""
        calls: list[ray.ObjectRef] = []
        for rank, part in zip(self.ranks, parts, strict=True):
            calls.append(getattr(rank, method).remote(part, *arguments))
        return calls

    def _chunks(self, rows: Sequence) -> list[list]:
        """Return consecutive rows for each rank: their answers, one after the other, are in the rows' order."""
        return chunks(rows, len(self.ranks))

    def _deal(self, rows: Sequence, lengths: Sequence[int]) -> list[list]:
        """Return rows for each rank: equal counts, and similar work by `lengths`."""
        hands = deal(lengths, len(self.ranks))
        return [list(map(rows.__getitem__, hand)) for hand in hands]
