"""The experience of PPO iterations: prompts are submitted, answered and scored, and what comes back is accounted for."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from actors.reward_pool import ScoringBatch
from actors.rollout import Answers, Failure
from cluster.ledger import Ledger
from rlaif.config.schema import Config
from rlaif.errors import ContractError, RlaifError, named
from rlaif.objectives.rewards import shaped_score, trainable
from rlaif.records import Experience, Key, Masked, Outcome, Prompt, RewardInput, Sample
from rlaif.seeds import derive
from rlaif.stages.run.run import Run
from rlaif.stages.train.deck import Deck
from rlaif.stages.train.prompts import leave_out
from rlaif.stages.train.workers import Workers


@dataclass
class PendingBatch:
    """An iteration's samples while they arrive."""

    samples: list[Sample] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    """Prompts that could not be answered."""
    scoring: list[ScoringBatch] = field(default_factory=list)
    """Batches that the reward actors score."""
    times: dict[str, float] = field(default_factory=dict)
    """Seconds since the epoch at which the rollout of this batch began and ended."""

    def add(self, answers: Answers, scoring: ScoringBatch) -> None:
        """Add one part of the answers; `scoring` is the pending request for its rewards."""
        self.samples += answers.samples
        self.failures += answers.failures
        self.scoring.append(scoring)
        self.times["rollout_began"] = min(self.times.get("rollout_began", answers.began), answers.began)
        self.times["rollout_ended"] = max(self.times.get("rollout_ended", answers.ended), answers.ended)


@dataclass
class ScoredBatch:
    """Everything that is known about one iteration's samples."""

    iteration: int
    samples: list[Sample]
    """Sorted by key."""
    outcomes: dict[Key, Outcome]
    failures: list[Failure]
    """Prompts that could not be answered."""
    reports: dict[Key, dict] = field(default_factory=dict)
    """KL and mean advantage of each trained sample; empty before the update."""
    times: dict[str, float] = field(default_factory=dict)
    """Seconds since the epoch at which phases began and ended."""

    @property
    def trained(self) -> list[Sample]:
        """The samples that have a reward."""
        return [sample for sample in self.samples if not isinstance(self.outcomes[sample.key], Masked)]

    def experience(self) -> Experience:
        """Return what the learners train on."""
        samples = self.trained
        scores = [self.outcomes[sample.key].value for sample in samples]
        return Experience(tuple(samples), tuple(scores))

    def rows(self) -> Iterator[dict]:
        """Yield the rows of `samples/<iteration>.jsonl`: one per sample, masked ones included, and one per failed prompt."""
        for sample in self.samples:
            yield _sample_row(sample, self.outcomes[sample.key], self.reports.get(sample.key, {}))
        for failure in self.failures:
            yield {"prompt_id": failure.prompt_id, "reward": {"masked": failure.reason}}


class ExperienceMaker:
    """Turns prompts into scored samples, one batch per iteration.

    `submit` requests an iteration's samples, `collect` waits for them, and `drain` passes on what has arrived meanwhile.
    The maker owns the pending batches and the ledger: every requested sample is trained or masked exactly once.
    """

    def __init__(self, config: Config, run: Run, workers: Workers, deck: Deck, ledger: Ledger, first: int):
        """Start with nothing pending.

        Args:
            ledger: as the checkpoint holds it that the run continues from.
            first: the iteration to submit next.
        """
        self.config = config
        self.run = run
        self.workers = workers
        self.deck = deck
        self.ledger = ledger
        self.next_iteration = first
        self._pending: dict[int, PendingBatch] = {}
        self._reissued = 0
        """Reissued prompts that the ledger has counted."""
        self._reward_busy_s = 0.0
        """Seconds of scoring of the reward actors, up to the last iteration."""

    def submit(self, iteration: int) -> None:
        """Request an iteration's samples, from the weights published last."""
        ppo = self.config.ppo
        self.workers.weight_sync.wait()
        prompts = self.deck.of(iteration)
        self.ledger.issue(iteration, self._keys(prompts))
        self.workers.frames.prefetch(prompt.video for prompt in self.deck.of(iteration + 1))
        seed = derive(self.config.seed, "rollout", iteration)
        self.workers.rollouts.submit(iteration, prompts, ppo.samples_per_prompt, seed, ppo.sampling)
        self._pending[iteration] = PendingBatch()
        self.next_iteration = iteration + 1

    def drain(self) -> None:
        """Pass answers that have arrived to the reward actors, without waiting."""
        for iteration, pending in self._pending.items():
            for answers in self.workers.rollouts.ready(iteration):
                self._score(pending, answers)

    def collect(self, iteration: int) -> ScoredBatch:
        """Wait for a submitted iteration's samples and rewards; each part is scored as soon as it arrives.

        Raises:
            RlaifError: more than `ppo.max_reward_failures` of the samples have no reward.
            DataError: more than `ppo.max_prompt_failures` of the run's prompts cannot be answered.
            ContractError: a sample is older than `ppo.max_staleness` allows.
        """
        waited_from = time.time()
        pending = self._pending[iteration]
        self._receive(iteration, pending)
        self._replace_failed(iteration, pending)
        del self._pending[iteration]
        outcomes = self.workers.rewards.collect(pending.scoring)
        times = {"waited_from": waited_from, **pending.times, "rewarded": time.time()}
        samples = sorted(pending.samples, key=lambda sample: sample.key)
        shaped = {sample.key: _shape(self.config, sample, outcomes[sample.key]) for sample in samples}
        batch = ScoredBatch(iteration, samples, shaped, pending.failures, times=times)
        _check_versions(batch, self.config.ppo.max_staleness)
        self._account(batch)
        _check_rewards(self.config, batch)
        return batch

    def settle(self, batch: ScoredBatch) -> None:
        """Record in the ledger that every sample with a reward has been trained on, and that the iteration is over."""
        for sample in batch.trained:
            self.ledger.move(batch.iteration, sample.key, "trained")
        self.ledger.settle(batch.iteration)

    def reward_seconds(self) -> float:
        """Return the reward actors' seconds of scoring since the last call."""
        before = self._reward_busy_s
        self._reward_busy_s = self.workers.rewards.busy_seconds()
        return self._reward_busy_s - before

    def _keys(self, prompts: Sequence[Prompt]) -> list[Key]:
        indices = range(self.config.ppo.samples_per_prompt)
        return [(prompt.prompt_id, index) for prompt, index in itertools.product(prompts, indices)]

    def _receive(self, batch_id: object, pending: PendingBatch) -> None:
        """Wait for all parts of a batch of the rollout actors."""
        for answers in self.workers.rollouts.results(batch_id, self.workers.deadline_s):
            self._score(pending, answers)

    def _score(self, pending: PendingBatch, answers: Answers) -> None:
        inputs = [RewardInput(sample.key, sample.prompt, sample.response) for sample in answers.samples]
        pending.add(answers, self.workers.rewards.score(inputs))

    def _replace_failed(self, iteration: int, pending: PendingBatch) -> None:
        """Submit other prompts in place of those that failed, until the iteration is full or no prompts are left."""
        ppo = self.config.ppo
        # The iterations up to the last pending one have been submitted with these prompts, and a resume submits the same.
        since = max(self._pending) + 1
        requested = {prompt.prompt_id for prompt in self.deck.of(iteration)}
        failures = list(pending.failures)
        for turn in itertools.count():
            if not failures:
                return
            leave_out(self.config, self.run, self.deck, failures, since)
            others = self.deck.substitutes(iteration, requested, len(failures))
            if not others:
                return
            requested.update(prompt.prompt_id for prompt in others)
            self.ledger.extend(iteration, self._keys(others))
            batch_id = ("instead", iteration, turn)
            seed = derive(self.config.seed, "rollout", iteration)
            self.workers.rollouts.submit(batch_id, others, ppo.samples_per_prompt, seed, ppo.sampling)
            before = len(pending.failures)
            self._receive(batch_id, pending)
            failures = pending.failures[before:]

    def _account(self, batch: ScoredBatch) -> None:
        """Move every requested sample to its next state: scored or masked."""
        iteration = batch.iteration
        for sample in batch.samples:
            self.ledger.move(iteration, sample.key, "generated")
            if isinstance(batch.outcomes[sample.key], Masked):
                self.ledger.mask(iteration, sample.key)
            else:
                self.ledger.move(iteration, sample.key, "rewarded")
        per_prompt = self.config.ppo.samples_per_prompt
        for failure in batch.failures:
            for index in range(per_prompt):
                self.ledger.mask(iteration, (failure.prompt_id, index))
        reissued = self.workers.rollouts.reissued
        self.ledger.reissue((reissued - self._reissued) * per_prompt)
        self._reissued = reissued


def _shape(config: Config, sample: Sample, outcome: Outcome) -> Outcome:
    """Return the outcome with the terms of `ppo.terms`; masked if it cannot be trained on."""
    if isinstance(outcome, Masked):
        return outcome
    ppo = config.ppo
    length = len(sample.response_ids)
    shaped = shaped_score(
        outcome.value, outcome.parts, sample.finish_reason, length, ppo.sampling.max_tokens, ppo.terms
    )
    return trainable(shaped, 1.0 if ppo.whiten_rewards else ppo.reward_scale)


def _check_versions(batch: ScoredBatch, max_staleness: int) -> None:
    for sample in batch.samples:
        if not 0 <= batch.iteration - sample.policy_version <= max_staleness:
            raise ContractError(
                f"samples of iteration {batch.iteration} from a policy at most {max_staleness} versions old",
                f"version {sample.policy_version} for {sample.key}",
                "Report this; or raise ppo.max_staleness.",
            )


def _check_rewards(config: Config, batch: ScoredBatch) -> None:
    total = len(batch.samples)
    trained = len(batch.trained)
    lost = total - trained
    share = config.ppo.max_reward_failures
    if lost <= share * total and trained >= config.cluster.learner.actors:
        return
    masked = _masked_names(batch)
    names = named([name for name, _ in masked])
    reason = masked[0][1] if masked else "fewer samples than learner ranks"
    raise RlaifError(
        f"at most {share:.0%} of samples without a reward",
        f"{lost} of {total} in iteration {batch.iteration + 1}: {names}; first reason: {reason}",
        "Mend what the reason names, or raise ppo.max_reward_failures.",
    )


def _masked_names(batch: ScoredBatch) -> list[tuple[str, str]]:
    """Return (name, reason) of every masked sample and of every failed prompt."""
    masked = []
    for (prompt_id, index), outcome in sorted(batch.outcomes.items()):
        if isinstance(outcome, Masked):
            masked.append((f"{prompt_id}/{index}", outcome.reason))
    for failure in batch.failures:
        masked.append((failure.prompt_id, failure.reason))
    return masked


def _sample_row(sample: Sample, outcome: Outcome, report: dict) -> dict:
    masked = isinstance(outcome, Masked)
    return {
        "prompt_id": sample.prompt.prompt_id,
        "sample_index": sample.sample_index,
        "video": sample.prompt.video,
        "question": sample.prompt.question,
        "response": sample.response,
        "policy_version": sample.policy_version,
        "finish_reason": sample.finish_reason,
        "reward": {"masked": outcome.reason} if masked else {"value": outcome.value, **outcome.parts},
        "kl": report.get("kl"),
        "advantage_mean": report.get("advantage_mean"),
    }
