from itertools import chain, combinations

import numpy as np
import pytest

from rlaif.worlds.shapes.scene import COLORS, RADIUS, SIZE, SPLITS, Scene, sample_scenes, split_of, trajectory


def scenes(split, count=300, seed=0):
    return list(sample_scenes(split, count, seed))


def test_splits_share_no_signature():
    signatures = {}
    for split in SPLITS:
        signatures[split] = {scene.signature for scene in scenes(split)}
    for a, b in combinations(signatures, 2):
        assert not signatures[a] & signatures[b]
    assert sorted(chain.from_iterable(SPLITS.values())) == list(range(10))


def test_a_split_depends_on_the_signature_alone():
    assert {split_of(scene.signature) for scene in scenes("test", 50, seed=7)} == {"test"}


def test_scenes_are_deterministic_and_distinct():
    assert scenes("train") == scenes("train")
    assert scenes("train", seed=1) != scenes("train", seed=2)
    assert len({(scene.things, scene.background) for scene in scenes("train")}) == 300


def test_a_shorter_sample_is_a_prefix():
    assert scenes("train", 20) == scenes("train", 300)[:20]


@pytest.mark.parametrize("split", SPLITS)
def test_things_stay_inside_and_apart(split):
    for scene in scenes(split, 100):
        paths = [trajectory(thing) for thing in scene.things]
        for centres in paths:
            assert centres.min() >= RADIUS and centres.max() <= SIZE - RADIUS
        for a, b in combinations(paths, 2):
            assert np.abs(a - b).max(axis=1).min() >= 2 * RADIUS + 1
        colors = [list(COLORS).index(thing.color) for thing in scene.things]
        assert colors == sorted(set(colors))


def test_a_thing_rests_in_one_half_and_moves_in_the_other():
    for scene in scenes("train", 30):
        for thing in scene.things:
            steps = np.abs(np.diff(trajectory(thing), axis=0)).sum(axis=1)
            rest, move = (steps[12:], steps[:11]) if thing.time == "early" else (steps[:11], steps[12:])
            assert (rest == 0).all() and (move > 1).all()


def test_truth_round_trip():
    for scene in scenes("prompt", 10):
        assert Scene.read(scene.truth()) == scene
