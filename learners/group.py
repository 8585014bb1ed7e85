"""The learner group as the driver sees it: start the ranks, deal the work, gather the answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray

from cluster.checkpoint import CheckpointRef, Checkpoints
from cluster.env import actor_env
from cluster.publish import Manifest
from cluster.remote import ask
from cluster.staging import Staging
from cluster.transfer import Receivers, WeightReceipt
from learners.spec import LearnerSpec
from learners.worker import LearnerWorker
from rlaif.config.schema import Ppo, Reward
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import Conversation
from rlaif.io.storage import Location
from rlaif.models.packing import chunks, deal
from rlaif.records import Experience, Key, Probe, Probed

Calls = list[ray.ObjectRef]
"""One reference per rank, in their order."""

# vLLM's IPC transport refuses a tensor that is larger than its buffer
BUCKET_BYTES = 512 * 1024**2
"""Default size of the parts in which weights are sent."""

ResponseRow = tuple[str, str, np.ndarray]
"""(video, question, response ids)."""


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
        variables = actor_env(spec.cluster.learner.threads, device, spec.model.dtype)
        env = {"env_vars": variables}
        actor_class = ray.remote(LearnerWorker)
        self.ranks: list[Any] = []
        for rank, own_options in enumerate(options):
            actor = actor_class.options(runtime_env=env, **own_options)
            self.ranks.append(actor.remote(spec, rank, len(options)))
        self.timeout_s = spec.cluster.learner_timeout_s
        """How long one call may take."""
        self._joined: tuple | None = None
        """Role, backend and receivers of the transport that is open."""
        self._on_all("start", self._address(), make_frames, ppo, make_features)

    def step_conversations(self, rows: Sequence[Conversation], prompt_weight: float = 0.0) -> Calls:
        """Start one SFT step; every reference resolves to (metrics over all ranks, rows left out)."""
        lengths: list[int] = []
        for row in rows:
            texts = [text for _, text in row.messages]
            lengths.append(sum(map(len, texts)))
        return self._start("step_conversations", self._deal(rows, lengths), prompt_weight)

    def step_pairs(self, rows: Sequence[PreferencePair], config: Reward) -> Calls:
        """Start one reward-model step; every reference resolves to (metrics over all ranks, rows left out)."""
        lengths = [len(row.chosen) + len(row.rejected) for row in rows]
        return self._start("step_pairs", self._deal(rows, lengths), config)

    def score_pairs(self, rows: Sequence[PreferencePair], config: Reward) -> tuple[dict[str, np.ndarray], list[str]]:
        """Return {pair_id: float64 [2, K]}, scores of `chosen` and `rejected` by dimension, and why any pair has none."""
        scores: dict[str, np.ndarray] = {}
        skipped: list[str] = []
        calls = self._start("score_pairs", self._chunks(rows), config)
        for rank_scores, rank_skipped in self._ask(calls):
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
        calls = self._start("train_ppo", self._shares(experience), config, seed)
        answers = self._ask(calls, meanwhile)
        metrics, _ = answers[0]
        reports: dict[Key, dict] = {}
        for _, rank_reports in answers:
            for report in rank_reports:
                reports[report["key"]] = report
        return metrics, reports

    def _shares(self, experience: Experience) -> list[Experience]:
        """Return each rank's part of the experience."""
        # by key: what a rank gets must not depend on the order in which samples arrived
        samples = experience.samples
        order = sorted(range(len(samples)), key=lambda index: samples[index].key)
        lengths: list[int] = []
        for index in order:
            sample = samples[index]
            lengths.append(len(sample.prompt_ids) + len(sample.response_ids))
        shares: list[Experience] = []
        for hand in deal(lengths, len(self.ranks)):
            indices = [order[place] for place in hand]
            shares.append(experience.part(indices))
        return shares

    def logprobs(self, role: str, rows: Sequence[ResponseRow]) -> list[np.ndarray]:
        """Return the log-probs [T] of the rows' responses by a role's newest weights, in order."""
        calls = self._start("logprobs", self._chunks(rows), role)
        parts = self._ask(calls)
        return list(itertools.chain.from_iterable(parts))

    def probe(self, role: str, probes: Sequence[Probe], hypothesis: str | None = None) -> list[list[Probed]]:
        """Return what every rank computes for the same probes, by rank: see `learners/parity.py`."""
        return self._on_all("probe", role, probes, hypothesis)

    def publishable(self, role: str, version: int, bucket_bytes: int = BUCKET_BYTES) -> tuple[Manifest, Calls]:
        """Return the manifest and the bucket references of a role's newest weights."""
        published, *_ = self._on_all("publish", role, version, bucket_bytes)
        return published

    def transfer(
        self, role: str, version: int, receivers: Receivers, bucket_bytes: int = BUCKET_BYTES
    ) -> WeightReceipt:
        """Send a role's newest full weights over a transport between GPUs, and wait until they are in place.

        The transport stays open for the next version, while its receivers are the same and it has not failed.
        """
        members = (role, receivers.backend, tuple(receivers.actors))
        if self._joined != members:
            self._joined = None
            address = self._address()
            failure, *_ = self._on_all("open_transfer", role, receivers, address, bucket_bytes)
            if failure is not None:
                return failure
        delivery, *_ = self._on_all("transfer", version)
        self._joined = members if delivery.receipts else None
        return delivery

    def save(self, staging: Staging) -> dict:
        """Write all trained roles into an unfinished checkpoint; return the scalar state for its meta data."""
        state, *_ = self._on_all("save", staging)
        return state

    def load(self, checkpoints: Checkpoints, ref: CheckpointRef) -> None:
        """Continue from a checkpoint; its meta data hold the scalar state under `learner`."""
        self._on_all("load", checkpoints, ref, ref.meta["learner"])

    def export(self, role: str, target: Location, merge: bool = False, card: dict[str, str] | None = None) -> str:
        """Write a role to the storage as transformers, PEFT and vLLM load it; return its path or URI."""
        self._on_all("export", role, target, merge, card or {})
        return str(target)

    def stop(self) -> None:
        """Kill the ranks."""
        for rank in self.ranks:
            ray.kill(rank)

    def _ask(self, refs: Any, meanwhile: Callable[[], None] | None = None) -> Any:
        return ask(refs, self.timeout_s, "the learner ranks", meanwhile)

    def _address(self) -> tuple[str, int]:
        """Return a new address at which ranks, or ranks and receivers, meet: another one for every group that forms."""
        first = self.ranks[0]
        return self._ask(first.address.remote())

    def _on_all(self, method: str, *arguments: Any) -> list:
        """Call a method of `LearnerWorker` on every rank with the same arguments; return all answers, rank 0's first."""
        calls: Calls = []
        for rank in self.ranks:
            calls.append(getattr(rank, method).remote(*arguments))
        return self._ask(calls)

    def _start(self, method: str, parts: Sequence, *arguments: Any) -> Calls:
        """Call a method of `LearnerWorker` on every rank, with the rank's part and the arguments."""
        calls: Calls = []
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
