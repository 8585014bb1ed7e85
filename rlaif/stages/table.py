"""The table of stages: all that the command line, the checks and the README's table of commands know about a stage.

Functions are named as `package.module:function` and imported when they are needed, so that reading this table imports
neither torch nor Ray. A stage's file has three functions: the one that runs it, `check_NAME` and `summarise_NAME`, with
an underscore for the space in a name of two words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rlaif.config.checks import EVERYTHING, Scope


@dataclass(frozen=True)
class Stage:
    """One line of the table."""

    name: str
    """What the user types after `rlaif`; two words are a command and its subcommand."""
    help: str
    """What it does, as a line of `rlaif help` and of the README."""
    run: str
    """Its function, called with (config, run), and with `start` if the stage is resumable."""
    checks: tuple[str, ...] = ()
    """Checks of option combinations: keys of `rlaif.config.checks.CHECKS`."""
    roles: tuple[str, ...] = ()
    """What runs a model in it: members of `rlaif.config.checks.ROLES`."""
    resumable: bool = False
    """It saves checkpoints, so it takes `--resume` and `--fresh`, and exports a model that later stages start from."""
    example: str = "CONFIG"
    """The configuration that the README shows after the name."""

    @property
    def scope(self) -> Scope:
        """Return what is checked of a configuration; mistyped options are searched in the section of that name first."""
        return Scope(self.name.split()[-1], self.checks, self.roles)

    @property
    def check(self) -> str:
        """Return the function that reports, to a `rlaif.stages.preflight.Inquiry`, what keeps the stage from starting."""
        return self._companion("check")

    @property
    def summarise(self) -> str:
        """Return the function of (config, directory, result) that gives the `Summary` printed at the end."""
        return self._companion("summarise")

    def _companion(self, verb: str) -> str:
        module = self.run.partition(":")[0]
        return f"{module}:{verb}_{self.name.replace(' ', '_')}"


_PPO_ROLES = ("rollout", "scorer", "learner")

# The order is that of `rlaif help`: the way from a model to an evaluated policy.
STAGES = (
    Stage("sft", "supervised fine-tuning", "rlaif.stages.train.sft:train", ("sft",), ("learner",), resumable=True),
    Stage(
        "caption", "dense captions of every video", "rlaif.stages.feedback.caption:caption", ("caption",), ("rollout",)
    ),
    Stage(
        "sample",
        "answers to be judged, of one model or several",
        "rlaif.stages.feedback.sample:sample",
        roles=("rollout",),
    ),
    Stage(
        "label",
        "AI feedback on them: which answer is better, which claims are wrong",
        "rlaif.stages.feedback.label:label",
        ("label",),
        ("judge",),
    ),
    Stage("pairs", "preference pairs out of the labels", "rlaif.stages.feedback.pairs:pairs"),
    Stage(
        "reward",
        "a reward model of one or several dimensions, trained on preference pairs",
        "rlaif.stages.train.reward:train",
        ("reward",),
        ("learner",),
        resumable=True,
    ),
    Stage(
        "score",
        "scores of reward models for every answer in a preference file",
        "rlaif.stages.feedback.score:score",
        ("score",),
        ("reward",),
    ),
    Stage(
        "ppo",
        "PPO: align the policy with the reward model",
        "rlaif.stages.train.ppo:train",
        ("ppo", "rollout"),
        _PPO_ROLES,
        resumable=True,
    ),
    Stage(
        "eval",
        "the start and the export of a PPO run, side by side",
        "rlaif.stages.train.evaluate:evaluate",
        ("ppo", "rollout"),
        _PPO_ROLES,
    ),
    Stage(
        "eval agreement",
        "how often a reward model or a judge prefers what a file of preferences prefers",
        "rlaif.stages.compare.agreement:agreement",
        ("agreement",),
        ("agreement",),
    ),
    Stage(
        "eval winrate",
        "models against each other on the answers that `rlaif sample` made",
        "rlaif.stages.compare.winrate:winrate",
        ("winrate",),
        ("winrate",),
    ),
    Stage(
        "eval context",
        "whether context helps: judge and reward model with captions, without, and with another video's",
        "rlaif.stages.recipes.context_study:context",
        ("caption", "reward", "context"),
        ("rollout", "learner"),
    ),
    Stage(
        "demo",
        "all of it on a world of moving shapes",
        "rlaif.stages.recipes.demo:demo",
        EVERYTHING.checks,
        EVERYTHING.roles,
        example="configs/demo.yaml",
    ),
)

# A benchmark opens its run itself and is called with (config, file for its figures): it has no check and no summary.
BENCHMARKS = (
    Stage(
        "bench ppo",
        "where the time of a PPO iteration goes, and the same in a single process",
        "rlaif.stages.recipes.bench_ppo:bench",
        ("ppo", "rollout"),
        _PPO_ROLES,
        example="configs/bench.yaml",
    ),
    Stage(
        "bench label",
        "answers judged per second, and the same with transformers",
        "rlaif.stages.recipes.bench_label:bench",
        ("label",),
        ("judge",),
        example="configs/bench_label.yaml",
    ),
)


def stage_named(name: str) -> Stage:
    """Return the stage or benchmark called `name`. Raises KeyError if there is none."""
    for stage in (*STAGES, *BENCHMARKS):
        if stage.name == name:
            return stage
    raise KeyError(name)


def scope_of(name: str | None) -> Scope:
    """Return what is checked for the stage called `name`; None means the options of all stages together."""
    return EVERYTHING if name is None else stage_named(name).scope


def resolve(reference: str) -> Callable[..., Any]:
    """Return the function that a `package.module:function` of the table names."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)
