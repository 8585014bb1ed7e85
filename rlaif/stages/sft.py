"""Supervised fine-tuning: `rlaif sft CONFIG`."""

from __future__ import annotations

from rlaif.config.schema import Config
from rlaif.models.check import require_model
from rlaif.order import rows_of_step
from rlaif.stages import data, supervised
from rlaif.stages.run import Run, Start


def train(config: Config, run: Run, start: Start = "new") -> str:
    """Train, checkpoint, export; returns the export's path."""
    sft = config.sft
    require_model("sft.init", sft.init)
    rows = data.conversations(config, config.data.sft)
    identity = supervised.identity("sft", sft)
    checkpoints = run.checkpoints("sft", sft.save.keep)
    newest = run.starting_point("sft", checkpoints, start, identity)
    group = run.topology.learners(supervised.learner_spec(config, sft, "policy"))

    def step(number: int) -> list:
        return group.step_conversations(
            [rows[i] for i in rows_of_step(len(rows), sft.batch_size, number, config.seed, "sft")]
        )

    task = supervised.Supervised("sft", sft.steps, sft.save, identity, step)
    supervised.train(task, run, group, checkpoints, newest)
    export = group.export("policy", run.directory.export("sft"), merge=True)
    run.topology.stop_learners()
    return export
