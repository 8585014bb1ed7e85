"""Supervised fine-tuning: `rlaif sft CONFIG`."""

from __future__ import annotations

from rlaif.config.schema import Config
from rlaif.data import Conversation
from rlaif.models.check import require_model
from rlaif.order import rows_of_step
from rlaif.stages import data, supervised
from rlaif.stages.run import Run, Start


def train(config: Config, run: Run, start: Start = "new") -> str:
    """Train, checkpoint, export; returns the export's path."""
    sft = config.sft
    require_model("sft.init", sft.init)
    rows = data.conversations(run, config.data.sft)
    identity = supervised.identity("sft", sft)
    checkpoints = run.checkpoints("sft", sft.save.keep)
    newest = run.starting_point("sft", checkpoints, start, identity)
    group = run.topology.learners(supervised.learner_spec(config, sft, "policy"))

    def chosen(number: int) -> list[Conversation]:
        return [rows[i] for i in rows_of_step(len(rows), sft.batch_size, number, config.seed, "sft")]

    def step(number: int) -> list:
        return group.step_conversations(chosen(number), sft.prompt_loss_weight)

    def videos(number: int) -> set[str]:
        return {row.video for row in chosen(number)}

    task = supervised.Supervised("sft", sft.steps, sft.save, identity, step, videos)
    supervised.train(task, run, group, checkpoints, newest)
    export = group.export("policy", run.directory.export("sft"), merge=True)
    run.topology.stop_learners()
    return export
