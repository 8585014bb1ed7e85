"""Candidates of a record and their scores: each is scored once by its key."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlaif.data.preference import PreferencePair
from rlaif.feedback.scoring import Item, ScoringModel, Tally, items_of, new_scores, why_unreadable

RECORD = PreferencePair(
    "r",
    "what ?",
    "a cat",
    "a dog",
    video="v.mp4",
    candidates=(
        {"candidate": "rejected", "text": "a dog"},
        {"candidate": "third", "text": "a cow"},
        {"candidate": "fourth"},
        {"candidate": "third", "text": "twice"},
    ),
)
VIDEOS = PreferencePair("s", "a cat runs", chosen_video="a.mp4", rejected_video="b.mp4")
PLAIN = {"v.mp4": "0123", "a.mp4": "4567", "b.mp4": "89ab"}.__getitem__
ONE, TWO = ScoringModel("rm", "f" * 16, ("overall",)), ScoringModel("rm2", "e" * 16, ("helpful", "harmless"))


def test_every_candidate_is_listed_once():
    assert items_of(RECORD, ["c"], PLAIN) == [
        Item("chosen", "v.mp4", "what ?", ("c",), "a cat", "0123"),
        Item("rejected", "v.mp4", "what ?", ("c",), "a dog", "0123"),
        Item("third", "v.mp4", "what ?", ("c",), "a cow", "0123"),
    ]
    assert [(item.video, item.response) for item in items_of(VIDEOS, (), PLAIN)] == [("a.mp4", ""), ("b.mp4", "")]


def test_an_items_key_covers_everything_that_a_score_depends_on():
    item = Item("chosen", "v.mp4", "what ?", ("c",), "a cat", "0123")
    other = {"frames": "4567", "question": "who ?", "captions": (), "response": "a dog"}
    keys = {replace(item, **{name: value}).key("f") for name, value in other.items()}
    assert len({item.key("f"), item.key("g"), *keys}) == 6
    assert replace(item, candidate="third").key("f") == item.key("f")  # the same answer under another name
    assert replace(item, video="w.mp4").key("f") == item.key("f")  # and the same video
    lost = replace(item, frames="")
    assert replace(lost, video="w.mp4").key("f") != lost.key("f")  # without a hash the path counts


@pytest.mark.parametrize(("modality", "readable"), [("text", True), ("video", False), ("image", False)])
def test_a_pair_about_a_video_is_not_read_without_it(modality, readable):
    record = PreferencePair("r", "q", "a", "b", modality=modality, frames=("f0.png",))
    assert (why_unreadable(record, items_of(record, (), PLAIN)[0]) is None) == readable
    assert why_unreadable(VIDEOS, items_of(VIDEOS, (), PLAIN)[0]) is None


def test_scores_are_added_once_per_candidate_model_and_dimension():
    items = items_of(RECORD, (), PLAIN)
    values = {item.key(ONE.fingerprint): [float(n)] for n, item in enumerate(items)}
    values |= {item.key(TWO.fingerprint): [n + 0.5, -1.0 * n] for n, item in enumerate(items)}
    tally, other = Tally(), Tally()
    new = {items[0].key(ONE.fingerprint)}
    scored = RECORD.with_scores(new_scores(RECORD, items, ONE, values, {}, new, tally))
    scored = scored.with_scores(new_scores(scored, items, TWO, values, {}, set(values), other))
    entries = [(s["from"], s["candidate"], s.get("dimension"), s["value"]) for s in scored.scores]
    assert entries == [
        *[("rm", name, None, value) for name, value in (("chosen", 0.0), ("rejected", 1.0), ("third", 2.0))],
        *[("rm2", "chosen", "helpful", 0.5), ("rm2", "chosen", "harmless", 0.0)],
        *[("rm2", "rejected", "helpful", 1.5), ("rm2", "rejected", "harmless", -1.0)],
        *[("rm2", "third", "helpful", 2.5), ("rm2", "third", "harmless", -2.0)],
    ]
    assert (tally.candidates, tally.scored, tally.there) == (3, 1, 2) and other.scored == 3
    assert PreferencePair.from_row(scored.to_row()) == scored
    again = Tally()
    assert new_scores(scored, items, TWO, values, {}, set(values), again) == [] and again.there == 3


def test_a_score_of_another_answer_or_model_does_not_count_as_this_one():
    items = items_of(RECORD, (), PLAIN)
    scored = RECORD.with_scores(ONE.entries(items[0], [1.0]))
    assert ONE.known(scored, items[0]) and not ONE.known(scored, items[1])
    assert not replace(ONE, fingerprint="0" * 16).known(scored, items[0])
    assert not ONE.known(scored, replace(items[0], response="another"))
    assert not replace(ONE, dimensions=("overall", "style")).known(scored, items[0])
    by_others = RECORD.with_scores([{"value": 1.0, "from": "rm", "candidate": "chosen"}])
    assert not ONE.known(by_others, items[0])


def test_a_masked_candidate_has_a_reason_and_no_score():
    items, tally = items_of(RECORD, (), PLAIN), Tally()
    values = {items[1].key(ONE.fingerprint): [2.0]}
    reasons = {item.key(ONE.fingerprint): "garbage" for item in (items[0], items[2])}
    scores = new_scores(RECORD, items, ONE, values, reasons, set(values), tally)
    assert [score["candidate"] for score in scores] == ["rejected"]
    report = tally.report(ONE)
    assert (report["candidates"], report["scored"], report["there"], report["masked"]) == (3, 1, 0, 2)
    assert report["reasons"] == {"garbage": 2}
    assert report["first"][0] == {"pair_id": "r", "candidate": "chosen", "reason": "garbage"}
    with pytest.raises(KeyError):  # no candidate is left out silently
        new_scores(RECORD, items, ONE, values, {}, set(values), Tally())
