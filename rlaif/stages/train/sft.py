"""Supervised fine-tuning: `rlaif sft CONFIG`."""

from __future__ import annotations

from collections.abc import Sequence

from learners.spec import RoleSpec
from rlaif.config.schema import Config
from rlaif.data.rows import Conversation
from rlaif.data.sampler import rows_of_step
from rlaif.errors import ConfigError, named
from rlaif.models.check import require_model
from rlaif.stages.run import datasets, row_checks
from rlaif.stages.run.run import Run, Start
from rlaif.stages.train import supervised


def train(config: Config, run: Run, start: Start = "new") -> str:
    """Train, checkpoint, export; returns the export's path."""
    sft = config.sft
    require_model("sft.init", sft.init)
    rows = datasets.load(run, config.data.sft, "conversations", [row_checks.sft_check(config, run)])
    spec = supervised.learner_spec(config, sft, "policy")
    check_videos(config, spec.roles[0], rows)
    identity = supervised.identity("sft", sft)
    checkpoints = run.checkpoints("sft", sft.save.keep)
    newest = run.starting_point("sft", checkpoints, start, identity)
    if run.nothing_left("sft", newest, sft.steps, "sft.steps"):
        return str(run.directory.export("sft"))

    def chosen(number: int) -> list[Conversation]:
        return [rows[i] for i in rows_of_step(len(rows), sft.batch_size, number, config.seed, "sft")]

    def step(number: int) -> list:
        return group.step_conversations(chosen(number), sft.prompt_loss_weight)

    def videos(number: int) -> set[str]:
        return {row.video for row in chosen(number) if row.video}

    datasets.decode_first(run, supervised.in_order(chosen, newest, len(rows)))
    group = run.topology.learners(spec)
    task = supervised.Supervised("sft", sft.steps, sft.save, identity, step, videos)
    supervised.train(task, run, group, checkpoints, newest)
    export = group.export("policy", run.directory.export("sft"), merge=True)
    run.exported("sft", max(sft.steps, newest.iteration if newest else 0))
    run.topology.stop_learners()
    return export


def check_videos(config: Config, role: RoleSpec, rows: Sequence[Conversation]) -> None:
    """Raises ConfigError where some ranks would have gradients of a tower in a step and others none: they could not meet."""
    trains = role.lora is None and (role.train_vision or role.train_projector)
    without = [row.id for row in rows if not row.video]
    if trains and without and config.cluster.learner.actors > 1:
        raise ConfigError(
            "conversations that all have a video, where several ranks train tower or projector",
            f"{len(without)} of {len(rows)} without: {named(without)}",
            "Set sft.train_vision and sft.train_projector to false, or train rows without a video in a run of their own",
        )
