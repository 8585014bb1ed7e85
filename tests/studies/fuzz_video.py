"""Damage video files at random and compare every frame that is returned with a decode in order of the same file.

    python tests/studies/fuzz_video.py --json FILE [--files 1000] [--seed 0]

Each file is decoded twice: in a child process with a deadline, as a run does it, and in this process with jumps forced
wherever they are proven. Exits with 1 if a decoder crashed or hung, a frame was wrong, or half of the files were refused.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np

if __name__ == "__main__":  # pytest knows these places from pyproject.toml
    sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "support")]

from video_corpus import damaged, encode, in_order, plain

from rlaif.errors import DataError
from rlaif.video import decode as decoding
from rlaif.video import files, index, packets
from rlaif.video.spec import FrameSpec, uniform
from rlaif.video.workers import Decoders

FRAMES = 8
TIMEOUT_S = 20.0


def sources(folder: Path) -> list[Path]:
    """Make the undamaged files: every codec and container once, plain H.264 most often, as in real data."""
    paths = [make() for make in plain(folder)]
    common = []
    for container in ("mp4", "mkv", "mov", "flv"):
        common.append(encode(folder / f"common.{container}", options={"preset": "veryfast"}, gop=10))
    return paths + common * 10


def check(path: Path, probe: Callable, decode: Callable, tally: Counter) -> None:
    """Count the outcome of one file in `tally`: `right`, `refused`, `wrong`, `hung` or `crashed`."""
    try:
        info = probe(path)
        numbers = tuple(uniform(info.total_frames, min(FRAMES, info.total_frames)))
        spec = FrameSpec(info.sha256, numbers, info.height, info.width, info.fps, info.total_frames)
        frames = decode(path, spec)
    except DataError as error:
        tally[_kind(error)] += 1
        return
    expected = in_order(path)
    same = all(
        number < len(expected) and np.array_equal(frame, expected[number])
        for number, frame in zip(numbers, frames, strict=True)
    )
    tally["right" if same else "wrong"] += 1
    if not same:
        print(f"wrong: {path.name}", file=sys.stderr)


def _kind(error: DataError) -> str:
    if "its decoder was ended" in error.found:
        return "hung"
    return "crashed" if "its decoder ended" in error.found or "Report this video" in error.fix else "refused"


def fuzz(count: int, seed: int) -> dict:
    """Return the figures of `count` damaged files."""
    chance, started = random.Random(seed), time.monotonic()
    as_in_runs, jumping = Counter(), Counter()
    decoders = Decoders(1, TIMEOUT_S)
    with tempfile.TemporaryDirectory() as folder:
        originals = sources(Path(folder))
        for number in range(count):
            original = chance.choice(originals)
            path = damaged(original, Path(folder) / f"{number}-{original.name}", seed * 10**6 + number)
            check(path, decoders.probe, decoders.decode, as_in_runs)
            with patch.object(index, "SMALL", 0), patch.object(packets, "APART", 1), patch.object(files, "WORTH", 1e9):
                check(path, decoding.probe_video, decoding.decode, jumping)
            path.unlink()
    decoders.close()
    return {
        "files": count,
        "seed": seed,
        "as_in_runs": dict(as_in_runs),
        "jumping_wherever_proven": dict(jumping),
        "minutes": round((time.monotonic() - started) / 60, 2),
        "passed": all(_passed(tally, count) for tally in (as_in_runs, jumping)),
    }


def _passed(tally: Counter, count: int) -> bool:
    return not (tally["wrong"] or tally["hung"] or tally["crashed"]) and tally["refused"] < count / 2


def main(arguments: list[str] | None = None) -> int:
    """Run the study; write its figures as JSON and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    figures = fuzz(options.files, options.seed)
    text = json.dumps(figures, indent=2)
    if options.json:
        options.json.write_text(text + "\n")
    print(text)
    return 0 if figures["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
