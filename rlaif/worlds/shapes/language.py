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
VERIFY = "is it true : {claim} ?"
"""Put to the model about one claim; the answer is yes or no."""
COMPARE = "which is better ? first : {a} second : {b}"
"""Put to the model about two answers; the answer is first or second."""
WORDS = tuple(
    dict.fromkeys(
        [*COLORS, *SHAPES, *MOTIONS, *TIMES, *NUMBERS, "yes", "no", "context", ":", ".", "?"]
        + "there is are object objects a moves stays".split()
        + re.sub("[{}]", "", " ".join([DESCRIBE, CAPTION, VERIFY, COMPARE, *QUESTIONS.values()])).split()
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


def say(claim: Claim) -> str:
    """A claim in words."""
    kind, subject, *rest = claim
    if kind == "count":
        return "there is one object" if subject == "one" else f"there are {subject} objects"
    return f"there is a {subject} {rest[0]}" if kind == "object" else f"the {subject} object moves {rest[0]}"


def split(answer: str) -> list[str]:
    """The claims of a description in words, in a fixed order, by its form alone; a sentence of another form is one claim."""
    found: list[str] = []
    for sentence in filter(None, (" ".join(part.split()) for part in answer.lower().split("."))):
        claims, unread = parse(sentence)
        order = ("count", "object", "motion", "time")
        found += [sentence] if unread else [say(claim) for claim in sorted(claims, key=lambda c: order.index(c[0]))]
    return list(dict.fromkeys(found))


def statements(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """One claim in words, true or with one word changed, for every truth of a scene, in any order, each with `yes` or `no`.

    Never two of one kind about one thing: the answer to one would be a hint to the other.
    """
    truths = claims_of(scene.things)
    found: dict[tuple[str, ...], Claim] = {}
    for truth in sorted(truths):
        claim = alter(truth, rng) if rng.random() < 0.5 else truth
        found.setdefault(claim[:1] if claim[0] == "count" else claim[:2], claim)
    drawn = list(found.values())
    rng.shuffle(drawn)
    return [(say(claim), "yes" if claim in truths else "no") for claim in drawn]


def alter(claim: Claim, rng: random.Random) -> Claim:
    """The claim with one word changed to another of its kind: mostly what it says, now and then what it says it of."""
    kind, subject, *rest = claim
    if kind == "count":
        return (kind, rng.choice([n for n in NUMBERS[1:] if n != subject]))
    if rng.random() < 0.2:
        return (kind, rng.choice([c for c in COLORS if c != subject]), *rest)
    words = {"object": SHAPES, "motion": tuple(MOTIONS), "time": TIMES}[kind]
    return (kind, subject, rng.choice([w for w in words if w != rest[0]]))


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
