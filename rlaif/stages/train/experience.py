"""One PPO iteration's samples: asked for, answered, scored, learned from, recorded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from actors.rollout import Failure
from cluster.ledger import Ledger
from rlaif.config.schema import Config
from rlaif.errors import ContractError, RlaifError, named
from rlaif.objectives.rewards import shaped_score, trainable
from rlaif.records import Key, Masked, Outcome, Sample
from rlaif.seeds import derive
from rlaif.stages.run.run import Run
from rlaif.stages.train.pending import Arriving
from rlaif.stages.train.replacing import replace_failed
from rlaif.stages.train.workers import Roles


@dataclass
class Round:
    """Everything one iteration knows about its samples."""

    iteration: int
    samples: list[Sample]
    """Sorted by key."""
    outcomes: dict[Key, Outcome]
    failures: list[Failure]
    """Prompts that could not be answered."""
    reports: dict[Key, dict] = field(default_factory=dict)
    """KL and mean advantage of each trained sample."""
    times: dict[str, float] = field(default_factory=dict)
    """Wall-clock seconds since the epoch at which phases began and ended."""

    @property
    def trained(self) -> list[Sample]:
        return [sample for sample in self.samples if not isinstance(self.outcomes[sample.key], Masked)]


def ask_for(config: Config, roles: Roles, iteration: int) -> None:
    """Ask the rollout actors for iteration `iteration`'s samples, by the weights published last."""
    ppo = config.ppo
    roles.publisher.wait()
    chosen = roles.deck.of(iteration)
    roles.ledger.issue(iteration, [(p.prompt_id, index) for p in chosen for index in range(ppo.samples_per_prompt)])
    roles.frames.prefetch(prompt.video for prompt in roles.deck.of(iteration + 1))
    roles.rollouts.submit(
        iteration, chosen, ppo.samples_per_prompt, derive(config.seed, "rollout", iteration), ppo.sampling
    )
    roles.arriving[iteration] = Arriving()


def take_ready(roles: Roles) -> None:
    """Send what has been answered in the meantime to the reward actors; does not wait."""
    for iteration, arriving in roles.arriving.items():
        for answers in roles.rollouts.ready(iteration):
            arriving.take(roles, answers)


def collect(config: Config, roles: Roles, iteration: int) -> Round:
    """Wait for the samples; each part goes to the reward actors as soon as it arrives.

    Raises RlaifError when more than `ppo.max_reward_failures` of the samples have no reward, ContractError for a
    sample that is older than `ppo.max_staleness` allows.
    """
    waited_from, arriving = time.time(), roles.arriving[iteration]
    for answers in roles.rollouts.results(iteration, roles.deadline_s):
        arriving.take(roles, answers)
    replace_failed(config, roles, iteration, arriving)
    del roles.arriving[iteration]
    outcomes = roles.rewards.collect(arriving.scoring)
    times = {"waited_from": waited_from, **arriving.times, "rewarded": time.time()}
    samples = sorted(arriving.samples, key=lambda sample: sample.key)
    shaped = {sample.key: _shape(config, sample, outcomes[sample.key]) for sample in samples}
    round_ = Round(iteration, samples, shaped, arriving.failures, times=times)
    _check_versions(round_, config.ppo.max_staleness)
    _account(roles.ledger, round_, config.ppo.samples_per_prompt)
    roles.ledger.reissue((roles.rollouts.reissued - roles.reissued) * config.ppo.samples_per_prompt)
    roles.reissued = roles.rollouts.reissued
    _check_failures(config, round_)
    return round_


def learn(config: Config, roles: Roles, round_: Round) -> dict[str, float]:
    """The update; returns every metric of the iteration so far."""
    trained = round_.trained
    if config.rollout.sleep_level:
        roles.rollouts.sleep(config.rollout.sleep_level, roles.deadline_s)
    round_.times["update_began"] = time.time()
    scores = [round_.outcomes[sample.key].value for sample in trained]
    meanwhile = partial(take_ready, roles)
    metrics, round_.reports = roles.learners.train_ppo(trained, scores, config.ppo, config.seed, meanwhile)
    round_.times["update_ended"] = time.time()
    for sample in trained:
        roles.ledger.move(round_.iteration, sample.key, "trained")
    roles.ledger.settle(round_.iteration)
    busy, roles.reward_busy_s = roles.reward_busy_s, roles.rewards.busy_seconds()
    metrics["time/reward_busy"] = roles.reward_busy_s - busy
    metrics["samples/prompts_left_out"] = len(roles.deck.left_out)
    return metrics | sample_metrics(round_, config.ppo.kl.limit) | engine_metrics(roles, round_)


def record(run: Run, round_: Round) -> None:
    """samples/<iteration>.jsonl: one row per sample, failed ones included."""
    rows = [_row(round_, sample) for sample in round_.samples]
    rows += [{"prompt_id": failure.prompt_id, "reward": {"masked": failure.reason}} for failure in round_.failures]
    run.directory.write_samples(round_.iteration + 1, rows)


def sample_metrics(round_: Round, kl_limit: float) -> dict[str, float]:
    """Means over the iteration's samples."""
    trained = round_.trained
    scores = [round_.outcomes[s.key] for s in trained]
    kl = float(np.mean([round_.reports[s.key]["kl"] for s in trained]))
    parts = sorted({name for outcome in scores for name in outcome.parts})
    return {
        "reward/mean": float(np.mean([outcome.value for outcome in scores])),
        "reward/std": float(np.std([outcome.value for outcome in scores])),
        **{
            f"reward/part_{name}": float(np.mean([outcome.parts.get(name, 0.0) for outcome in scores]))
            for name in parts
        },
        "kl/response": kl,
        "kl/over_limit": float(not kl <= kl_limit),  # NaN is not within it
        "response/length": float(np.mean([len(s.response_ids) for s in round_.samples])),
        "response/stopped": float(np.mean([s.finish_reason == "stop" for s in round_.samples])),
        "samples/trained": len(trained),
        "samples/masked": len(round_.samples) - len(trained),
        "samples/failed_prompts": len(round_.failures),
        "samples/staleness_max": max(round_.iteration - s.policy_version for s in round_.samples),
    }


def engine_metrics(roles: Roles, round_: Round) -> dict[str, float]:
    """Speed and health of what answered, the stores' counters, and where the time went."""
    tokens = sum(len(sample.response_ids) for sample in round_.samples)
    times = dict(_durations(round_.times))
    return {
        **times,
        **roles.ledger.metrics(),
        "time/checkpoint": roles.checkpoint_s,
        "publish/apply_seconds": roles.publisher.apply_s,
        "rollout/tokens_per_s": tokens / max(times["time/rollout"], 1e-9),
        "rollout/actors": len(roles.rollouts.actors),
        "rollout/dead_actors": len(roles.rollouts.dead),
        "rollout/reissued_prompts": roles.rollouts.reissued,
        **roles.run.topology.frame_counters(),
        **roles.run.topology.feature_counters(),
    }


def _shape(config: Config, sample: Sample, outcome: Outcome) -> Outcome:
    if isinstance(outcome, Masked):
        return outcome
    ppo = config.ppo
    length = len(sample.response_ids)
    shaped = shaped_score(
        outcome.value, outcome.parts, sample.finish_reason, length, ppo.sampling.max_tokens, ppo.terms
    )
    return trainable(shaped, 1.0 if ppo.whiten_rewards else ppo.reward_scale)


def _account(ledger: Ledger, round_: Round, samples_per_prompt: int) -> None:
    """Every sample that was asked for is scored or masked now."""
    for sample in round_.samples:
        ledger.move(round_.iteration, sample.key, "generated")
        if isinstance(round_.outcomes[sample.key], Masked):
            ledger.mask(round_.iteration, sample.key)
        else:
            ledger.move(round_.iteration, sample.key, "rewarded")
    for failure in round_.failures:
        for index in range(samples_per_prompt):
            ledger.mask(round_.iteration, (failure.prompt_id, index))


def _check_versions(round_: Round, max_staleness: int) -> None:
    for sample in round_.samples:
        if not 0 <= round_.iteration - sample.policy_version <= max_staleness:
            raise ContractError(
                f"samples of iteration {round_.iteration} from a policy at most {max_staleness} versions old",
                f"version {sample.policy_version} for {sample.key}",
                "Report this; or raise ppo.max_staleness",
            )


def _check_failures(config: Config, round_: Round) -> None:
    wanted = len(round_.samples)
    lost = wanted - len(round_.trained)
    if lost <= config.ppo.max_reward_failures * wanted and len(round_.trained) >= config.cluster.learner.actors:
        return
    masked = [(f"{key[0]}/{key[1]}", o.reason) for key, o in sorted(round_.outcomes.items()) if isinstance(o, Masked)]
    masked += [(failure.prompt_id, failure.reason) for failure in round_.failures]
    raise RlaifError(
        f"at most {config.ppo.max_reward_failures:.0%} of samples without a reward",
        f"{lost} of {wanted} in iteration {round_.iteration + 1}: {named([name for name, _ in masked])}; "
        f"first reason: {masked[0][1] if masked else 'fewer samples than learner ranks'}",
        "Mend what the reason names, or raise ppo.max_reward_failures",
    )


def _row(round_: Round, sample: Sample) -> dict:
    outcome, report = round_.outcomes[sample.key], round_.reports.get(sample.key, {})
    return {
        "prompt_id": sample.prompt.prompt_id,
        "sample_index": sample.sample_index,
        "video": sample.prompt.video,
        "question": sample.prompt.question,
        "response": sample.response,
        "policy_version": sample.policy_version,
        "finish_reason": sample.finish_reason,
        "reward": {"masked": outcome.reason}
        if isinstance(outcome, Masked)
        else {"value": outcome.value, **outcome.parts},
        "kl": report.get("kl"),
        "advantage_mean": report.get("advantage_mean"),
    }


def _durations(times: dict[str, float]) -> Iterator[tuple[str, float]]:
    """Seconds the driver spent in each phase, and the timeline itself."""
    yield "time/wait_for_samples", times["rewarded"] - times["waited_from"]
    yield "time/rollout", times["rollout_ended"] - times["rollout_began"]
    yield "time/update", times["update_ended"] - times["update_began"]
    for name, moment in times.items():
        yield f"timeline/{name}", moment
