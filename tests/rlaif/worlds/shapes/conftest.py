import json
from pathlib import Path

import pytest

from rlaif.worlds.shapes.dataset import write_dataset

SIZES = {"train": 24, "prompt": 10, "test": 8}


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("world")
    write_dataset(out, SIZES, seed=3)
    return out


@pytest.fixture(scope="session")
def rows(world):
    def read(name: str) -> list[dict]:
        lines = (world / f"{name}.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return read
