"""PPO from AI feedback: `rlaif ppo CONFIG`. `train` is the whole schedule; each step of it is one function elsewhere."""

from __future__ import annotations

import time

from rlaif.config.schema import Config
from rlaif.io.rundir import MAIN_STAGE, RunDir
from rlaif.io.terminal import phase
from rlaif.records import Prompt
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.preflight.models import check_policy_and_reward
from rlaif.stages.run import datasets, row_checks
from rlaif.stages.run.reward_context import prompts_with_context
from rlaif.stages.run.run import Run, Start
from rlaif.stages.run.summary import Summary
from rlaif.stages.train import evaluate
from rlaif.stages.train.best import Best
from rlaif.stages.train.experience import ExperienceMaker, ScoredBatch
from rlaif.stages.train.iteration_metrics import iteration_metrics
from rlaif.stages.train.prompts import open_deck, resumed_ledger
from rlaif.stages.train.supervised import restore, save_checkpoint
from rlaif.stages.train.workers import (
    Workers,
    enough_prompts,
    identity,
    learner_spec,
    parity_gate,
    require_inputs,
    start_workers,
)


def train(config: Config, run: Run, start: Start = "new") -> str:
    """Generate, score, learn, publish and save, for every iteration. Returns the path of the export.

    Synchronous and asynchronous training are this one loop. Batches are submitted `max_staleness` iterations ahead, and
    new weights reach each rollout actor after its pending requests: with 0 the update starts from exactly the weights
    that sampled, with 1 the actors sample the next batch while the learners update.
    """
    ppo = config.ppo
    prompts, held_out = _read_prompts(config, run)
    checkpoints = run.checkpoints("ppo", ppo.save.keep)
    newest = run.starting_point("ppo", checkpoints, start, identity(config))
    if run.nothing_left("ppo", newest, ppo.iterations, "ppo.iterations"):
        return str(run.directory.export("ppo"))
    deck = open_deck(config, run, prompts, newest)
    workers = start_workers(config, run, learner_spec(config))
    first = restore(workers.learners, checkpoints, newest)
    maker = ExperienceMaker(config, run, workers, deck, resumed_ledger(newest, deck), first)
    best = Best.of(newest)
    with phase("parity gate: do engine and learner agree?"):
        workers.weight_sync.publish(first)
        gate = parity_gate(config, workers, prompts, newest and newest.meta["gate"])
        gate.check()
    if newest is None:
        evaluate.policy(config, run, workers, held_out, "sft")
    checkpoint_s = 0.0
    with run.tracker("ppo", ppo.iterations, first) as tracker, run.stopper.deferred():
        for iteration in range(first, ppo.iterations):
            while maker.next_iteration < min(iteration + 1 + ppo.max_staleness, ppo.iterations):
                maker.submit(maker.next_iteration)
            batch = maker.collect(iteration)
            metrics = learn(config, workers, maker, batch) | {"time/checkpoint": checkpoint_s}
            done = iteration + 1
            metrics |= workers.weight_sync.publish(done)
            if gate.due(done):
                metrics |= gate.check()
            if ppo.eval_every and done % ppo.eval_every == 0:
                metrics |= evaluate.during_training(config, workers, held_out)
            best = best.after(done, metrics)
            run.directory.write_samples(done, list(batch.rows()))
            tracker.log(done, metrics, f"reward {metrics['reward/mean']:.2f} kl {metrics['kl/response']:.2f}")
            due = done in (ppo.iterations, best.iteration) or (ppo.save.every and done % ppo.save.every == 0)
            if due or run.stopper.requested:  # a signal that comes after this line waits for the next iteration
                driver = {"ledger": maker.ledger, "gate": gate, "deck": deck}
                checkpoint_s = save_checkpoint(run, workers.learners, checkpoints, done, identity(config), best, driver)
                run.stopper.check()
    return _export(config, run, workers, held_out, max(first, ppo.iterations))


def learn(config: Config, workers: Workers, maker: ExperienceMaker, batch: ScoredBatch) -> dict[str, float]:
    """Update policy and critic on a batch. Returns every metric of the iteration so far."""
    if config.rollout.sleep_level:
        workers.rollouts.fleet.sleep(config.rollout.sleep_level, workers.deadline_s)
    batch.times["update_began"] = time.time()
    metrics, batch.reports = workers.learners.train_ppo(batch.experience(), config.ppo, config.seed, maker.drain)
    batch.times["update_ended"] = time.time()
    maker.settle(batch)
    return metrics | iteration_metrics(maker, batch)


def _read_prompts(config: Config, run: Run) -> tuple[list[Prompt], list[Prompt]]:
    """Return the usable prompts to train on and the held-out ones, after checking the other inputs."""
    require_inputs(config)
    usable = datasets.load(run, config.data.prompts, "prompts", row_checks.ppo_checks(config, run))
    prompts = prompts_with_context(config, enough_prompts(config, usable))
    return prompts, evaluate.held_out(config, run)


def _export(config: Config, run: Run, workers: Workers, held_out: list[Prompt], iterations: int) -> str:
    """Write the policy to the export and evaluate it. Returns the path of the export."""
    with phase("writing the export"):
        export = workers.learners.export("policy", run.directory.export("ppo"))
    evaluate.policy(config, run, workers, held_out, "rlaif")
    run.exported("ppo", iterations)
    return export


def check_ppo(inquiry: Inquiry) -> None:
    """Check the models, the reward, and that there are enough prompts for an iteration."""
    ppo = inquiry.config.ppo
    check_policy_and_reward(inquiry)
    rows = inquiry.rows("prompts")
    if rows and len(rows) < ppo.prompts_per_iteration:
        inquiry.report(
            "ppo.prompts_per_iteration",
            f"at most the {len(rows)} usable prompts of data.prompts",
            f"{ppo.prompts_per_iteration}",
            f"Set ppo.prompts_per_iteration={len(rows)}, or add prompts",
        )
    if ppo.eval_every or inquiry.has_file("eval"):
        inquiry.rows("eval")
    else:
        inquiry.note("data.eval: no such file: PPO measures nothing on held-out prompts, and `rlaif eval` needs it")


def summarise_ppo(config: Config, directory: RunDir, export: str) -> Summary:
    """Return reward and KL, and the evaluation of both ends if there was one."""
    rows = directory.read_metrics(MAIN_STAGE)
    rewards = [row["reward/mean"] for row in rows if row.get("reward/mean") is not None]
    figures = {"iterations": str(rows[-1]["iteration"]) if rows else "0"}
    if rewards:
        figures["mean reward"] = f"{rewards[0]:.3f} -> {rewards[-1]:.3f}"
        figures["KL per answer"] = f"{rows[-1]['kl/response']:.2f} nats"
    evaluation = directory.read_json("eval/ppo.json")
    table = evaluate.table(evaluation["rows"]) if evaluation and evaluation["rows"] else ""
    places = {"export": export, "samples": directory.path / "samples"}
    return Summary(figures, places, table, [("evaluate the start and the export side by side", "eval", ())])
