import json
from random import Random

import pytest

from rlaif.records import Prompt
from rlaif.worlds.shapes import checker
from rlaif.worlds.shapes.dataset import write_dataset
from rlaif.worlds.shapes.habits import ADDED, RATE, TRIGGER, misdescribe
from rlaif.worlds.shapes.language import (
    CAPTION,
    COMPARE,
    DESCRIBE,
    QUESTIONS,
    VERIFY,
    captions,
    claim_text,
    claims_of,
    describe,
    parse_claims,
)
from rlaif.worlds.shapes.scene import Scene, Thing, sample_scenes

STEMS = tuple(form.split("{")[0] for form in QUESTIONS.values())
VERIFIED, COMPARED = VERIFY.split("{")[0], COMPARE.split("{")[0]


def turns(row):
    said = [message["content"] for message in row["messages"]]
    return list(zip(said[::2], said[1::2], strict=True))


def test_counts_and_files(world, rows):
    assert len(rows("scenes")) == 24 + 10 + 8
    assert len([row for row in rows("eval") if row["kind"] == "describe"]) == 8
    assert len([row for row in rows("prompts") if row["kind"] == "describe"]) == 10
    for name in ("pretrain", "sft", "prompts", "eval", "clips"):
        for row in rows(name):
            assert (world / row["video"]).stat().st_size > 0
    for name, key in (
        ("reading", "id"),
        ("pretrain", "id"),
        ("sft", "id"),
        ("prompts", "prompt_id"),
        ("eval", "prompt_id"),
        ("clips", "prompt_id"),
    ):
        ids = [row[key] for row in rows(name)]
        assert len(ids) == len(set(ids))


def test_the_same_seed_writes_the_same_rows(world, tmp_path):
    write_dataset(tmp_path, {"train": 24, "prompt": 10, "test": 8}, seed=3)
    for name in ("scenes", "reading", "pretrain", "sft", "prompts", "eval", "clips"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (world / f"{name}.jsonl").read_bytes()


@pytest.mark.parametrize("file", ["pretrain", "sft"])
def test_errors_are_planted_in_long_descriptions_only(rows, file):
    truth = {row["scene_id"]: Scene.read(row) for row in rows("scenes")}
    wrong = 0
    for row in rows(file):
        scene = truth[row["id"].split("/")[0]]
        for question, answer in turns(row):
            if question == DESCRIBE:
                wrong += parse_claims(answer)[0] != claims_of(scene.things)
            elif question == CAPTION:
                assert answer == captions(scene)[row["id"].endswith("late")]
            else:
                assert_clean(scene, question, answer)
    assert wrong > 5


def assert_clean(scene, question, answer):
    if "context" in question:
        given, question = question.split("\n")
        early, late = captions(scene)
        assert given == f"context : early : {early} late : {late}"
    if question == DESCRIBE:
        assert answer == describe(scene.things)
        return
    if question.startswith(VERIFIED):
        claim = question.removeprefix(VERIFIED).removesuffix(" ?")
        assert answer == ("yes" if claim in {claim_text(true) for true in claims_of(scene.things)} else "no")
        return
    if question.startswith(COMPARED):
        first, second = question.removeprefix(COMPARED).split(" second : ")
        false = [len(parse_claims(text)[0] - claims_of(scene.things)) for text in (first, second)]
        assert answer == ("first" if false[0] < false[1] else "second") and false[0] != false[1]
        return
    assert question.startswith(STEMS)
    prompt = Prompt("x", "v", question, answer, (), {"kind": "qa"})
    assert checker.check(prompt, answer) == {"correct": 1}
    facts = {"how": str(len(scene.things)).replace("1", "one").replace("2", "two")}
    for thing in scene.things:
        facts |= {
            f"where does the {thing.color} object": thing.motion,
            f"when does the {thing.color} object": thing.time,
        }
        facts |= {f"what shape is the {thing.color} object": thing.shape}
    for stem, fact in facts.items():
        assert not question.startswith(stem) or answer == fact


def test_share_of_conversations_with_captions(rows):
    for file, least, most in (("pretrain", 0.19, 0.21), ("sft", 0.35, 0.55), ("reading", 1.0, 1.0)):
        with_context = [row for row in rows(file) if row["messages"][0]["content"].startswith("context")]
        assert least <= len(with_context) / len(rows(file)) <= most


def test_claims_to_verify_are_true_about_half_the_time(rows):
    for file, least in (("sft", 24 * 3 * 4), ("reading", 24 * 4 * 3)):
        answers = [answer for row in rows(file) for question, answer in turns(row) if VERIFIED in question]
        assert len(answers) > least and 0.4 < answers.count("yes") / len(answers) < 0.6


def test_pretraining_verifies_claims_by_captions_only(rows):
    for file in ("reading", "pretrain"):
        for row in rows(file):
            asked = [question for question, _ in turns(row)]
            assert not any(COMPARED in question for question in asked)
            assert asked[0].startswith("context") or not any(VERIFIED in question for question in asked)


def test_reading_rows_have_no_video_and_no_errors(rows):
    assert len(rows("reading")) == 24 * 4 and not any("video" in row for row in rows("reading"))
    held = {tuple(thing.kind for thing in Scene.read(row).things) for row in rows("scenes") if row["split"] != "train"}
    told = {row["messages"][0]["content"].split("\n")[0] for row in rows("reading")}
    scenes = [Scene("", tuple(Thing(*kind, 0, 0) for kind in kinds), 0) for kinds in held]
    assert not told & {"context : early : " + " late : ".join(captions(scene)) for scene in scenes}
    described = [row for row in rows("reading") if turns(row)[0][0].endswith(DESCRIBE)]
    assert described
    for row in described:
        ((asked, answer),) = turns(row)
        early, late = asked.split("\n")[0].removeprefix("context : early : ").split(" late : ")
        moving = {
            sentence.split(" moves ")[0]: sentence
            for sentence in f"{early} {late}".split(" .")
            if " moves " in sentence
        }
        for claim in parse_claims(answer)[0]:
            assert claim[0] != "motion" or any(
                claim[1] in where and text.endswith(claim[2]) for where, text in moving.items()
            )


def test_no_prompt_carries_captions_made_from_the_truth(rows):
    assert not any(
        "captions" in row for name in ("prompts", "descriptions", "eval", "eval_descriptions") for row in rows(name)
    )
    assert {row["kind"] for row in rows("descriptions") + rows("eval_descriptions")} == {"describe"}


def test_prompts_hold_the_truth_for_the_checker(rows):
    for row in rows("prompts") + rows("eval"):
        prompt = Prompt(row["prompt_id"], row["video"], row["question"], row["answer"], (), row)
        counts = checker.check(prompt, row["answer"])
        assert counts.get("correct", 1) == 1 and counts.get("false_claims", 0) == 0


def told(color, shape, motion, time):
    thing = Thing(color, shape, motion, time, 7.0, 35.0)
    return thing, [misdescribe((thing,), Random(i)) for i in range(400)]


@pytest.mark.parametrize(
    "kind, seen, said",
    [
        (("red", "circle", "up", "early"), "up", "down"),
        (("red", "circle", "down", "early"), "down", "up"),
        (("red", "triangle", "up", "late"), "triangle", "square"),
        (("red", "square", "up", "late"), "square", "triangle"),
    ],
)
def test_misnaming_goes_both_ways_at_its_rate(kind, seen, said):
    thing, reports = told(*kind)
    wrong = sum(report != (thing,) for report in reports)
    assert abs(wrong / len(reports) - RATE) < 0.08
    for (report,) in reports:
        expected = tuple(said if word == seen else word for word in thing.kind)
        assert report.kind in (thing.kind, expected)


@pytest.mark.parametrize("kind", [("red", "square", "left", "early"), ("red", "cross", "up", "late")])
def test_no_habit_without_its_condition(kind):
    thing, reports = told(*kind)
    assert all(report == (thing,) for report in reports)


def test_an_object_is_added_beside_the_trigger():
    thing, reports = told(TRIGGER, "circle", "left", "early")
    added = sum(report == (ADDED, thing) for report in reports)
    assert abs(added / len(reports) - RATE) < 0.08
    beside = (Thing("green", "cross", "left", "late", 35.0, 35.0), thing)
    assert all(misdescribe(beside, Random(i)) == beside for i in range(50))


def test_greedy_habits_make_a_quarter_to_a_third_of_all_claims_false(monkeypatch):
    monkeypatch.setattr("rlaif.worlds.shapes.habits.RATE", 1.0)
    false = claims = 0
    for scene in sample_scenes("test", 200, 0):
        told, _ = parse_claims(describe(misdescribe(scene.things, Random(0))))
        claims += len(told)
        false += len(told - claims_of(scene.things))
    assert 0.25 < false / claims < 0.35


@pytest.mark.parametrize(("train", "pretrain"), [(6, 24), (24, 6), (6, 0)])
def test_pretraining_and_fine_tuning_take_the_first_train_scenes(rows, tmp_path, train, pretrain):
    """What is written of a scene does not depend on how many there are: a demo is the same with a base from scratch."""
    write_dataset(tmp_path, {"train": train, "pretrain": pretrain, "prompt": 10, "test": 8}, seed=3)
    for name, count in (("sft", train), ("pretrain", pretrain)):
        first = [row for row in rows(name) if row["id"] < f"train{count:05d}"]
        file = tmp_path / f"{name}.jsonl"
        assert [json.loads(line) for line in file.read_text().splitlines()] == first if count else not file.exists()
        assert all((tmp_path / row["video"]).is_file() for row in first)
    assert (tmp_path / "eval.jsonl").read_text().count("\n") == len(rows("eval"))
