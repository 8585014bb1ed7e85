"""The language of the shapes world, in about fifty words: long descriptions, captions of each half, short questions.

A description is a sequence of sentences, each a fixed form of claims that can be checked. A claim is a tuple:
("count", word), ("object", color, shape), ("motion", color, direction) or ("time", color, half).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

from rlaif.worlds.shapes.scene import COLORS, MOTIONS, SHAPES, TIMES, Scene, Thing

Claim = tuple[str, ...]
NUMBERS = ("no", "one", "two", "three", "four")
DESCRIBE = "describe the video in detail ."
CAPTION = "caption this clip ."
QUESTIONS = {
    "count": "how many objects are there ?",
    "color": "what color is the {shape} ?",
    "shape": "what shape is the {color} object ?",
    "motion": "where does the {color} object move ?",
    "order": "when does the {color} object move ?",
    "exists": "is there a {color} {shape} ?",
}
VERIFY = "is it true : {claim} ?"
"""Question to the model about one claim; the answer is yes or no."""
COMPARE = "which is better ? first : {a} second : {b}"
"""Question to the model about two answers; the answer is first or second."""
_FORMS = [DESCRIBE, CAPTION, VERIFY, COMPARE, *QUESTIONS.values()]
_FORM_WORDS = re.sub("[{}]", "", " ".join(_FORMS)).split()
_SENTENCE_WORDS = ["there", "is", "are", "object", "objects", "a", "moves", "stays"]
_VALUES = [*COLORS, *SHAPES, *MOTIONS, *TIMES, *NUMBERS]
_MARKS = ["yes", "no", "context", ":", ".", "?"]
WORDS = tuple(dict.fromkeys([*_VALUES, *_MARKS, *_SENTENCE_WORDS, *_FORM_WORDS]))
"""The vocabulary of everything below, in a fixed order."""


def describe(things: Iterable[Thing]) -> str:
    """Return the long description: how many things there are, then one sentence for each."""
    things = tuple(things)
    sentences = ["there is one object ." if len(things) == 1 else f"there are {NUMBERS[len(things)]} objects ."]
    for thing in things:
        sentences.append(f"a {thing.color} {thing.shape} moves {thing.motion} {thing.time} .")
    return " ".join(sentences)


def captions(scene: Scene) -> tuple[str, ...]:
    """Return one short caption for each half of the video."""
    texts = []
    for half in TIMES:
        sentences = [f"a {thing.color} {thing.shape} {action(thing, half)} ." for thing in scene.things]
        texts.append(" ".join(sentences))
    return tuple(texts)


def action(thing: Thing, half: str) -> str:
    """Return what a thing does during one half of the video."""
    return f"moves {thing.motion}" if thing.time == half else "stays"


def claims_of(things: Iterable[Thing]) -> set[Claim]:
    """Return every claim that is true of these things: one for their number and three for each."""
    things = tuple(things)
    claims: set[Claim] = {("count", NUMBERS[len(things)])}
    for thing in things:
        claims.add(("object", thing.color, thing.shape))
        claims.add(("motion", thing.color, thing.motion))
        claims.add(("time", thing.color, thing.time))
    return claims


COUNT = re.compile(rf"there (?:is|are) ({'|'.join(NUMBERS)}) objects?")
THING = re.compile(
    rf"an? ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})(?: moves ({'|'.join(MOTIONS)})(?: ({'|'.join(TIMES)}))?)?"
)


def parse_claims(text: str) -> tuple[set[Claim], int]:
    """Return the claims of a description, and how many of its sentences could not be read. Empty text makes no claim."""
    claims: set[Claim] = set()
    unread = 0
    for sentence in _sentences(text):
        match = COUNT.fullmatch(sentence)
        if match:
            claims.add(("count", match[1]))
            continue
        match = THING.fullmatch(sentence)
        if not match:
            unread += 1
            continue
        color, shape, motion, time = match.groups()
        claims.add(("object", color, shape))
        if motion:
            claims.add(("motion", color, motion))
        if time:
            claims.add(("time", color, time))
    return claims, unread


def _sentences(text: str) -> list[str]:
    """Return the sentences of a text in lower case, without empty ones, words one space apart."""
    parts = [" ".join(part.split()) for part in text.lower().split(".")]
    return [part for part in parts if part]


def claim_text(claim: Claim) -> str:
    """Return a claim in words."""
    kind, subject, *rest = claim
    if kind == "count":
        return "there is one object" if subject == "one" else f"there are {subject} objects"
    if kind == "object":
        return f"there is a {subject} {rest[0]}"
    return f"the {subject} object moves {rest[0]}"


def split(answer: str) -> list[str]:
    """Return the claims of a description in words, in a fixed order, by its form alone.

    A sentence of another form is one claim. Repeated claims are left out.
    """
    order = ("count", "object", "motion", "time")
    texts: list[str] = []
    for sentence in _sentences(answer):
        claims, unread = parse_claims(sentence)
        if unread:
            texts.append(sentence)
            continue
        for claim in sorted(claims, key=lambda claim: order.index(claim[0])):
            texts.append(claim_text(claim))
    return list(dict.fromkeys(texts))


def statements(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Return a claim in words for every truth of a scene, in random order, each with `yes` or `no`.

    A claim is the truth itself or the truth with one word changed. There are never two claims of one kind about one
    thing: the answer to one would be a hint to the other.
    """
    truths = claims_of(scene.things)
    claims: dict[tuple[str, ...], Claim] = {}
    # A set has another order in each process; sorted, the same seed draws the same claims.
    for truth in sorted(truths):
        changed = rng.random() < 0.5
        claim = alter(truth, rng) if changed else truth
        # The number of things is one subject; any other kind of claim is about a color.
        subject = claim[:1] if claim[0] == "count" else claim[:2]
        claims.setdefault(subject, claim)
    shuffled = list(claims.values())
    rng.shuffle(shuffled)
    return [(claim_text(claim), yes_or_no(claim in truths)) for claim in shuffled]


def yes_or_no(answer: bool) -> str:
    """Return an answer in words."""
    return "yes" if answer else "no"


def alter(claim: Claim, rng: random.Random) -> Claim:
    """Return the claim with one word changed to another of its kind.

    Mostly that is what the claim says, in one case of five the thing that it is about.
    """
    kind, subject, *rest = claim
    if kind == "count":
        return (kind, _draw_other(NUMBERS[1:], subject, rng))
    if rng.random() < 0.2:
        return (kind, _draw_other(COLORS, subject, rng), *rest)
    words = {"object": SHAPES, "motion": tuple(MOTIONS), "time": TIMES}[kind]
    return (kind, subject, _draw_other(words, rest[0], rng))


def _draw_other(words: Iterable[str], word: str, rng: random.Random) -> str:
    """Return one of the words, but not this one."""
    return rng.choice([other for other in words if other != word])


def questions(scene: Scene, rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Return `count` different short questions with their true answers; the kinds are equally likely."""
    pool: dict[str, str] = {}
    while len(pool) < count:
        kind = rng.choice(list(QUESTIONS))
        drawn = draw_question(kind, scene, rng)
        if drawn:
            question, answer = drawn
            pool[question] = answer
    return list(pool.items())


def draw_question(kind: str, scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    """Return one question of a kind about a random thing, and its answer; None if it would have no single answer."""
    thing = rng.choice(scene.things)
    if kind == "exists":
        return draw_exists_question(thing, scene, rng)
    # A color never occurs twice in a scene, but a shape may: then the question has two answers.
    same_shape = sum(other.shape == thing.shape for other in scene.things)
    if kind == "color" and same_shape > 1:
        return None
    answers = {
        "count": NUMBERS[len(scene.things)],
        "color": thing.color,
        "shape": thing.shape,
        "motion": thing.motion,
        "order": thing.time,
    }
    question = QUESTIONS[kind].format(color=thing.color, shape=thing.shape)
    return question, answers[kind]


def draw_exists_question(thing: Thing, scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Return the question whether there is a thing of some color and shape, and its answer.

    Half the time it is a thing of the scene; otherwise its color or its shape is another.
    """
    color, shape = thing.color, thing.shape
    if rng.random() < 0.5:
        if rng.random() < 0.5:
            color = _draw_other(COLORS, color, rng)
        else:
            shape = _draw_other(SHAPES, shape, rng)
    # The changed words may describe another thing of the scene.
    present = any((other.color, other.shape) == (color, shape) for other in scene.things)
    return QUESTIONS["exists"].format(color=color, shape=shape), yes_or_no(present)
