"""Write twelve clips and rows about them, as a user would bring them, and a model of a million weights for their words.

python make_files.py FOLDER MODEL
"""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path

import av
import numpy as np

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 230)}
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
QUESTION = "what happens ?"


def write_clip(path: Path, colour: tuple[int, int, int], way: tuple[int, int]) -> None:
    """Write 12 frames of a square that moves across a dark background."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=8, options={"x264-params": "mbtree=0:threads=1"})
        stream.width = stream.height = 56
        stream.pix_fmt = "yuv420p"
        for number in range(12):
            frame = np.full((56, 56, 3), 20, np.uint8)
            x, y = (22 + 2 * step * (number - 6) for step in way)
            frame[y : y + 12, x : x + 12] = colour
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def rows_of(number: int, video: str, answer: str, wrong: str) -> dict[str, dict]:
    """Return one row for each file of `data`."""
    about = {"video": video, "question": QUESTION}
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]
    return {
        "prompts": {"prompt_id": f"prompt{number}", **about},
        "sft": {"id": f"talk{number}", "video": video, "messages": turns},
        "pairs": {"pair_id": f"pair{number}", **about, "chosen": answer, "rejected": wrong},
        "eval": {"prompt_id": f"held-out{number}", **about, "answer": answer},
    }


def write_files(folder: Path) -> set[str]:
    """Write clips and rows into a folder; return the words in the rows."""
    (folder / "clips").mkdir(parents=True)
    clips = list(product(COLOURS, WAYS))
    lines: dict[str, list[str]] = {}
    words = set(QUESTION.split())
    for number, (colour, way) in enumerate(clips):
        video = f"clips/{colour}-{way}.mp4"
        write_clip(folder / video, COLOURS[colour], WAYS[way])
        answer = f"a {colour} square moves {way} ."
        other_colour, other_way = clips[number - 5]
        wrong = f"a {other_colour} square moves {other_way} ."
        words |= set(answer.split())
        for name, row in rows_of(number, video, answer, wrong).items():
            lines.setdefault(name, []).append(json.dumps(row))
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return words


if __name__ == "__main__":
    from rlaif.models.tiny import build_tiny

    words = write_files(Path(sys.argv[1]))
    # A short context makes for short answers and little memory.
    build_tiny(Path(sys.argv[2]), sorted(words), seed=0, max_positions=256)
