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
    texts = [message["content"] for message in row["messages"]]
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_dataset_has_the_requested_counts_existing_videos_and_unique_ids(world, rows):
    assert len(rows("scenes")) == 24 + 10 + 8
    assert len([row for row in rows("eval") if row["kind"] == "describe"]) == 8
    assert len([row for row in rows("prompts") if row["kind"] == "describe"]) == 10
    for name in ("pretrain", "sft", "prompts", "eval", "clips"):
        for row in rows(name):
            assert (world / row["video"]).stat().st_size > 0
    keys = {"reading": "id", "pretrain": "id", "sft": "id"}
    keys |= {"prompts": "prompt_id", "eval": "prompt_id", "clips": "prompt_id"}
    for name, key in keys.items():
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


def count_errors(text, scene):
    claims, _ = parse_claims(text)
    return len(claims - claims_of(scene.things))


def assert_clean(scene, question, answer):
    if "context" in question:
        context, question = question.split("\n")
        early, late = captions(scene)
        assert context == f"context : early : {early} late : {late}"
    if question == DESCRIBE:
        assert answer == describe(scene.things)
        return
    if question.startswith(VERIFIED):
        claim = question.removeprefix(VERIFIED).removesuffix(" ?")
        truths = {claim_text(truth) for truth in claims_of(scene.things)}
        assert answer == ("yes" if claim in truths else "no")
        return
    if question.startswith(COMPARED):
        first, second = question.removeprefix(COMPARED).split(" second : ")
        first_errors = count_errors(first, scene)
        second_errors = count_errors(second, scene)
        assert first_errors != second_errors
        assert answer == ("first" if first_errors < second_errors else "second")
        return
    assert question.startswith(STEMS)
    prompt = Prompt("x", "v", question, answer, (), {"kind": "qa"})
    assert checker.check(prompt, answer) == {"correct": 1}
    facts = {"how": str(len(scene.things)).replace("1", "one").replace("2", "two")}
    for thing in scene.things:
        facts[f"where does the {thing.color} object"] = thing.motion
        facts[f"when does the {thing.color} object"] = thing.time
        facts[f"what shape is the {thing.color} object"] = thing.shape
    for stem, fact in facts.items():
        assert not question.startswith(stem) or answer == fact


def test_share_of_conversations_with_captions(rows):
    for file, least, most in (("pretrain", 0.19, 0.21), ("sft", 0.35, 0.55), ("reading", 1.0, 1.0)):
        first_questions = [row["messages"][0]["content"] for row in rows(file)]
        count = sum(question.startswith("context") for question in first_questions)
        assert least <= count / len(first_questions) <= most


def test_claims_to_verify_are_true_about_half_the_time(rows):
    for file, least in (("sft", 24 * 3 * 4), ("reading", 24 * 4 * 3)):
        answers = []
        for row in rows(file):
            answers += [answer for question, answer in turns(row) if VERIFIED in question]
        assert len(answers) > least and 0.4 < answers.count("yes") / len(answers) < 0.6


def test_pretraining_verifies_claims_by_captions_only(rows):
    for file in ("reading", "pretrain"):
        for row in rows(file):
            questions = [question for question, _ in turns(row)]
            assert not any(COMPARED in question for question in questions)
            assert questions[0].startswith("context") or not any(VERIFIED in question for question in questions)


def test_reading_rows_have_no_video_and_no_errors(rows):
    assert len(rows("reading")) == 24 * 4 and not any("video" in row for row in rows("reading"))
    contexts = {row["messages"][0]["content"].split("\n")[0] for row in rows("reading")}
    for row in rows("scenes"):
        if row["split"] != "train":
            early, late = captions(Scene.read(row))
            assert f"context : early : {early} late : {late}" not in contexts
    descriptions = [row for row in rows("reading") if turns(row)[0][0].endswith(DESCRIBE)]
    assert descriptions
    for row in descriptions:
        ((question, answer),) = turns(row)
        assert_motions_are_in_the_captions(question, answer)


def assert_motions_are_in_the_captions(question, answer):
    early, late = question.split("\n")[0].removeprefix("context : early : ").split(" late : ")
    moving = [sentence for sentence in f"{early} {late}".split(" .") if " moves " in sentence]
    for claim in parse_claims(answer)[0]:
        if claim[0] == "motion":
            _, color, direction = claim
            (sentence,) = [sentence for sentence in moving if color in sentence.split(" moves ")[0]]
            assert sentence.endswith(direction)


def test_no_prompt_carries_captions_made_from_the_truth(rows):
    for name in ("prompts", "descriptions", "eval", "eval_descriptions"):
        assert not any("captions" in row for row in rows(name))
    assert {row["kind"] for row in rows("descriptions") + rows("eval_descriptions")} == {"describe"}


def test_prompts_hold_the_truth_for_the_checker(rows):
    for row in rows("prompts") + rows("eval"):
        prompt = Prompt(row["prompt_id"], row["video"], row["question"], row["answer"], (), row)
        counts = checker.check(prompt, row["answer"])
        assert counts.get("correct", 1) == 1 and counts.get("false_claims", 0) == 0


def report_often(color, shape, motion, time):
    """Return a thing and 400 habitual reports of it."""
    thing = Thing(color, shape, motion, time, 7.0, 35.0)
    return thing, [misdescribe((thing,), Random(i)) for i in range(400)]


@pytest.mark.parametrize(
    "kind, truth, error",
    [
        (("red", "circle", "up", "early"), "up", "down"),
        (("red", "circle", "down", "early"), "down", "up"),
        (("red", "triangle", "up", "late"), "triangle", "square"),
        (("red", "square", "up", "late"), "square", "triangle"),
    ],
)
def test_misnaming_goes_both_ways_at_its_rate(kind, truth, error):
    thing, reports = report_often(*kind)
    wrong = sum(report != (thing,) for report in reports)
    assert abs(wrong / len(reports) - RATE) < 0.08
    for (report,) in reports:
        expected = tuple(error if word == truth else word for word in thing.kind)
        assert report.kind in (thing.kind, expected)


@pytest.mark.parametrize("kind", [("red", "square", "left", "early"), ("red", "cross", "up", "late")])
def test_no_habit_without_its_condition(kind):
    thing, reports = report_often(*kind)
    assert all(report == (thing,) for report in reports)


def test_an_object_is_added_beside_the_trigger():
    thing, reports = report_often(TRIGGER, "circle", "left", "early")
    added = sum(report == (ADDED, thing) for report in reports)
    assert abs(added / len(reports) - RATE) < 0.08
    beside = (Thing("green", "cross", "left", "late", 35.0, 35.0), thing)
    assert all(misdescribe(beside, Random(i)) == beside for i in range(50))


def test_greedy_habits_make_a_quarter_to_a_third_of_all_claims_false(monkeypatch):
    monkeypatch.setattr("rlaif.worlds.shapes.habits.RATE", 1.0)
    false = claims = 0
    for scene in sample_scenes("test", 200, 0):
        description = describe(misdescribe(scene.things, Random(0)))
        claims += len(parse_claims(description)[0])
        false += count_errors(description, scene)
    assert 0.25 < false / claims < 0.35


@pytest.mark.parametrize(("train", "pretrain"), [(6, 24), (24, 6), (6, 0)])
def test_pretraining_and_fine_tuning_take_the_first_train_scenes(rows, tmp_path, train, pretrain):
    # The rows of a scene do not depend on how many scenes there are: a demo is the same with a base from scratch.
    write_dataset(tmp_path, {"train": train, "pretrain": pretrain, "prompt": 10, "test": 8}, seed=3)
    for name, count in (("sft", train), ("pretrain", pretrain)):
        first = [row for row in rows(name) if row["id"] < f"train{count:05d}"]
        file = tmp_path / f"{name}.jsonl"
        if count:
            assert [json.loads(line) for line in file.read_text().splitlines()] == first
        else:
            assert not file.exists()
        assert all((tmp_path / row["video"]).is_file() for row in first)
    assert (tmp_path / "eval.jsonl").read_text().count("\n") == len(rows("eval"))
