"""Scenes of the shapes world: what exists, where and when it moves, and which split it belongs to.

A video has two halves. Every object rests in one half and moves in the other, so that each half has its own caption and
the whole has an order. Sizes and speeds are fixed and rest positions lie on a lattice: a tiny model learns that within minutes,
and free positions not within an hour.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from rlaif.seeds import derive

COLORS = {"red": (225, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 240), "yellow": (235, 220, 40)}
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TIMES = ("early", "late")
"""Which half of the video a thing moves in."""

SIZE = 56
"""Frame side in pixels."""
FRAMES, FPS = 24, 12
LATTICE = 14
"""Objects rest at the centres of a grid of squares this wide, in pixels: the area of one visual token of the tiny model."""
RADIUS = 6.5
"""Half the extent of every shape, in pixels: an object at rest fits into one square."""
TRAVEL = 14.0
"""Pixels an object moves within its half: 3.8 per frame where 8 of the 24 are sampled, 1.9 where 8 of one half are."""
SPLITS = {"train": range(0, 7), "prompt": range(7, 9), "test": range(9, 10)}
"""Which residues of a scene's signature (modulo 10) belong to which split."""


@dataclass(frozen=True)
class Thing:
    """One object: it moves in direction `motion` during the half named by `time`; (x, y) is its first centre in pixels."""

    color: str
    shape: str
    motion: str
    time: str
    x: float
    y: float

    @property
    def kind(self) -> tuple[str, str, str, str]:
        return (self.color, self.shape, self.motion, self.time)


@dataclass(frozen=True)
class Scene:
    """One video's ground truth; things are in the order of COLORS, at most one of each color."""

    scene_id: str
    things: tuple[Thing, ...]
    background: int

    @property
    def signature(self) -> tuple:
        """What can be said about a scene: equal signatures never occur in two splits, wherever the things are."""
        return tuple(thing.kind for thing in self.things)

    def truth(self) -> dict:
        """The ground truth as plain JSON; `read` is the inverse."""
        return asdict(self) | {"things": [asdict(thing) for thing in self.things]}

    @staticmethod
    def read(truth: dict) -> Scene:
        return Scene(truth["scene_id"], tuple(Thing(**thing) for thing in truth["things"]), truth["background"])


def path(thing: Thing) -> np.ndarray:
    """Centres [FRAMES, 2] (x, y) in pixels."""
    half = FRAMES // 2
    begin = half * TIMES.index(thing.time)
    done = np.clip((np.arange(FRAMES) - begin) / (half - 1), 0, 1)
    return np.array([thing.x, thing.y]) + TRAVEL * done[:, None] * np.array(MOTIONS[thing.motion])


def split_of(signature: tuple) -> str:
    """The split of every scene with this signature, a pure function of it."""
    residue = derive("shapes", signature) % 10
    return next(name for name, residues in SPLITS.items() if residue in residues)


def sample_scenes(split: str, count: int, seed: int) -> Iterator[Scene]:
    """`count` different scenes of one split, the same for the same seed."""
    rng, seen = random.Random(derive("scenes", split, seed)), set()
    while len(seen) < count:
        scene = Scene(f"{split}{len(seen):05d}", sample_things(rng), rng.choice((0, 30, 60)))
        key = (scene.things, scene.background)
        if key not in seen and split_of(scene.signature) == split:
            seen.add(key)
            yield scene


def sample_things(rng: random.Random) -> tuple[Thing, ...]:
    """One thing (a third of the scenes) or two that never touch; each color, shape, motion and time is equally likely."""
    colors = sorted(rng.sample(list(COLORS), rng.choice((1, 2, 2))), key=list(COLORS).index)
    kinds = [(color, rng.choice(SHAPES), rng.choice(list(MOTIONS)), rng.choice(TIMES)) for color in colors]
    while True:
        things = tuple(Thing(*kind, *sample_start(rng, kind[2])) for kind in kinds)
        if apart(things):
            return things


def sample_start(rng: random.Random, motion: str) -> tuple[float, float]:
    """A lattice point from which a thing that moves so stays inside the frame."""
    last, travel = SIZE // LATTICE - 1, int(TRAVEL) // LATTICE
    cells = [rng.randint(travel if step < 0 else 0, last - travel if step > 0 else last) for step in MOTIONS[motion]]
    x, y = (LATTICE * (cell + 0.5) for cell in cells)
    return x, y


def apart(things: tuple[Thing, ...]) -> bool:
    """Whether no two things come within a pixel of each other in any frame."""
    paths = [path(thing) for thing in things]
    gap = 2 * RADIUS + 1
    return all(np.abs(a - b).max(axis=1).min() >= gap for i, a in enumerate(paths) for b in paths[:i])
