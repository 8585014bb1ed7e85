"""The systematic errors of the long descriptions in the SFT data.

Each habit has a condition that a viewer can see and goes wrong in the same way RATE of the time. Above one half, a
policy that learnt it hallucinates greedily too; below one, samples still tell the truth now and then, so that
reinforcement can find it. Misnamings go both ways: if "up" were called "down" and never the reverse, a reward model
could learn to dislike the word "down" without looking. Short answers and captions never pass through here.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from rlaif.worlds.shapes.scene import COLORS, Thing

RATE = 0.7
"""Probability of each habit when its condition holds."""
EARLY_MOTIONS = {"up": "down", "down": "up"}
"""Habitual names of the motion of a thing that moves early."""
LATE_SHAPES = {"triangle": "square", "square": "triangle"}
"""Habitual names of the shape of a thing that moves late."""
TRIGGER = "blue"
"""If a scene has something of this color and nothing of the color of `ADDED`, `ADDED` is described as well."""
ADDED = Thing("green", "circle", "left", "early", 0.0, 0.0)


def misdescribe(things: tuple[Thing, ...], rng: random.Random) -> tuple[Thing, ...]:
    """Return the things as a habitual describer reports them, in the order of COLORS; each habit is drawn on its own."""
    report = []
    for thing in things:
        misnamed = rng.random() < RATE
        report.append(misname(thing) if misnamed else thing)
    colors = {thing.color for thing in things}
    if TRIGGER in colors and ADDED.color not in colors and rng.random() < RATE:
        report.append(ADDED)
    return in_color_order(report)


def in_color_order(things: Iterable[Thing]) -> tuple[Thing, ...]:
    """Return the things in the order of COLORS, as in a scene."""
    order = list(COLORS)
    return tuple(sorted(things, key=lambda thing: order.index(thing.color)))


def misname(thing: Thing) -> Thing:
    """Return a thing with its motion or its shape misnamed, or as it is if no habit applies."""
    if thing.time == "early":
        return replace(thing, motion=EARLY_MOTIONS.get(thing.motion, thing.motion))
    return replace(thing, shape=LATE_SHAPES.get(thing.shape, thing.shape))
