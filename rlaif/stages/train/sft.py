"""Supervised fine-tuning: `rlaif sft CONFIG`."""

from __future__ import annotations

from collections.abc import Sequence

from learners.spec import RoleSpec
from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.data.rows import Conversation
from rlaif.data.sampler import rows_of_step
from rlaif.errors import ConfigError, named
from rlaif.io.rundir import RunDir
from rlaif.models.check import require_model
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.preflight.models import check_model_option
from rlaif.stages.run import datasets, row_checks
from rlaif.stages.run.run import Run, Start
from rlaif.stages.run.summary import NextStage, Summary, is_export
from rlaif.stages.train import supervised


def train(config: Config, run: Run, start: Start = "new") -> str:
    """Train, checkpoint and export. Returns the path of the export."""
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
    """Raise ConfigError if in a step some ranks could have gradients of a tower and others none.

    The ranks would then not meet in the collective that adds their gradients up.
    """
    trains = role.lora is None and (role.train_vision or role.train_projector)
    without = [row.id for row in rows if not row.video]
    if trains and without and config.cluster.learner.actors > 1:
        raise ConfigError(
            "conversations that all have a video, since several ranks train tower or projector",
            f"{len(without)} of {len(rows)} without: {named(without)}",
            "Set sft.train_vision and sft.train_projector to false, or train rows without a video in a run of their own.",
        )


def check_sft(inquiry: Inquiry) -> None:
    """Check the model to start from and the conversations."""
    config = inquiry.config
    check_model_option(inquiry, "sft.init", config.sft.init)
    rows = inquiry.rows("sft")
    if rows:
        inquiry.attempt("data.sft", check_videos, config, _trained_role(config), rows)


def _trained_role(config: Config) -> RoleSpec:
    """Return what fine-tuning trains, as far as `check_videos` reads it."""
    section, model = config.sft, config.model
    vision = model.train_vision if section.train_vision is None else section.train_vision
    projector = model.train_projector if section.train_projector is None else section.train_projector
    return RoleSpec("policy", section.init, section.lora, train_vision=vision, train_projector=projector)


def summarise_sft(config: Config, directory: RunDir, export: str) -> Summary:
    """Return the loss at both ends, and the training stages that start from this model or the feedback about it."""
    losses = [row["train/nll"] for row in directory.read_metrics("sft") if row.get("train/nll") is not None]
    figures = {"steps": str(config.sft.steps)}
    if losses:
        figures["loss per token"] = f"{losses[0]:.3f} -> {losses[-1]:.3f}"
    if config.data.captions:
        feedback: NextStage = ("caption the videos", "caption", ())
    else:
        feedback = ("sample answers that a judge can compare", "sample", ())
    return Summary(figures, {"export": export}, following=[*_trained_next(config, directory), feedback])


def _trained_next(config: Config, directory: RunDir) -> list[NextStage]:
    """Return the training stage that starts from this run's fine-tuned model, if it has its data."""
    export = directory.export("sft")
    if isinstance(config.ppo.reward, Function):
        step = ("align the model with the reward function", "ppo", ())
        return [step] if is_export(config.ppo.policy, export) else []
    has_pairs = datasets.data_path(config, config.data.pairs).is_file()
    step = ("train a reward model on the pairs", "reward", ())
    return [step] if has_pairs and is_export(config.reward.init, export) else []
