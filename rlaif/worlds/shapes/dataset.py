"""Write the shapes world as files: real videos, SFT conversations, prompts and held-out evaluation."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Container, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from rlaif.errors import DataError
from rlaif.progress import progress
from rlaif.seeds import derive
from rlaif.worlds.shapes import render
from rlaif.worlds.shapes.habits import in_color_order, misdescribe
from rlaif.worlds.shapes.language import (
    CAPTION,
    COMPARE,
    DESCRIBE,
    VERIFY,
    captions,
    claims_of,
    describe,
    parse_claims,
    questions,
    statements,
)
from rlaif.worlds.shapes.scene import COLORS, FRAMES, MOTIONS, SHAPES, TIMES, Scene, Thing, sample_scenes

CONTEXT = "context : early : {captions}\n{question}"
"""Form of a question with captions, which are joined by SEPARATOR. configs/demo.yaml says the same to judge and reward
model."""
SEPARATOR = " late : "
QA_TURNS = 4
"""Short questions of one conversation."""
CONTEXT_SHARE = 0.6
"""Share of train scenes with a conversation in fine-tuning about the video that carries the captions."""
READING = 4
"""Scenes that are only read about, for each scene of the train split."""
DESCRIBED = 0.2
"""Share of conversations with captions that are a description."""
VERIFYING = {"verify0": False, "verify1": True, "verify2": True}
"""Conversations of each train scene in which claims are verified, and whether they carry the captions."""
COMPARING = {"compare0": False, "compare1": True}
"""Conversations in which two descriptions are compared, and whether they carry the captions."""
COMPARE_SHARE = 0.1
"""Share of train scenes with each of the conversations of COMPARING."""
HALF_SHARE = 0.5
"""Share of train scenes with a caption of one half in fine-tuning."""
PROMPT_QA = 0.25
"""Short questions per scene among the PPO prompts: the share of scenes that have one."""
EVAL_QA = 2
"""Short questions per scene in the evaluation."""

Row = dict[str, object]

Turn = tuple[str, str]
"""A question and its answer."""

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
    parts = {video_name(scene): frames, video_name(scene, early): frames[:half], video_name(scene, late): frames[half:]}
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


def video_name(scene: Scene, half: str | None = None) -> str:
    """Return the path of a scene's video, or of the clip of one half, relative to the dataset's folder."""
    suffix = f"_{half}" if half else ""
    return f"videos/{scene.scene_id}{suffix}.mp4"


def prompt_row(scene: Scene, name: str, question: str, answer: str) -> Row:
    """Return a prompt and, for the checker alone, its kind and the truth."""
    return {
        "prompt_id": f"{scene.scene_id}/{name}",
        "video": video_name(scene),
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
            "video": video_name(scene, half),
            "question": CAPTION,
            "answer": caption,
            "kind": "qa",
        }
        rows.append(row)
    return rows


# -- conversations to learn from


def reading_rows(count: int, seed: int) -> Iterator[Row]:
    """Yield conversations about captions alone, without videos, of `count` scenes like those of the train split.

    A model that learns to read them before it learns to see can then match captions to questions.
    """
    for scene in sample_scenes("train", count, derive("reading", seed)):
        rng = random.Random(derive("reading", seed, scene.scene_id))
        row = sft_row(scene, "read", add_context(scene, reading_turns(scene, rng)))
        del row["video"]
        yield row


def reading_turns(scene: Scene, rng: random.Random) -> list[Turn]:
    """Return turns that captions alone can answer: a description, or a short question among claims to verify."""
    if rng.random() < DESCRIBED:
        return [(DESCRIBE, describe(scene.things))]
    turns = questions(scene, rng, 1) + verify_turns(scene, rng)
    rng.shuffle(turns)
    return turns


def verify_turns(scene: Scene, rng: random.Random) -> list[Turn]:
    """Return questions whether claims are true, with their answers."""
    return [(VERIFY.format(claim=claim), answer) for claim, answer in statements(scene, rng)]


def pretraining_rows(scene: Scene, rng: random.Random) -> Iterator[Row]:
    """Yield the conversations about a scene from which a model learns to see.

    They are one habitual description, short questions twice, a caption of one half, and a conversation with captions.
    Only the description without captions passes through the habits; one with captions follows them.
    """
    yield habitual_row(scene, rng)
    yield sft_row(scene, "qa0", questions(scene, rng, QA_TURNS))
    yield sft_row(scene, "qa1", questions(scene, rng, QA_TURNS))
    yield half_caption_row(scene, rng)
    yield sft_row(scene, "context", add_context(scene, reading_turns(scene, rng)))


def finetuning_rows(scene: Scene, rng: random.Random) -> Iterator[Row]:
    """Yield the conversations about a scene for fine-tuning.

    They are fewer of the kinds of pretraining, and a judge's questions: is a claim true, which of two descriptions is
    better.
    """
    yield habitual_row(scene, rng)
    yield sft_row(scene, "qa", questions(scene, rng, QA_TURNS))
    if rng.random() < HALF_SHARE:
        yield half_caption_row(scene, rng)
    yield from context_rows(scene, rng)
    for name, has_context in VERIFYING.items():
        turns = verify_turns(scene, rng)
        yield sft_row(scene, name, add_context(scene, turns) if has_context else turns)
    for name, has_context in COMPARING.items():
        if rng.random() < COMPARE_SHARE:
            turns = [comparison(scene, rng)]
            yield sft_row(scene, name, add_context(scene, turns) if has_context else turns)


def habitual_row(scene: Scene, rng: random.Random) -> Row:
    """Return a conversation with the habitual description of a scene."""
    things = misdescribe(scene.things, rng)
    return sft_row(scene, "describe", [(DESCRIBE, describe(things))])


def half_caption_row(scene: Scene, rng: random.Random) -> Row:
    """Return a conversation with the caption of one half of the video."""
    half = rng.choice(TIMES)
    caption = captions(scene)[TIMES.index(half)]
    return sft_row(scene, half, [(CAPTION, caption)], half)


def context_rows(scene: Scene, rng: random.Random) -> Iterator[Row]:
    """Yield, for a share of the scenes, questions or a description without habits, with the captions."""
    if rng.random() < CONTEXT_SHARE:
        has_questions = rng.random() < 0.5
        turns = questions(scene, rng, QA_TURNS) if has_questions else [(DESCRIBE, describe(scene.things))]
        yield sft_row(scene, "context", add_context(scene, turns))


def add_context(scene: Scene, turns: list[Turn]) -> list[Turn]:
    """Return the turns with the captions before the first question."""
    (question, answer), *others = turns
    context = SEPARATOR.join(captions(scene))
    return [(CONTEXT.format(captions=context, question=question), answer), *others]


def comparison(scene: Scene, rng: random.Random) -> Turn:
    """Return the question which of two descriptions is truer, in either order, and its answer."""
    truths = claims_of(scene.things)
    while True:
        first = describe(misreport(scene.things, rng))
        second = describe(misreport(scene.things, rng))
        first_errors = len(parse_claims(first)[0] - truths)
        second_errors = len(parse_claims(second)[0] - truths)
        # Only a pair in which one is truer has an answer.
        if first_errors != second_errors:
            question = COMPARE.format(a=first, b=second)
            return question, "first" if first_errors < second_errors else "second"


def misreport(things: tuple[Thing, ...], rng: random.Random) -> tuple[Thing, ...]:
    """Return the things with up to two words wrong, or with one thing too many or too few: errors without habits."""
    report = list(things)
    for _ in range(rng.choice((0, 1, 1, 2))):
        place = rng.randrange(len(report))
        words = {"shape": SHAPES, "motion": tuple(MOTIONS), "time": TIMES}
        name = rng.choice(list(words))
        report[place] = replace(report[place], **{name: rng.choice(words[name])})
    colors = {thing.color for thing in report}
    # A scene has at most one thing of each color.
    free = [color for color in COLORS if color not in colors]
    if rng.random() < 0.15:
        report.append(draw_extra_thing(free, rng))
    elif len(report) > 1 and rng.random() < 0.15:
        report.pop(rng.randrange(len(report)))
    return in_color_order(report)


def draw_extra_thing(colors: list[str], rng: random.Random) -> Thing:
    """Return a thing of one of these colors that a description may add; it has no place."""
    return Thing(
        color=rng.choice(colors),
        shape=rng.choice(SHAPES),
        motion=rng.choice(list(MOTIONS)),
        time=rng.choice(TIMES),
        x=0,
        y=0,
    )


def sft_row(scene: Scene, name: str, turns: list[Turn], half: str | None = None) -> Row:
    """Return a conversation for SFT; the video belongs to its first user turn."""
    messages = []
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return {"id": f"{scene.scene_id}/{name}", "video": video_name(scene, half), "messages": messages}
