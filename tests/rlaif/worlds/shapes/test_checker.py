import pytest

from rlaif.errors import DataError
from rlaif.records import Prompt
from rlaif.worlds.shapes import checker
from rlaif.worlds.shapes.language import describe
from rlaif.worlds.shapes.scene import Scene, Thing, sample_scenes

SCENE = Scene(
    "test0", (Thing("red", "circle", "left", "early", 35.0, 7.0), Thing("blue", "square", "up", "late", 7.0, 49.0)), 0
)
TRUE = describe(SCENE.things)


def prompt(kind="describe", scene=SCENE, answer=None):
    return Prompt("test0/x", "v.mp4", "q", answer, (), {"kind": kind, "truth": scene.truth()})


TABLE = [
    # answer, claims, false, recalled (of 7 truths)
    (TRUE, 7, 0, 7),
    (" " + TRUE.upper() + "  ", 7, 0, 7),
    (TRUE + " " + TRUE, 7, 0, 7),
    ("", 0, 0, 0),
    (" . . ", 0, 0, 0),
    ("there are two objects .", 1, 0, 1),
    ("there are three objects .", 1, 1, 0),
    ("there are two objects . there is one object .", 2, 1, 1),
    ("a red circle .", 1, 0, 1),
    ("a red circle moves left .", 2, 0, 2),
    ("a red circle moves right early .", 3, 1, 2),
    ("a red square moves left early .", 3, 1, 2),
    ("a red circle moves left early . a red circle moves right early .", 4, 1, 3),
    ("a green circle moves left early .", 3, 3, 0),
    ("a green circle moves left early . a green circle moves left early .", 3, 3, 0),
    ("red left circle a", 1, 1, 0),
    ("red left . red left .", 2, 2, 0),
    ("a red circle moves left early a blue square", 1, 1, 0),
    ("a blue square moves up late . a red circle moves left early . there are two objects .", 7, 0, 7),
    ("a red circle moves left early", 3, 0, 3),
]


@pytest.mark.parametrize("answer, claims, false, recalled", TABLE)
def test_check_counts_claims_of_hand_written_answers(answer, claims, false, recalled):
    expected = {"claims": claims, "false_claims": false, "truths": 7, "recalled": recalled}
    assert checker.check(prompt(), answer) == expected


def test_truthful_descriptions_are_perfect():
    for scene in sample_scenes("test", 50, 0):
        question, description = prompt(scene=scene), describe(scene.things)
        counts = checker.check(question, description)
        assert counts["false_claims"] == 0 and counts["recalled"] == counts["truths"] == counts["claims"]
        assert sum(checker.reward(question, description).values()) == 1


@pytest.mark.parametrize("response, correct", [("left", 1), (" Left ", 1), ("right", 0), ("left left", 0), ("", 0)])
def test_short_answers_are_correct_or_not(response, correct):
    question = prompt("qa", answer="left")
    assert checker.check(question, response) == {"correct": correct}
    assert checker.reward(question, response) == {"correct": float(correct)}


def test_preference_goes_to_the_truer_answer():
    one_wrong = TRUE.replace("left", "right")
    added = TRUE.replace("two", "three") + " a green circle moves left early ."
    assert checker.preference(prompt(), TRUE, one_wrong) == 1
    assert checker.preference(prompt(), one_wrong, TRUE) == -1
    assert checker.preference(prompt(), one_wrong, added) == 1
    assert checker.preference(prompt(), TRUE, TRUE + " " + TRUE) == 0
    assert checker.preference(prompt(), one_wrong, "") == 1
    assert checker.preference(prompt(), "", "red red .") == 1


def test_reward_has_parts_for_recall_and_false_claims():
    assert checker.reward(prompt(), "") == {"recall": 0.0, "false": 0.0}
    parts = checker.reward(prompt(), TRUE.replace("left", "right"))
    assert parts == {"recall": pytest.approx(6 / 7), "false": pytest.approx(-1 / 7)}


def test_an_unknown_kind_names_the_prompt():
    with pytest.raises(DataError, match="test0/x"):
        checker.check(Prompt("test0/x", "v.mp4", "q"), "red")
