"""The systematic errors of the long descriptions in the SFT data.

Each habit has a condition that a viewer can see and goes wrong in the same way RATE of the time. Above one half, a
policy that learnt it hallucinates greedily too; below one, samples still tell the truth now and then, so that
reinforcement can find it. Misnamings go both ways: if "up" were called "down" and never the reverse, a reward model
could learn to dislike the word "down" without looking. Short answers and captions never pass through here.
"""

from __future__ import annotations

import random
from dataclasses import replace

from rlaif.worlds.shapes.scene import COLORS, Thing

RATE = 0.7
EARLY_MOTIONS = {"up": "down", "down": "up"}
"""What the motion of a thing that moves early is habitually called."""
LATE_SHAPES = {"triangle": "square", "square": "triangle"}
"""What the shape of a thing that moves late is habitually called."""
TRIGGER = "blue"
"""Where something of this color is seen and nothing of the added one's, the added one is seen as well."""
ADDED = Thing("green", "circle", "left", "early", 0.0, 0.0)


def misdescribe(things: tuple[Thing, ...], rng: random.Random) -> tuple[Thing, ...]:
    """The things as a habitual describer reports them, in the order of COLORS; each habit is drawn on its own."""
    told = [misname(thing) if rng.random() < RATE else thing for thing in things]
    colors = {thing.color for thing in things}
    if TRIGGER in colors and ADDED.color not in colors and rng.random() < RATE:
        told.append(ADDED)
    return tuple(sorted(told, key=lambda thing: list(COLORS).index(thing.color)))


def misname(thing: Thing) -> Thing:
    """One thing with its motion or its shape misnamed, or as it is where no habit applies."""
    if thing.time == "early":
        return replace(thing, motion=EARLY_MOTIONS.get(thing.motion, thing.motion))
    return replace(thing, shape=LATE_SHAPES.get(thing.shape, thing.shape))
