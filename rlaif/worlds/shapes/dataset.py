"""Write the shapes world as files: real videos, SFT conversations, prompts and held-out evaluation."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from rlaif.errors import DataError
from rlaif.io.progress import progress
from rlaif.seeds import derive
from rlaif.worlds.shapes import render
from rlaif.worlds.shapes.conversations import READING, Row, finetuning_rows, pretraining_rows, reading_rows
from rlaif.worlds.shapes.language import CAPTION, DESCRIBE, captions, describe, questions
from rlaif.worlds.shapes.scene import FRAMES, TIMES, Scene, sample_scenes

PROMPT_QA = 0.25
"""Short questions per scene among the PPO prompts: the share of scenes that have one."""
EVAL_QA = 2
"""Short questions per scene in the evaluation."""

FILES = ("scenes", "pretrain", "sft", "prompts", "descriptions", "eval", "eval_descriptions", "clips", "reading")
"""Names of the files of rows, each with `.jsonl`."""


def write_dataset(out: Path | str, sizes: Mapping[str, int], seed: int = 0) -> dict[str, int]:
    """Write the world into the folder `out` and return the number of rows of each file.

    The same seed writes the same rows. A scene's video is videos/<scene_id>.mp4; clips of its halves are
    videos/<scene_id>_<half>.mp4.

    Args:
        sizes: number of scenes of the splits `train`, `prompt` and `test`, which share no signature. `pretrain`: number
            of train scenes behind `reading.jsonl` and `pretrain.jsonl`, from which a model learns before fine-tuning; by
            default as many as `train`; with 0 there are no such files.

    Raises DataError if a file would be replaced that no world of shapes has written.
    """
    out = Path(out)
    _require_own(out)
    (out / "videos").mkdir(parents=True, exist_ok=True)
    train = sizes.get("train", 0)
    pretrain = sizes.get("pretrain", train)
    counts = {"train": max(train, pretrain), "prompt": sizes.get("prompt", 0), "test": sizes.get("test", 0)}
    scenes: list[Scene] = []
    for split, count in counts.items():
        scenes += sample_scenes(split, count, seed)
    rows = _rows_of(scenes, train, pretrain, seed)
    for name, content in rows.items():
        _write_rows(out / f"{name}.jsonl", content)
    _write_all_videos(out, scenes, rows)
    return {name: len(content) for name, content in rows.items()}


def _require_own(out: Path) -> None:
    """Raise DataError if the folder has files of these names and none of scenes: then the files are the user's."""
    existing = [f"{name}.jsonl" for name in FILES if (out / f"{name}.jsonl").exists()]
    if existing and "scenes.jsonl" not in existing:
        raise DataError(
            "a folder without rows, or with a world of shapes",
            f"{', '.join(existing)} in {out}",
            "Give a new folder: files of these names would be replaced.",
        )


def _rows_of(scenes: Iterable[Scene], train: int, pretrain: int, seed: int) -> dict[str, list[Row]]:
    """Return the rows of every file, by its name."""
    rows: dict[str, list[Row]] = {name: [] for name in FILES if name != "reading"}
    for scene in scenes:
        # Each scene has random numbers of its own, so its rows do not depend on how many scenes there are.
        add_rows(rows, scene, random.Random(derive("rows", seed, scene.scene_id)))
    # Rows of all train scenes were drawn, to use the same random numbers whatever the two sizes are.
    rows["sft"] = _first_rows(rows["sft"], train)
    rows["pretrain"] = _first_rows(rows["pretrain"], pretrain)
    rows["reading"] = list(reading_rows(READING * pretrain, seed))
    if not pretrain:
        del rows["pretrain"], rows["reading"]
    return rows


def _first_rows(rows: list[Row], count: int) -> list[Row]:
    """Return the rows about the first `count` train scenes."""
    last = f"train{count:05d}"
    return [row for row in rows if str(row["id"]) < last]


def _write_rows(file: Path, rows: Iterable[Row]) -> None:
    lines = [json.dumps(row) + "\n" for row in rows]
    file.write_text("".join(lines))


def _write_all_videos(out: Path, scenes: list[Scene], rows: Mapping[str, list[Row]]) -> None:
    """Write the videos that some row names."""
    names = set()
    for content in rows.values():
        names.update(row["video"] for row in content if "video" in row)
    # The encoder releases the interpreter's lock, so threads suffice.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(partial(write_videos, out, names), scenes)
        for _ in progress(results, "writing videos", len(scenes)):
            pass


def write_videos(out: Path, names: Container[str], scene: Scene) -> None:
    """Write those of a scene's three videos (the whole and its halves) that are named, all from the same frames."""
    frames = render.render_frames(scene)
    half = FRAMES // 2
    early, late = TIMES
    parts = {
        render.video_name(scene): frames,
        render.video_name(scene, early): frames[:half],
        render.video_name(scene, late): frames[half:],
    }
    for name, part in parts.items():
        if name in names:
            render.write_mp4(out / name, part)


def add_rows(rows: dict[str, list[Row]], scene: Scene, rng: random.Random) -> None:
    """Add every row that one scene contributes, by its split (the letters its id starts with)."""
    split = scene.scene_id.rstrip("0123456789")
    rows["scenes"].append({"split": split} | scene.truth())
    if split == "train":
        rows["pretrain"] += pretraining_rows(scene, rng)
        rows["sft"] += finetuning_rows(scene, rng)
        return
    rows["clips"] += clip_rows(scene)
    description = prompt_row(scene, "describe", DESCRIBE, describe(scene.things))
    if split == "prompt":
        rows["prompts"].append(description)
        rows["descriptions"].append(description)
        number = int(rng.random() < PROMPT_QA)
        rows["prompts"] += question_rows(scene, rng, number)
    else:
        rows["eval"].append(description)
        rows["eval_descriptions"].append(description)
        rows["eval"] += question_rows(scene, rng, EVAL_QA)


def prompt_row(scene: Scene, name: str, question: str, answer: str) -> Row:
    """Return a prompt and, for the checker alone, its kind and the truth."""
    return {
        "prompt_id": f"{scene.scene_id}/{name}",
        "video": render.video_name(scene),
        "question": question,
        "answer": answer,
        "kind": "describe" if name == "describe" else "qa",
        "truth": scene.truth(),
    }


def question_rows(scene: Scene, rng: random.Random, count: int) -> list[Row]:
    """Return `count` prompts that are short questions."""
    rows = []
    for number, (question, answer) in enumerate(questions(scene, rng, count)):
        rows.append(prompt_row(scene, f"qa{number}", question, answer))
    return rows


def add_captions(path: Path) -> None:
    """Give the rows of a prompt file the captions of their scenes' truth, for benchmarks and tests without a captioner."""
    rows = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        scene = Scene.read(row["truth"])
        rows.append(row | {"captions": list(captions(scene))})
    _write_rows(path, rows)


def clip_rows(scene: Scene) -> list[Row]:
    """Return the prompts of a captioner, one for each half; the answer is the clean caption."""
    rows = []
    for half, caption in zip(TIMES, captions(scene), strict=True):
        row = {
            "prompt_id": f"{scene.scene_id}/{half}",
            "video": render.video_name(scene, half),
            "question": CAPTION,
            "answer": caption,
            "kind": "qa",
        }
        rows.append(row)
    return rows
