"""The training loop of every stage that learns from a fixed dataset: steps, evaluations, checkpoints."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol, TypeVar

import ray

from cluster.checkpoint import CheckpointRef, Checkpoints
from cluster.remote import ask
from learners.group import LearnerGroup
from learners.spec import LearnerSpec, RoleSpec
from rlaif.config.schema import Config, Reward, Saving, Sft
from rlaif.errors import named
from rlaif.models.model_dir import ModelDir
from rlaif.stages.run.run import Run
from rlaif.stages.run.tracker import Tracker
from rlaif.stages.train.best import Best

log = logging.getLogger(__name__)

Row = TypeVar("Row")


class Stateful(Protocol):
    """Something of the driver that a checkpoint holds."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""


@dataclass(frozen=True)
class Supervised:
    """What is particular to a stage; `train` does the rest."""

    stage: str
    steps: int
    saving: Saving
    identity: dict
    """What a checkpoint must match so that the stage can be resumed."""
    step: Callable[[int], list[ray.ObjectRef]]
    """Start optimizer step k; every reference resolves to (metrics over all ranks, rows left out)."""
    videos: Callable[[int], Collection[str]]
    """Return the videos of step k: the frame store decodes those of the next step while the ranks compute."""
    evaluate: Callable[[], dict[str, float]] | None = None
    """Return metrics on held-out data."""
    eval_every: int = 0
    best_by: str | None = None
    """The metric of `evaluate` whose highest value makes a checkpoint the best one."""


def learner_spec(
    config: Config, section: Sft | Reward, role: str, head: Literal["none", "reward"] = "none"
) -> LearnerSpec:
    """Return the specification of a group that trains one role, as its section of the configuration says."""
    model, rewards = config.model, isinstance(section, Reward)
    spec = RoleSpec(
        role,
        section.init,
        section.lora,
        section.optim,
        section.steps,
        head,
        section.head_init if rewards else "normal",
        len(section.dimensions) if rewards else 1,
        train_vision=model.train_vision if section.train_vision is None else section.train_vision,
        train_projector=model.train_projector if section.train_projector is None else section.train_projector,
    )
    return LearnerSpec(
        (spec,),
        model,
        config.cluster,
        config.data.max_prompt_tokens,
        config.video.feature_cache_bytes,
        section.tokens_per_microbatch,
        seed=config.seed,
        deterministic=config.deterministic,
        video=config.video,
    )


def identity(stage: str, section: Sft | Reward) -> dict:
    """Return what a checkpoint of the stage belongs to."""
    lora = section.lora and section.lora.model_dump(mode="json")
    return {"stage": stage, "base": ModelDir(section.init).fingerprint, "lora": lora}


def in_order(chosen: Callable[[int], Sequence[Row]], newest: CheckpointRef | None, count: int) -> Iterator[Row]:
    """Yield the first `count` rows of the steps that follow a checkpoint, in the order of their use."""
    steps = itertools.count(newest.iteration if newest else 0)
    rows = itertools.chain.from_iterable(map(chosen, steps))
    return itertools.islice(rows, count)


def train(
    task: Supervised, run: Run, group: LearnerGroup, checkpoints: Checkpoints, newest: CheckpointRef | None
) -> Best:
    """Train from the newest checkpoint (or the start) to the last step, with evaluations and checkpoints as configured.

    Returns the best evaluation. With `task.best_by`, its checkpoint exists at the end.
    """
    start = restore(group, checkpoints, newest)
    frames = run.topology.client()
    best = Best.of(newest)
    with run.tracker(task.stage, task.steps, start) as tracker, run.stopper.deferred():
        pending: list[tuple[int, list]] = []
        left_out: set[str] = set()
        for done in range(start + 1, task.steps + 1):
            pending.append((done, task.step(done - 1)))
            frames.prefetch(task.videos(done))
            evaluate = _due(done, task.eval_every, task.steps)
            save = _due(done, task.saving.every, task.steps)
            # The driver is one step ahead, so that the ranks never wait for it, except when their weights are read. A
            # signal may come while it waits for a step, so it is looked for before each.
            while len(pending) > (0 if evaluate or save or run.stopper.requested else 1):
                number, refs = pending.pop(0)
                left_out |= _finish_step(tracker, number, refs, left_out, group.timeout_s)
            save = save or (run.stopper.requested and not pending)
            if evaluate and task.evaluate:
                metrics = task.evaluate()
                if task.best_by:
                    best = best.after(done, metrics, task.best_by)
                tracker.log(done, metrics)
            if save or best.iteration == done:
                save_checkpoint(run, group, checkpoints, done, task.identity, best)
                run.stopper.check()
    if left_out:
        log.warning("%s: %d rows were left out of their steps: %s", task.stage, len(left_out), named(sorted(left_out)))
    return best


def restore(group: LearnerGroup, checkpoints: Checkpoints, newest: CheckpointRef | None) -> int:
    """Load a checkpoint into the group. Returns the number of iterations it holds, 0 without one."""
    if newest is None:
        return 0
    group.load(checkpoints, newest)
    checkpoints.rewind(newest.iteration)
    return newest.iteration


def save_checkpoint(
    run: Run,
    group: LearnerGroup,
    checkpoints: Checkpoints,
    done: int,
    identity: dict,
    best: Best,
    driver: Mapping[str, Stateful] = MappingProxyType({}),
) -> float:
    """Have the ranks write a checkpoint, verify it, then commit it. On any error the older checkpoints stay as they are.

    Args:
        done: the steps or iterations that it holds.
        best: the best evaluation so far; its checkpoint is not pruned.
        driver: objects of the driver whose state the checkpoint holds, by the name in its meta data.

    Returns the seconds it took.
    """
    meta = {name: stateful.state_dict() for name, stateful in driver.items()}
    began = time.perf_counter()
    run.directory.sync()  # a resume from this checkpoint finds every row up to it
    staging = checkpoints.begin(done)
    try:
        state = group.save(staging)
        meta |= {"identity": identity, "learner": state, "best": best.state(), **run.record()}
        checkpoints.commit(staging, meta, best.spared())
    except BaseException:
        checkpoints.abort(staging)
        raise
    run.saved(identity["stage"], checkpoints)
    return time.perf_counter() - began


def _due(done: int, every: int, steps: int) -> bool:
    """Return whether something happens after step `done`: every `every` steps, and after the last one."""
    return done == steps or (every > 0 and done % every == 0)


def _finish_step(
    tracker: Tracker, done: int, refs: list[ray.ObjectRef], known: Collection[str], timeout_s: float
) -> set[str]:
    """Log a finished step. Returns the rows that it left out, after naming those that are not in `known`."""
    answers = ask(refs, timeout_s, "the learner ranks")
    step_metrics = answers[0][0]
    skipped: list[str] = []
    for _, reasons in answers:
        skipped += reasons
    for reason in dict.fromkeys(skipped):
        if reason not in known:
            log.warning("row left out: %s", reason)
    metrics = {f"train/{name}": value for name, value in step_metrics.items()}
    headline = ""
    for name, value in step_metrics.items():
        if name in ("nll", "accuracy"):
            headline = f"{name} {value:.3f}"
            break
    tracker.log(done, metrics | {"data/skipped": len(skipped)}, headline)
    return set(skipped)
