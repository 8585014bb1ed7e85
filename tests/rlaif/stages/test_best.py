"""Which evaluation was the best, and that everyone remembers it."""

from __future__ import annotations

from types import SimpleNamespace

from rlaif.stages.train.best import Best


def test_the_first_of_equal_scores_stays_the_best():
    best = Best()
    for iteration, score in ((1, 0.5), (2, 0.7), (3, 0.7), (4, float("nan")), (5, 0.6)):
        best = best.after(iteration, {"eval/accuracy": score}, "eval/accuracy")
    assert best == Best(2, 0.7) and best.spared() == (2,)
    assert best.after(6, {"train/accuracy": 1.0}, "eval/accuracy") == best
    assert best.after(6, {"eval/score": 1.0}) == Best(6, 1.0)


def test_the_best_score_is_restored_from_a_checkpoint():
    assert Best.of(None) == Best() and Best().spared() == () and Best().state() == {}
    assert Best.of(SimpleNamespace(meta={"best": Best(2, 0.7).state()})) == Best(2, 0.7)
    assert Best.of(SimpleNamespace(meta={"best": Best().state()})) == Best.of(SimpleNamespace(meta={})) == Best()
