"""PPO from AI feedback: `rlaif ppo CONFIG`. `train` is the whole schedule; each step of it is one function elsewhere."""

from __future__ import annotations

from rlaif.config.schema import Config
from rlaif.io.terminal import phase
from rlaif.stages.run import datasets, row_checks
from rlaif.stages.run.run import Run, Start
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
    rows = datasets.load(run, config.data.prompts, "prompts", row_checks.ppo_checks(config, run))
    prompts = enough_prompts(config, rows)
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
