"""Conversations about scenes from which a model learns: to read, to see, and to judge.

Some carry the captions of both halves before the first question. Pretraining has conversations about captions alone and
about videos; fine-tuning has fewer of the latter, and a judge's questions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

from rlaif.seeds import derive
from rlaif.worlds.shapes.habits import in_color_order, misdescribe
from rlaif.worlds.shapes.language import (
    CAPTION,
    COMPARE,
    DESCRIBE,
    VERIFY,
    captions,
    claims_of,
    describe,
    parse_claims,
    questions,
    statements,
)
from rlaif.worlds.shapes.render import video_name
from rlaif.worlds.shapes.scene import COLORS, MOTIONS, SHAPES, TIMES, Scene, Thing, sample_scenes

CONTEXT = "context : early : {captions}\n{question}"
"""Form of a question with captions, which are joined by SEPARATOR. configs/demo.yaml says the same to judge and reward
model."""
SEPARATOR = " late : "
QA_TURNS = 4
"""Short questions of one conversation."""
CONTEXT_SHARE = 0.6
"""Share of train scenes with a conversation in fine-tuning about the video that carries the captions."""
READING = 4
"""Scenes that are only read about, for each scene of the train split."""
DESCRIBED = 0.2
"""Share of conversations with captions that are a description."""
VERIFYING = {"verify0": False, "verify1": True, "verify2": True}
"""Conversations of each train scene in which claims are verified, and whether they carry the captions."""
COMPARING = {"compare0": False, "compare1": True}
"""Conversations in which two descriptions are compared, and whether they carry the captions."""
COMPARE_SHARE = 0.1
"""Share of train scenes with each of the conversations of COMPARING."""
HALF_SHARE = 0.5
"""Share of train scenes with a caption of one half in fine-tuning."""

Row = dict[str, object]

Turn = tuple[str, str]
"""A question and its answer."""


def reading_rows(count: int, seed: int) -> Iterator[Row]:
    """Yield conversations about captions alone, without videos, of `count` scenes like those of the train split.

    From these a model learns to read before it sees anything.
    """
    for scene in sample_scenes("train", count, derive("reading", seed)):
        rng = random.Random(derive("reading", seed, scene.scene_id))
        row = sft_row(scene, "read", add_context(scene, reading_turns(scene, rng)))
        del row["video"]
        yield row


def reading_turns(scene: Scene, rng: random.Random) -> list[Turn]:
    """Return turns that captions alone can answer: a description, or a short question among claims to verify."""
    if rng.random() < DESCRIBED:
        return [(DESCRIBE, describe(scene.things))]
    turns = questions(scene, rng, 1) + verify_turns(scene, rng)
    rng.shuffle(turns)
    return turns


def verify_turns(scene: Scene, rng: random.Random) -> list[Turn]:
    """Return questions whether claims are true, with their answers."""
    return [(VERIFY.format(claim=claim), answer) for claim, answer in statements(scene, rng)]


def pretraining_rows(scene: Scene, rng: random.Random) -> Iterator[Row]:
    """Yield the conversations about a scene from which a model learns to see.

    They are one habitual description, short questions twice, a caption of one half, and a conversation with captions.
    Only the description without captions passes through the habits; one with captions follows them.
    """
    yield habitual_row(scene, rng)
    yield sft_row(scene, "qa0", questions(scene, rng, QA_TURNS))
    yield sft_row(scene, "qa1", questions(scene, rng, QA_TURNS))
    yield half_caption_row(scene, rng)
    yield sft_row(scene, "context", add_context(scene, reading_turns(scene, rng)))


def finetuning_rows(scene: Scene, rng: random.Random) -> Iterator[Row]:
    """Yield the conversations about a scene for fine-tuning.

    They are fewer of the kinds of pretraining, and a judge's questions: is a claim true, which of two descriptions is
    better.
    """
    yield habitual_row(scene, rng)
    yield sft_row(scene, "qa", questions(scene, rng, QA_TURNS))
    if rng.random() < HALF_SHARE:
        yield half_caption_row(scene, rng)
    yield from context_rows(scene, rng)
    for name, has_context in VERIFYING.items():
        turns = verify_turns(scene, rng)
        yield sft_row(scene, name, add_context(scene, turns) if has_context else turns)
    for name, has_context in COMPARING.items():
        if rng.random() < COMPARE_SHARE:
            turns = [comparison(scene, rng)]
            yield sft_row(scene, name, add_context(scene, turns) if has_context else turns)


def habitual_row(scene: Scene, rng: random.Random) -> Row:
    """Return a conversation with the habitual description of a scene."""
    things = misdescribe(scene.things, rng)
    return sft_row(scene, "describe", [(DESCRIBE, describe(things))])


def half_caption_row(scene: Scene, rng: random.Random) -> Row:
    """Return a conversation with the caption of one half of the video."""
    half = rng.choice(TIMES)
    caption = captions(scene)[TIMES.index(half)]
    return sft_row(scene, half, [(CAPTION, caption)], half)


def context_rows(scene: Scene, rng: random.Random) -> Iterator[Row]:
    """Yield, for a share of the scenes, questions or a description without habits, with the captions."""
    if rng.random() < CONTEXT_SHARE:
        has_questions = rng.random() < 0.5
        turns = questions(scene, rng, QA_TURNS) if has_questions else [(DESCRIBE, describe(scene.things))]
        yield sft_row(scene, "context", add_context(scene, turns))


def add_context(scene: Scene, turns: list[Turn]) -> list[Turn]:
    """Return the turns with the captions before the first question."""
    (question, answer), *others = turns
    context = SEPARATOR.join(captions(scene))
    return [(CONTEXT.format(captions=context, question=question), answer), *others]


def comparison(scene: Scene, rng: random.Random) -> Turn:
    """Return the question which of two descriptions is truer, in either order, and its answer."""
    truths = claims_of(scene.things)
    while True:
        first = describe(misreport(scene.things, rng))
        second = describe(misreport(scene.things, rng))
        first_errors = len(parse_claims(first)[0] - truths)
        second_errors = len(parse_claims(second)[0] - truths)
        # Only a pair in which one is truer has an answer.
        if first_errors != second_errors:
            question = COMPARE.format(a=first, b=second)
            return question, "first" if first_errors < second_errors else "second"


def misreport(things: tuple[Thing, ...], rng: random.Random) -> tuple[Thing, ...]:
    """Return the things with up to two words wrong, or with one thing too many or too few: errors without habits."""
    report = list(things)
    for _ in range(rng.choice((0, 1, 1, 2))):
        place = rng.randrange(len(report))
        words = {"shape": SHAPES, "motion": tuple(MOTIONS), "time": TIMES}
        name = rng.choice(list(words))
        report[place] = replace(report[place], **{name: rng.choice(words[name])})
    colors = {thing.color for thing in report}
    # A scene has at most one thing of each color.
    free = [color for color in COLORS if color not in colors]
    if rng.random() < 0.15:
        report.append(draw_extra_thing(free, rng))
    elif len(report) > 1 and rng.random() < 0.15:
        report.pop(rng.randrange(len(report)))
    return in_color_order(report)


def draw_extra_thing(colors: list[str], rng: random.Random) -> Thing:
    """Return a thing of one of these colors that a description may add; it has no place."""
    return Thing(
        color=rng.choice(colors),
        shape=rng.choice(SHAPES),
        motion=rng.choice(list(MOTIONS)),
        time=rng.choice(TIMES),
        x=0,
        y=0,
    )


def sft_row(scene: Scene, name: str, turns: list[Turn], half: str | None = None) -> Row:
    """Return a conversation for SFT; the video belongs to its first user turn."""
    messages = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return {"id": f"{scene.scene_id}/{name}", "video": video_name(scene, half), "messages": messages}
