"""Learner ranks as processes that live as long as the tests of this folder, and a tiny model for them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `ranks`, here and in the processes it starts


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    from ranks import WORDS

    from rlaif.models.tiny import build_tiny

    return str(build_tiny(tmp_path_factory.mktemp("tiny"), WORDS, seed=3))


@pytest.fixture(scope="session")
def two_ranks():
    from ranks import Ranks

    ranks = Ranks(2)
    yield ranks
    ranks.stop()


@pytest.fixture(scope="session")
def one_rank():
    from ranks import Ranks

    ranks = Ranks(1)
    yield ranks
    ranks.stop()
