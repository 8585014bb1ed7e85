"""The shapes world as files: real videos, SFT conversations, prompts and held-out evaluation."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Container, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from rlaif.errors import DataError
from rlaif.io.progress import progress
from rlaif.seeds import derive
from rlaif.worlds.shapes import render
from rlaif.worlds.shapes.habits import misdescribe
from rlaif.worlds.shapes.language import (
    CAPTION,
    COMPARE,
    DESCRIBE,
    VERIFY,
    captions,
    claims_of,
    describe,
    parse,
    questions,
    statements,
)
from rlaif.worlds.shapes.scene import COLORS, FRAMES, MOTIONS, SHAPES, TIMES, Scene, Thing, sample_scenes

CONTEXT = "context : early : {captions}\n{question}"
"""How captions enter a question; they are joined by SEPARATOR. configs/demo.yaml says the same to judge and reward model."""
SEPARATOR = " late : "
QA_TURNS = 4
CONTEXT_SHARE = 0.6
"""Share of train scenes with a conversation in fine-tuning about the video that carries the captions."""
READING = 4
"""Scenes that are only read about, for each scene of the train split."""
DESCRIBED = 0.2
"""Share of conversations with the captions given that are a description."""
VERIFYING = {"verify0": False, "verify1": True, "verify2": True}
"""Conversations of each train scene in which claims are verified, and whether the captions are given."""
HALF_SHARE, COMPARE_SHARE = 0.5, 0.1
"""Shares of train scenes with a caption in fine-tuning, and with a comparison of two descriptions; so many again have one
with the captions given."""
PROMPT_QA, EVAL_QA = 0.25, 2
"""Short questions per scene among the PPO prompts (a share of the scenes) and in the evaluation."""

Row = dict[str, object]

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
    train, pretrain = sizes.get("train", 0), sizes.get("pretrain", sizes.get("train", 0))
    counts = {"train": max(train, pretrain), "prompt": sizes.get("prompt", 0), "test": sizes.get("test", 0)}
    scenes = [scene for split, size in counts.items() for scene in sample_scenes(split, size, seed)]
    rows: dict[str, list[Row]] = {name: [] for name in FILES if name != "reading"}
    for scene in scenes:
        add_rows(rows, scene, random.Random(derive("rows", seed, scene.scene_id)))
    rows["sft"] = _of_first(rows["sft"], train)
    rows["pretrain"] = _of_first(rows["pretrain"], pretrain)
    rows["reading"] = list(to_be_read(READING * pretrain, seed))
    if not pretrain:
        del rows["pretrain"], rows["reading"]
    for name, content in rows.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    named = {row["video"] for content in rows.values() for row in content if "video" in row}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the encoder gives up the interpreter's lock
        done = pool.map(partial(write_videos, out, named), scenes)
        for _ in progress(done, "writing videos", len(scenes)):
            pass
    return {name: len(content) for name, content in rows.items()}


def _require_own(out: Path) -> None:
    """Raise DataError if the folder has files of these names and none of scenes: then the files are the user's."""
    there = [f"{name}.jsonl" for name in FILES if (out / f"{name}.jsonl").exists()]
    if there and "scenes.jsonl" not in there:
        change = "Give a new folder: files of these names would be replaced"
        raise DataError("a folder without rows, or with a world of shapes", f"{', '.join(there)} in {out}", change)


def _of_first(rows: list[Row], count: int) -> list[Row]:
    """Return the rows about the first `count` train scenes. Other rows are made too, to use the same random numbers."""
    last = f"train{count:05d}"
    return [row for row in rows if str(row["id"]) < last]


def write_videos(out: Path, named: Container[str], scene: Scene) -> None:
    """Those of a scene's three videos (the whole and its halves) that some row names, all from the same frames."""
    frames, half = render.frames(scene), FRAMES // 2
    for name, part in ((None, frames), (TIMES[0], frames[:half]), (TIMES[1], frames[half:])):
        if video(scene, name) in named:
            render.write_mp4(out / video(scene, name), part)


def add_rows(rows: dict[str, list[Row]], scene: Scene, rng: random.Random) -> None:
    """Every row that one scene contributes, by its split (the letters its id starts with)."""
    split = scene.scene_id.rstrip("0123456789")
    rows["scenes"].append({"split": split} | scene.truth())
    if split == "train":
        rows["pretrain"] += conversations(scene, rng)
        rows["sft"] += judging(scene, rng)
        return
    rows["clips"] += clip_prompts(scene)
    target = rows["prompts" if split == "prompt" else "eval"]
    target.append(prompt(scene, "describe", DESCRIBE, describe(scene.things)))
    rows["descriptions" if split == "prompt" else "eval_descriptions"].append(target[-1])
    number = EVAL_QA if split == "test" else int(rng.random() < PROMPT_QA)
    target += [prompt(scene, f"qa{i}", *asked) for i, asked in enumerate(questions(scene, rng, number))]


def video(scene: Scene, half: str | None = None) -> str:
    return f"videos/{scene.scene_id}{f'_{half}' if half else ''}.mp4"


def prompt(scene: Scene, name: str, question: str, answer: str) -> Row:
    """A prompt and, for the checker alone, its kind and the truth."""
    return {
        "prompt_id": f"{scene.scene_id}/{name}",
        "video": video(scene),
        "question": question,
        "answer": answer,
        "kind": "describe" if name == "describe" else "qa",
        "truth": scene.truth(),
    }


def add_captions(path: Path) -> None:
    """Give the rows of a prompt file the captions of their scenes' truth, where no model has made any (benchmarks, tests)."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    told = [row | {"captions": list(captions(Scene.read(row["truth"])))} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in told))


def clip_prompts(scene: Scene) -> list[Row]:
    """What a captioner is asked about each half; the answer is the clean caption."""
    return [
        {
            "prompt_id": f"{scene.scene_id}/{half}",
            "video": video(scene, half),
            "question": CAPTION,
            "answer": caption,
            "kind": "qa",
        }
        for half, caption in zip(TIMES, captions(scene), strict=True)
    ]


def to_be_read(count: int, seed: int) -> Iterator[Row]:
    """To learn to read, before anything is seen: conversations about captions alone, of scenes like those of the train split."""
    for scene in sample_scenes("train", count, derive("reading", seed)):
        rng = random.Random(derive("reading", seed, scene.scene_id))
        row = conversation(scene, "read", told_first(scene, reading(scene, rng)))
        del row["video"]
        yield row


def reading(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Turns that captions alone can answer: now and then a description, else a short question among claims to verify."""
    if rng.random() < DESCRIBED:
        return [(DESCRIBE, describe(scene.things))]
    turns = questions(scene, rng, 1) + verifying(scene, rng)
    rng.shuffle(turns)
    return turns


def verifying(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    return [(VERIFY.format(claim=claim), answer) for claim, answer in statements(scene, rng)]


def conversations(scene: Scene, rng: random.Random) -> Iterator[Row]:
    """To learn to see: one habitual description, short questions twice, a caption of one half, and a conversation with the
    captions given.

    Only the description without captions passes through the habits; given captions, it follows them.
    """
    told = describe(misdescribe(scene.things, rng))
    yield conversation(scene, "describe", [(DESCRIBE, told)])
    yield conversation(scene, "qa0", questions(scene, rng, QA_TURNS))
    yield conversation(scene, "qa1", questions(scene, rng, QA_TURNS))
    yield half_caption(scene, rng)
    yield conversation(scene, "context", told_first(scene, reading(scene, rng)))


def judging(scene: Scene, rng: random.Random) -> Iterator[Row]:
    """Fine-tuning: less of the same, and what a judge is asked: is a claim true, which of two descriptions is better."""
    told = describe(misdescribe(scene.things, rng))
    yield conversation(scene, "describe", [(DESCRIBE, told)])
    yield conversation(scene, "qa", questions(scene, rng, QA_TURNS))
    if rng.random() < HALF_SHARE:
        yield half_caption(scene, rng)
    yield from with_context(scene, rng)
    for name, given in VERIFYING.items():
        turns = verifying(scene, rng)
        yield conversation(scene, name, told_first(scene, turns) if given else turns)
    for name, given in (("compare0", False), ("compare1", True)):
        if rng.random() < COMPARE_SHARE:
            turns = [comparison(scene, rng)]
            yield conversation(scene, name, told_first(scene, turns) if given else turns)


def half_caption(scene: Scene, rng: random.Random) -> Row:
    half = rng.choice(TIMES)
    return conversation(scene, half, [(CAPTION, captions(scene)[TIMES.index(half)])], half)


def with_context(scene: Scene, rng: random.Random) -> Iterator[Row]:
    """For a share of the scenes: questions, or a description without habits, with the captions given."""
    if rng.random() < CONTEXT_SHARE:
        turns = questions(scene, rng, QA_TURNS) if rng.random() < 0.5 else [(DESCRIBE, describe(scene.things))]
        yield conversation(scene, "context", told_first(scene, turns))


def told_first(scene: Scene, turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The turns with the captions before the first question."""
    (question, answer), *others = turns
    given = CONTEXT.format(captions=SEPARATOR.join(captions(scene)), question=question)
    return [(given, answer), *others]


def comparison(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """Two descriptions of which one is truer, in either order, and which it is."""
    while True:
        told = [describe(misreport(scene.things, rng)) for _ in range(2)]
        counts = [len(parse(text)[0] - claims_of(scene.things)) for text in told]
        if counts[0] != counts[1]:
            return COMPARE.format(a=told[0], b=told[1]), "first" if counts[0] < counts[1] else "second"


def misreport(things: tuple[Thing, ...], rng: random.Random) -> tuple[Thing, ...]:
    """The things with up to two words wrong, or with one thing too many or too few: errors without habits."""
    told = list(things)
    for _ in range(rng.choice((0, 1, 1, 2))):
        at = rng.randrange(len(told))
        words = {"shape": SHAPES, "motion": tuple(MOTIONS), "time": TIMES}
        name = rng.choice(list(words))
        told[at] = replace(told[at], **{name: rng.choice(words[name])})
    free = [color for color in COLORS if color not in {thing.color for thing in told}]
    if rng.random() < 0.15:
        told.append(Thing(rng.choice(free), rng.choice(SHAPES), rng.choice(list(MOTIONS)), rng.choice(TIMES), 0, 0))
    elif len(told) > 1 and rng.random() < 0.15:
        told.pop(rng.randrange(len(told)))
    return tuple(sorted(told, key=lambda thing: list(COLORS).index(thing.color)))


def conversation(scene: Scene, name: str, turns: list[tuple[str, str]], half: str | None = None) -> Row:
    """An SFT row; the video belongs to its first user turn."""
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": f"{scene.scene_id}/{name}", "video": video(scene, half), "messages": messages}
