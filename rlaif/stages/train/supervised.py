"""The loop of every stage that learns from a fixed dataset: steps, evaluations, checkpoints."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import ray

from cluster.checkpoint import CheckpointRef, Checkpoints
from cluster.remote import ask
from learners.group import LearnerGroup
from learners.spec import LearnerSpec, RoleSpec
from rlaif.config.schema import Config, Reward, Saving, Sft
from rlaif.errors import named
from rlaif.models.check import fingerprint
from rlaif.stages.run.run import Run
from rlaif.stages.run.tracker import Tracker
from rlaif.stages.train.best import Best

log = logging.getLogger(__name__)

Row = TypeVar("Row")


@dataclass(frozen=True)
class Supervised:
    """What a stage fills in; `train` does the rest."""

    stage: str
    steps: int
    saving: Saving
    identity: dict
    """What a checkpoint must match to be resumed."""
    step: Callable[[int], list[ray.ObjectRef]]
    """Start optimizer step k; every reference resolves to (metrics over all ranks, rows left out)."""
    videos: Callable[[int], Collection[str]]
    """Videos of step k: the frame store decodes those of the next step while the ranks compute."""
    evaluate: Callable[[], dict[str, float]] | None = None
    """Metrics on held-out data."""
    eval_every: int = 0
    best_by: str | None = None
    """The metric of `evaluate` whose highest value makes a checkpoint the best one."""


def learner_spec(
    config: Config, section: Sft | Reward, role: str, head: Literal["none", "reward"] = "none"
) -> LearnerSpec:
    """A group that trains one role as its section of the configuration says."""
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
    """What a checkpoint of a stage belongs to."""
    lora = section.lora and section.lora.model_dump(mode="json")
    return {"stage": stage, "base": fingerprint(section.init), "lora": lora}


def in_order(chosen: Callable[[int], Sequence[Row]], newest: CheckpointRef | None, count: int) -> Iterator[Row]:
    """Yield the first `count` rows of the steps that follow a checkpoint, in the order of their use."""
    steps = itertools.count(newest.iteration if newest else 0)
    rows = itertools.chain.from_iterable(map(chosen, steps))
    return itertools.islice(rows, count)


def train(
    task: Supervised, run: Run, group: LearnerGroup, checkpoints: Checkpoints, newest: CheckpointRef | None
) -> Best:
    """From the newest checkpoint (or the start) to the last step; evaluations and checkpoints as configured.

    With `task.best_by` the best evaluation's checkpoint is there at the end; returns which one it is.
    """
    start, frames, best = restore(group, checkpoints, newest), run.topology.client(), Best.of(newest)
    with run.tracker(task.stage, task.steps, start) as tracker, run.stopper.deferred():
        waiting: list[tuple[int, list]] = []
        left_out: set[str] = set()
        for done in range(start + 1, task.steps + 1):
            waiting.append((done, task.step(done - 1)))
            frames.prefetch(task.videos(done))
            evaluate, save = _due(done, task.eval_every, task.steps), _due(done, task.saving.every, task.steps)
            # one step ahead: ranks never wait for the driver
            while len(waiting) > (0 if evaluate or save or run.stopper.requested else 1):
                _finish(tracker, *waiting.pop(0), left_out, group.timeout_s)
            save = save or (run.stopper.requested and not waiting)
            if evaluate and task.evaluate:
                found = task.evaluate()
                best = best.after(done, found, task.best_by) if task.best_by else best
                tracker.log(done, found)
            if save or best.iteration == done:
                save_checkpoint(run, group, checkpoints, done, task.identity, best.spared(), best=best.state())
                run.stopper.check()
    if left_out:
        log.warning("%s: %d rows were left out of their steps: %s", task.stage, len(left_out), named(sorted(left_out)))
    return best


def restore(group: LearnerGroup, checkpoints: Checkpoints, newest: CheckpointRef | None) -> int:
    """Load a checkpoint into the group; returns the iterations it holds, 0 without one."""
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
    protect: Collection[int] = (),
    **meta: object,
) -> float:
    """Written aside by the ranks, verified, then published; on any error the older checkpoints stay as they are.

    Returns the seconds it took.
    """
    began = time.perf_counter()
    run.directory.sync()  # whoever resumes from this checkpoint finds every row up to it
    staging = checkpoints.begin(done)
    try:
        state = group.save(staging)
        checkpoints.commit(staging, {"identity": identity, "learner": state, **run.record(), **meta}, protect)
    except BaseException:
        checkpoints.abort(staging)
        raise
    run.saved(identity["stage"], checkpoints)
    return time.perf_counter() - began


def _due(done: int, every: int, steps: int) -> bool:
    return done == steps or (every > 0 and done % every == 0)


def _finish(tracker: Tracker, done: int, refs: list[ray.ObjectRef], left_out: set[str], timeout_s: float) -> None:
    """Log a finished step; each row that it left out is named once and kept in `left_out`."""
    answers = ask(refs, timeout_s, "the learner ranks")
    metrics = {f"train/{name}": value for name, value in answers[0][0].items()}
    skipped = [reason for _, reasons in answers for reason in reasons]
    for reason in skipped:
        if reason not in left_out:
            log.warning("row left out: %s", reason)
    left_out.update(skipped)
    headline = next((f"{name} {value:.3f}" for name, value in answers[0][0].items() if name in ("nll", "accuracy")), "")
    tracker.log(done, metrics | {"data/skipped": len(skipped)}, headline)
