"""PPO from AI feedback: `rlaif ppo CONFIG`. `train` is the whole schedule; each step of it is one function elsewhere."""

from __future__ import annotations

from rlaif.config.schema import Config
from rlaif.io.rundir import MAIN_STAGE, RunDir
from rlaif.io.terminal import phase
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.preflight.models import check_policy_and_reward
from rlaif.stages.run import datasets, row_checks
from rlaif.stages.run.run import Run, Start
from rlaif.stages.run.summary import Summary
from rlaif.stages.train import evaluate
from rlaif.stages.train.best import Best
from rlaif.stages.train.experience import ask_for, collect, learn, record
from rlaif.stages.train.replacing import mask_gone, open_deck
from rlaif.stages.train.supervised import restore, save_checkpoint
from rlaif.stages.train.workers import enough_prompts, identity, learner_spec, parity_gate, require_inputs, start_roles


def train(config: Config, run: Run, start: Start = "new") -> str:
    """Generate, score, learn, publish, save, for every iteration; returns the export's path.

    Synchronous and asynchronous training are this one loop. Batches are asked for `max_staleness` iterations ahead, and
    a publish reaches each rollout actor behind the answers it still owes: with 0 the update starts from exactly the
    weights that sampled, with 1 the actors sample the next batch while the learners update.
    """
    ppo = config.ppo
    require_inputs(config)
    prompts = enough_prompts(config, datasets.prompts(run, config.data.prompts, row_checks.sampled(config, run)))
    held_out = evaluate.held_out(config, run)
    checkpoints = run.checkpoints("ppo", ppo.save.keep)
    newest = run.starting_point("ppo", checkpoints, start, identity(config))
    if run.nothing_left("ppo", newest, ppo.iterations, "ppo.iterations"):
        return str(run.directory.export("ppo"))
    deck = open_deck(config, run, prompts, newest)
    roles = start_roles(config, run, prompts, learner_spec(config))
    roles.deck, roles.eval_prompts = deck, held_out
    asked = first = restore(roles.learners, checkpoints, newest)
    best = Best.of(newest)
    if newest is not None:
        roles.ledger.load_state_dict(newest.meta["ledger"])
        mask_gone(roles.ledger, deck)
    with phase("parity gate: do engine and learner agree?"):
        roles.publisher.publish(first)
        gate = parity_gate(config, roles, prompts, newest and newest.meta["gate"])
        gate.check()
    if newest is None:
        evaluate.policy(config, run, roles, "sft")
    with run.tracker("ppo", ppo.iterations, first) as tracker, run.stopper.deferred():
        for iteration in range(first, ppo.iterations):
            while asked < min(iteration + 1 + ppo.max_staleness, ppo.iterations):
                ask_for(config, roles, asked)
                asked += 1
            round_ = collect(config, roles, iteration)
            metrics = learn(config, roles, round_)
            done = iteration + 1
            metrics |= roles.publisher.publish(done)
            if gate.due(done):
                metrics |= gate.check()
            if ppo.eval_every and done % ppo.eval_every == 0:
                metrics |= evaluate.during_training(config, roles)
            best = best.after(done, metrics)
            record(run, round_)
            tracker.log(done, metrics, f"reward {metrics['reward/mean']:.2f} kl {metrics['kl/response']:.2f}")
            due = done in (ppo.iterations, best.iteration) or (ppo.save.every and done % ppo.save.every == 0)
            if due or run.stopper.requested:  # a signal that comes after this line waits for the next iteration
                driver = {"best": best.state(), "ledger": roles.ledger.state_dict(), "gate": gate.state_dict()}
                driver["deck"] = deck.state_dict()
                roles.checkpoint_s = save_checkpoint(
                    run, roles.learners, checkpoints, done, identity(config), best.spared(), **driver
                )
                run.stopper.check()
    with phase("writing the export"):
        export = roles.learners.export("policy", run.directory.export("ppo"))
    evaluate.policy(config, run, roles, "rlaif")
    run.exported("ppo", max(first, ppo.iterations))
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
