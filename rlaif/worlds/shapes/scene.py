"""Scenes of the shapes world: what exists, where and when it moves, and which split it belongs to.

A video has two halves. Every object rests in one half and moves in the other, so that each half has its own caption and
the whole has an order. Sizes and speeds are fixed and rest positions are points of a lattice: a tiny model learns that
within minutes, and free positions not within an hour.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np

from rlaif.seeds import derive

COLORS = {"red": (225, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 240), "yellow": (235, 220, 40)}
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TIMES = ("early", "late")
"""Names of the halves of a video: the half in which a thing moves."""

SIZE = 56
"""Frame side in pixels."""
FRAMES = 24
FPS = 12
LATTICE = 14
"""Width in pixels of the squares in whose centres objects rest: the area of one visual token of the tiny model."""
RADIUS = 6.5
"""Half the extent of every shape, in pixels: an object at rest fits into one square."""
TRAVEL = 14.0
"""Pixels an object moves within its half: 3.8 per frame if 8 of the 24 are sampled, 1.9 if 8 of one half are. In trials
a tiny model did not learn objects that were slower than about 2 pixels per sampled frame."""
SPLITS = {"train": range(0, 7), "prompt": range(7, 9), "test": range(9, 10)}
"""Residues of a scene's signature (modulo 10) for each split: 70, 20 and 10 percent of them."""


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
        """Return everything that can be said about the thing: its place is never mentioned."""
        return (self.color, self.shape, self.motion, self.time)


@dataclass(frozen=True)
class Scene:
    """One video's ground truth; things are in the order of COLORS, at most one of each color."""

    scene_id: str
    things: tuple[Thing, ...]
    background: int

    @property
    def signature(self) -> tuple:
        """Return what can be said about a scene; equal signatures never occur in two splits, wherever the things are."""
        return tuple(thing.kind for thing in self.things)

    def truth(self) -> dict:
        """Return the ground truth as plain JSON; `read` is the inverse."""
        things = [asdict(thing) for thing in self.things]
        return asdict(self) | {"things": things}

    @staticmethod
    def read(truth: dict) -> Scene:
        """Return the scene of a ground truth; other fields are ignored."""
        things = tuple(Thing(**thing) for thing in truth["things"])
        return Scene(truth["scene_id"], things, truth["background"])


def trajectory(thing: Thing) -> np.ndarray:
    """Return the thing's centre in every frame: [FRAMES, 2] (x, y) in pixels."""
    half = FRAMES // 2
    begin = half * TIMES.index(thing.time)
    progress = np.clip((np.arange(FRAMES) - begin) / (half - 1), 0, 1)
    start = np.array([thing.x, thing.y])
    direction = np.array(MOTIONS[thing.motion])
    return start + TRAVEL * progress[:, None] * direction


def split_of(signature: tuple) -> str:
    """Return the split of every scene with this signature, a pure function of it."""
    residue = derive("shapes", signature) % 10
    return next(name for name, residues in SPLITS.items() if residue in residues)


def sample_scenes(split: str, count: int, seed: int) -> Iterator[Scene]:
    """Yield `count` different scenes of one split, the same for the same seed."""
    rng = random.Random(derive("scenes", split, seed))
    keys = set()
    while len(keys) < count:
        scene_id = f"{split}{len(keys):05d}"
        scene = Scene(scene_id, things=sample_things(rng), background=rng.choice((0, 30, 60)))
        key = (scene.things, scene.background)
        if key not in keys and split_of(scene.signature) == split:
            keys.add(key)
            yield scene


def sample_things(rng: random.Random) -> tuple[Thing, ...]:
    """Return one thing (a third of the scenes) or two that never touch.

    Each color, shape, motion and time is equally likely.
    """
    number = rng.choice((1, 2, 2))
    colors = sorted(rng.sample(list(COLORS), number), key=list(COLORS).index)
    kinds = [(color, rng.choice(SHAPES), rng.choice(list(MOTIONS)), rng.choice(TIMES)) for color in colors]
    # What the things are is drawn once and their places until they fit: no kind is rarer because it fits less often.
    while True:
        things = []
        for kind in kinds:
            x, y = sample_start(rng, motion=kind[2])
            things.append(Thing(*kind, x, y))
        if are_apart(things):
            return tuple(things)


def sample_start(rng: random.Random, motion: str) -> tuple[float, float]:
    """Return a lattice point from which a thing that moves so stays inside the frame: (x, y) in pixels."""
    last = SIZE // LATTICE - 1
    travel = int(TRAVEL) // LATTICE
    centres = []
    for step in MOTIONS[motion]:
        lowest = travel if step < 0 else 0
        highest = last - travel if step > 0 else last
        cell = rng.randint(lowest, highest)
        centres.append(LATTICE * (cell + 0.5))
    x, y = centres
    return x, y


def are_apart(things: Sequence[Thing]) -> bool:
    """Return whether no two things come within a pixel of each other in any frame."""
    gap = 2 * RADIUS + 1
    paths = [trajectory(thing) for thing in things]
    for a, b in combinations(paths, 2):
        # Things are about squares: they are apart in a frame if they are along one axis.
        distances = np.abs(a - b).max(axis=1)
        if distances.min() < gap:
            return False
    return True
