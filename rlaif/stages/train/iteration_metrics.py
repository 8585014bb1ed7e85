"""The metrics of a PPO iteration that the driver computes; those of the update come from the learners."""

from __future__ import annotations

import numpy as np

from rlaif.stages.train.experience import ExperienceMaker, ScoredBatch


def iteration_metrics(maker: ExperienceMaker, batch: ScoredBatch) -> dict[str, float]:
    """Return the metrics of samples, actors and stores of an iteration whose update is over."""
    left_out = {"samples/prompts_left_out": len(maker.deck.left_out), "time/reward_busy": maker.reward_seconds()}
    return left_out | sample_metrics(batch, maker.config.ppo.kl.limit) | worker_metrics(maker, batch)


def sample_metrics(batch: ScoredBatch, kl_limit: float) -> dict[str, float]:
    """Return means over the iteration's samples. `kl_limit`: nats per response."""
    trained = batch.trained
    kl = float(np.mean([batch.reports[sample.key]["kl"] for sample in trained]))
    return {
        **_reward_metrics(batch),
        "kl/response": kl,
        "kl/over_limit": float(not kl <= kl_limit),  # written so that NaN counts as over the limit
        "response/length": float(np.mean([len(sample.response_ids) for sample in batch.samples])),
        "response/stopped": float(np.mean([sample.finish_reason == "stop" for sample in batch.samples])),
        "samples/trained": len(trained),
        "samples/masked": len(batch.samples) - len(trained),
        "samples/failed_prompts": len(batch.failures),
        "samples/staleness_max": max(batch.iteration - sample.policy_version for sample in batch.samples),
    }


def _reward_metrics(batch: ScoredBatch) -> dict[str, float]:
    outcomes = [batch.outcomes[sample.key] for sample in batch.trained]
    values = [outcome.value for outcome in outcomes]
    metrics = {"reward/mean": float(np.mean(values)), "reward/std": float(np.std(values))}
    names: set[str] = set()
    for outcome in outcomes:
        names.update(outcome.parts)
    for name in sorted(names):
        parts = [outcome.parts.get(name, 0.0) for outcome in outcomes]
        metrics[f"reward/part_{name}"] = float(np.mean(parts))
    return metrics


def worker_metrics(maker: ExperienceMaker, batch: ScoredBatch) -> dict[str, float]:
    """Return speed and health of the rollout actors, the ledger, the stores' counters, and where the time went."""
    tokens = sum(len(sample.response_ids) for sample in batch.samples)
    times = phase_times(batch.times)
    rollouts = maker.workers.rollouts
    topology = maker.run.topology
    return {
        **times,
        **maker.ledger.metrics(),
        "publish/apply_seconds": maker.workers.weight_sync.apply_s,
        "rollout/tokens_per_s": tokens / max(times["time/rollout"], 1e-9),
        "rollout/actors": len(rollouts.fleet.names),
        "rollout/dead_actors": len(rollouts.fleet.dead),
        "rollout/reissued_prompts": rollouts.reissued,
        **topology.frame_counters(),
        **topology.feature_counters(),
    }


def phase_times(times: dict[str, float]) -> dict[str, float]:
    """Return the seconds that the driver spent in each phase, and the moments themselves (`timeline/...`)."""
    metrics = {
        "time/wait_for_samples": times["rewarded"] - times["waited_from"],
        "time/rollout": times["rollout_ended"] - times["rollout_began"],
        "time/update": times["update_ended"] - times["update_began"],
    }
    for name, moment in times.items():
        metrics[f"timeline/{name}"] = moment
    return metrics
