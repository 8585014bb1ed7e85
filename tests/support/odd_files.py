"""Write files as other tools do, for the tests of readers and converters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from preference_rows import gpt, human, picture

from rlaif.cli import main
from rlaif.data.files import read_rows
from rlaif.worlds.shapes.render import write_mp4

PAIR = {"pair_id": "k0", "video": "v.mp4", "question": "What rolls?", "chosen": "An orange.", "rejected": "A coin."}
TEXT_PAIR = {"pair_id": "t", "question": "What rolls?", "chosen": "An orange.", "rejected": "A coin."}


def make_world(folder: Path) -> Path:
    """Fill a folder with a video, an image, a file that is no image, and a folder of two frames, one of them WebP."""
    write_mp4(folder / "v.mp4", np.zeros((8, 32, 32, 3), dtype=np.uint8))
    (folder / "img.jpg").write_bytes(picture(0, "JPEG"))
    (folder / "notes.txt").write_text("no image")
    (folder / "empty.jpg").touch()
    (folder / "f").mkdir()
    (folder / "f/0.jpg").write_bytes(picture(1, "JPEG"))
    (folder / "f/1.webp").write_bytes(picture(2, "WEBP"))
    return folder


def data(capsys, *arguments: object) -> tuple[int, str, str]:
    """Run `rlaif data ...` and return its exit code, its output, and its error stream."""
    code = main.main(["data", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def rows_of(path: Path) -> list[dict]:
    return [row.fields for row in read_rows(path)]


def pds(question: str = "<video>\nWhat rolls?", **media: object) -> dict:
    """Return a pair in PDS-DPO's format."""
    return {
        "id": "d1",
        **media,
        "conversations": [human(question), gpt("An orange.")],
        "rejected_conversations": [human(question), gpt("A coin.")],
    }


def llava(question: str = "<image>\nWhat rolls?", **media: object) -> dict:
    """Return a conversation in LLaVA's format."""
    return {"id": "l1", **media, "conversations": [human(question), gpt("An orange.")]}


def reward_pair(question: str = "<image>\nWhat?", **media: object) -> dict:
    """Return a pair of VLM-RLAIF's reward model."""
    answers = {"output_1": {"from": "gpt", "value": "A."}, "output_2": {"from": "gpt", "value": "B."}, "preference": 1}
    return {"id": "w1", "conversations": [human(question), gpt("")], **answers, **media}
