"""The loop over a fixed dataset, without engines: which checkpoints it leaves, and that a resume knows the best one."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from cluster.checkpoint import Checkpoints
from rlaif.config.schema import Saving
from rlaif.stages.run.stopping import Interrupted, Stopper
from rlaif.stages.train import supervised
from rlaif.stages.train.best import Best
from rlaif.stages.train.reward import eval_metrics


class Group:
    """A learner that counts its steps."""

    steps = 0
    timeout_s = 1.0

    def save(self, staging) -> dict:
        with staging.writer() as folder:
            (folder / "steps").write_text(str(self.steps))
        return {}

    def load(self, checkpoints, ref) -> None:
        self.steps = ref.iteration


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """trained(accuracies by step, from a checkpoint or not, options) -> (what `train` returns, checkpoints, rows logged)."""
    monkeypatch.setattr(supervised, "ask", lambda refs, timeout_s, who: refs)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)

    def train(accuracies, newest=None, stopper=None, every=2, **options):
        group, rows = Group(), {}
        tracker = SimpleNamespace(log=lambda done, values, note="": rows.setdefault(done, {}).update(values))
        run = SimpleNamespace(
            topology=SimpleNamespace(client=lambda: SimpleNamespace(prefetch=lambda videos: None)),
            directory=SimpleNamespace(sync=lambda: None),
            tracker=lambda *_: nullcontext(tracker),
            record=dict,
            saved=lambda stage, checkpoints: None,
            stopper=stopper or Stopper(1.0),
        )
        given = iter(accuracies)

        def step(number):
            group.steps += 1
            return [({"accuracy": 0.5}, [])]

        def evaluate():
            return {"eval/accuracy": next(given)}

        options = {"best_by": "eval/accuracy", "eval_every": 1} | options
        steps = len(accuracies) + (newest.iteration if newest else 0)
        task = supervised.Supervised(
            "reward",
            steps,
            Saving(every=every, keep=1),
            {"stage": "reward"},
            step,
            lambda number: (),
            evaluate,
            **options,
        )
        return supervised.train(task, run, group, checkpoints, newest), checkpoints, rows

    train.folder = tmp_path
    return train


def test_the_best_checkpoint_is_kept_while_it_is_the_best(trained):
    best, checkpoints, rows = trained([0.5, 0.4, 0.7, 0.6, 0.7, 0.1])
    assert best == Best(3, 0.7) and checkpoints.iterations() == [3, 6]
    assert [rows[step]["eval/accuracy"] for step in sorted(rows)] == [0.5, 0.4, 0.7, 0.6, 0.7, 0.1]


def test_a_resume_restores_the_best_score(trained):
    _, checkpoints, _ = trained([0.5, 0.8, 0.6, 0.6])
    assert checkpoints.iterations() == [2, 4]
    best, checkpoints, _ = trained([0.7, 0.8], checkpoints.latest())
    assert best == Best(2, 0.8) and checkpoints.iterations() == [2, 6]
    best, checkpoints, _ = trained([0.9, 0.3], checkpoints.latest())
    assert best == Best(7, 0.9) and checkpoints.iterations() == [7, 8]
    best, checkpoints, _ = trained([], checkpoints.latest())  # finished: what is left is to export it
    assert best == Best(7, 0.9) and checkpoints.at(7).iteration == 7


def test_a_signal_ends_the_loop_with_a_checkpoint_of_the_current_step(trained, monkeypatch):
    stopper, usual = (
        Stopper(60.0, lambda seconds, signum: SimpleNamespace(cancel=lambda: None)),
        supervised._finish_step,
    )

    def finish(tracker, done, *args):
        left_out = usual(tracker, done, *args)
        if done == 2:
            stopper.receive(signal.SIGTERM)
        return left_out

    monkeypatch.setattr(supervised, "_finish_step", finish)
    with pytest.raises(Interrupted):
        trained([0.5] * 8, stopper=stopper, every=0, eval_every=0)
    assert Checkpoints(trained.folder / "checkpoints").iterations() == [3]  # the loop is a step ahead of its metrics


def test_without_a_metric_the_newest_are_kept(trained):
    best, checkpoints, _ = trained([0.9, 0.1, 0.2, 0.3], best_by=None)
    assert best == Best() and checkpoints.iterations() == [4]


def test_nan_accuracies_are_never_the_best(trained):
    best, checkpoints, _ = trained([float("nan"), float("nan")])
    assert best == Best() and checkpoints.iterations() == [2]


def test_held_out_pairs_that_cannot_be_read_are_counted(caplog):
    signs = {name: {"overall": 1} for name in ("a", "b", "c")}
    scores = {"a": np.array([[2.0], [1.0]]), "b": np.array([[0.0], [1.0]])}
    result = eval_metrics(signs, scores, ["c.mp4: 9 positions, over the limit of 8"], ["overall"])
    assert (result["eval/accuracy"], result["eval/pairs"], result["eval/skipped"]) == (0.5, 2, 1)
    assert "1 of 3 held-out pairs are left out: c.mp4" in caplog.text
    assert eval_metrics(signs, {}, ["too long"] * 3, ["overall"]) == {"eval/pairs": 0, "eval/skipped": 3}
    assert "3 of 3 held-out pairs are left out: too long" in caplog.text
