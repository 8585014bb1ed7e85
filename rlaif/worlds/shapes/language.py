"""What is said about a scene, in about fifty words: long descriptions, captions of each half, short questions.

A description is a sequence of sentences, and a sentence a fixed form of checkable claims. A claim is a tuple:
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
WORDS = tuple(
    dict.fromkeys(
        [*COLORS, *SHAPES, *MOTIONS, *TIMES, *NUMBERS, "yes", "no", "context", ":", ".", "?"]
        + "there is are object objects a moves stays".split()
        + f"{DESCRIBE} {CAPTION} {re.sub('[{}]', '', ' '.join(QUESTIONS.values()))}".split()
    )
)
"""The vocabulary of everything below, in a fixed order."""


def describe(things: Iterable[Thing]) -> str:
    """The long description: how many things there are, then one sentence for each."""
    things = tuple(things)
    number = "there is one object ." if len(things) == 1 else f"there are {NUMBERS[len(things)]} objects ."
    return " ".join([number, *(f"a {t.color} {t.shape} moves {t.motion} {t.time} ." for t in things)])


def captions(scene: Scene) -> tuple[str, ...]:
    """One short caption for each half of the video."""
    return tuple(" ".join(f"a {t.color} {t.shape} {act(t, half)} ." for t in scene.things) for half in TIMES)


def act(thing: Thing, half: str) -> str:
    return f"moves {thing.motion}" if thing.time == half else "stays"


def claims_of(things: Iterable[Thing]) -> set[Claim]:
    """Every claim that is true of these things: one for their number and three for each."""
    things = tuple(things)
    found: set[Claim] = {("count", NUMBERS[len(things)])}
    for t in things:
        found |= {("object", t.color, t.shape), ("motion", t.color, t.motion), ("time", t.color, t.time)}
    return found


COUNT = re.compile(rf"there (?:is|are) ({'|'.join(NUMBERS)}) objects?")
THING = re.compile(
    rf"an? ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})(?: moves ({'|'.join(MOTIONS)})(?: ({'|'.join(TIMES)}))?)?"
)


def parse(text: str) -> tuple[set[Claim], int]:
    """The claims of a description, and how many of its sentences could not be read. Empty text makes no claim."""
    claims, unread = set(), 0
    for sentence in filter(None, (" ".join(part.split()) for part in text.lower().split("."))):
        if match := COUNT.fullmatch(sentence):
            claims.add(("count", match[1]))
        elif match := THING.fullmatch(sentence):
            color, shape, motion, time = match.groups()
            claims.add(("object", color, shape))
            claims |= {("motion", color, motion)} if motion else set()
            claims |= {("time", color, time)} if time else set()
        else:
            unread += 1
    return claims, unread


def questions(scene: Scene, rng: random.Random, count: int) -> list[tuple[str, str]]:
    """`count` different short questions with their true answers, of kinds drawn evenly."""
    pool: dict[str, str] = {}
    while len(pool) < count:
        asked = ask(rng.choice(list(QUESTIONS)), scene, rng)
        if asked:
            pool[asked[0]] = asked[1]
    return list(pool.items())


def ask(kind: str, scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    """One question of a kind about a thing drawn at random; None where it would have no single answer."""
    thing = rng.choice(scene.things)
    if kind == "exists":
        return ask_exists(thing, scene, rng)
    if kind == "color" and sum(t.shape == thing.shape for t in scene.things) > 1:
        return None
    answers = dict(
        count=NUMBERS[len(scene.things)], color=thing.color, shape=thing.shape, motion=thing.motion, order=thing.time
    )
    return QUESTIONS[kind].format(color=thing.color, shape=thing.shape), answers[kind]


def ask_exists(thing: Thing, scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Is there such a thing: half the time there is; otherwise its color or its shape is another."""
    color, shape = thing.color, thing.shape
    if rng.random() < 0.5:
        if rng.random() < 0.5:
            color = rng.choice([c for c in COLORS if c != color])
        else:
            shape = rng.choice([s for s in SHAPES if s != shape])
    present = any((t.color, t.shape) == (color, shape) for t in scene.things)
    return QUESTIONS["exists"].format(color=color, shape=shape), "yes" if present else "no"
