import random
from collections import Counter

from rlaif.worlds.shapes.language import (
    QUESTIONS,
    WORDS,
    captions,
    claim_text,
    claims_of,
    describe,
    parse_claims,
    questions,
    split,
    statements,
)
from rlaif.worlds.shapes.scene import TIMES, Scene, Thing, sample_scenes

SCENE = Scene(
    "test0", (Thing("red", "circle", "left", "early", 35.0, 7.0), Thing("blue", "square", "up", "late", 7.0, 49.0)), 0
)


def test_exact_texts_of_description_and_captions():
    assert (
        describe(SCENE.things)
        == "there are two objects . a red circle moves left early . a blue square moves up late ."
    )
    assert describe(SCENE.things[:1]) == "there is one object . a red circle moves left early ."
    assert captions(SCENE) == (
        "a red circle moves left . a blue square stays .",
        "a red circle stays . a blue square moves up .",
    )


def test_parsing_a_description_gives_back_its_claims():
    for scene in sample_scenes("train", 50, 0):
        assert parse_claims(describe(scene.things)) == (claims_of(scene.things), 0)


def test_every_word_is_in_the_vocabulary():
    rng = random.Random(0)
    for scene in sample_scenes("test", 50, 0):
        texts = [describe(scene.things), *captions(scene)]
        for question, answer in questions(scene, rng, 4):
            texts += [question, answer]
        assert set(" ".join(texts).split()) <= set(WORDS)


def test_questions_are_true_of_the_scene():
    rng = random.Random(0)
    kinds = set()
    stems = {form.split("{")[0]: kind for kind, form in QUESTIONS.items()}
    for _ in range(200):
        for question, answer in questions(SCENE, rng, 4):
            kinds |= {kind for stem, kind in stems.items() if question.startswith(stem)}
            expected = {
                "how many objects are there ?": "two",
                "what color is the circle ?": "red",
                "what color is the square ?": "blue",
                "what shape is the red object ?": "circle",
                "what shape is the blue object ?": "square",
                "where does the red object move ?": "left",
                "where does the blue object move ?": "up",
                "when does the red object move ?": "early",
                "when does the blue object move ?": "late",
                "is there a red circle ?": "yes",
                "is there a blue square ?": "yes",
            }
            assert answer == expected.get(question, "no")
    assert kinds == set(QUESTIONS)


def test_no_color_question_about_a_shape_that_occurs_twice():
    twice = Scene("test0", (SCENE.things[0], Thing("blue", "circle", "up", "late", 7.0, 49.0)), 0)
    for seed in range(50):
        for question, _ in questions(twice, random.Random(seed), 4):
            assert not question.startswith("what color")


def test_split_lists_the_claims_of_an_answer_in_words():
    answer = "there are two objects . a red circle moves left early . a blue cross . nonsense here ."
    assert split(answer) == [
        "there are two objects",
        "there is a red circle",
        "the red object moves left",
        "the red object moves early",
        "there is a blue cross",
        "nonsense here",
    ]
    assert split("") == [] and split(". .") == []


def subject(claim):
    """Return the subject of a claim in words: the number, a color's shape, or when or in which direction it moves."""
    words = claim.split()
    if words[0] == "there":
        return "count" if words[-1] in ("object", "objects") else words[3]
    return words[1], words[-1] in TIMES


def test_statements_are_labelled_correctly_and_give_no_hints():
    answers = Counter()
    for number, scene in enumerate(sample_scenes("train", 200, 1)):
        truths = {claim_text(claim) for claim in claims_of(scene.things)}
        subjects = []
        for claim, answer in statements(scene, random.Random(number)):
            assert (claim in truths) == (answer == "yes")
            subjects.append(subject(claim))
            answers[answer] += 1
        assert len(set(subjects)) == len(subjects)
    assert 0.45 < answers["yes"] / answers.total() < 0.55
