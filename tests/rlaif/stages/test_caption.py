"""What `rlaif caption` asks for and keeps, for every option of `caption`, with an actor that says what a test wants and notes
what it was asked; the pool that spreads the requests, the videos and the files are the real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
from without_actors import NoActors

from actors.pool import RolloutPool
from actors.rollout import Answers, Failure
from rlaif.io.rundir import RunDir
from rlaif.records import Prompt, Sample
from rlaif.stages.feedback import caption
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run

SUMMARY = "sum up : "
ALL = {"captioned": 0, "retried": 0, "there": 0, "failed": 0, "left_out": 0, "cut": 0}


class Captioner:
    """An actor: `says(prompt)` is its text, ended by itself; None: it fails; a text that ends with `...`: it was cut."""

    def __init__(self):
        self.says: Callable[[Prompt], str | None] = shown
        self.asked: list[Prompt] = []
        self.generate = SimpleNamespace(remote=self._generate)

    def _generate(self, prompts, n, seed, sampling, version) -> Ready:
        assert n == 1
        self.asked += prompts
        told = [(prompt, self.says(prompt)) for prompt in prompts]
        samples = [answer(prompt, text, version) for prompt, text in told if text is not None]
        return Ready(Answers(samples, [Failure(prompt.prompt_id, "no words") for prompt, text in told if text is None]))


class Ready:
    """What an actor's call gives, at once."""

    def __init__(self, value: Answers):
        self.value = value


class AtOnce:
    """The pool's way of waiting for it."""

    def first(self, refs, timeout):
        return refs[-1]

    def get(self, ref, timeout=None):
        return ref.value


def answer(prompt: Prompt, text: str, version: int) -> Sample:
    ids = np.zeros(1, np.int32)
    ended = "length" if text.endswith("...") else "stop"
    return Sample(prompt, 0, "hash", 1, ids, ids, ids.astype(np.float32), text, ended, version)


def shown(prompt: Prompt) -> str:
    """Return the first frame and the video: no two captions are equal."""
    return f"{prompt.video}@{prompt.frames[0]}" if prompt.frames else "in short"


@pytest.fixture
def captioning(tmp_path, make_config, world):
    """captioning(*overrides, videos=...) -> (config, run, captioner): (video, question) rows are to be captioned, by two actors
    that note what they are asked in one list."""

    def make(*overrides: str, rows=(("a", "what ?"), ("b", "what ?"))):
        file = tmp_path / "asked.jsonl"
        videos = videos_of(world)
        told = [
            {"prompt_id": f"p{n}", "video": videos["ab".index(video)], "question": question}
            for n, (video, question) in enumerate(rows)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in told))
        plain = [
            f"caption.model={world}/base",
            f"caption.of=[{file}]",
            "caption.prompt='{previous}{question}describe .'",
            "caption.previous_slot='<{previous}> '",
            "caption.question_slot='[{question}] '",
            f"caption.summary_prompt='{SUMMARY}{{question}}{{captions}}'",
            "data.captions={run}/feedback/captions.jsonl",
            "data.pairs=none.jsonl",
        ]
        config = make_config(tmp_path, *plain, *overrides)
        captioner, topology = Captioner(), NoActors(config)
        topology.engines = lambda model: RolloutPool({"one": captioner, "two": captioner}, calls=AtOnce())
        return config, Run(config, RunDir(config.storage, config.name), None, topology), captioner

    return make


def videos_of(world) -> list[str]:
    """Two of them, of 24 frames."""
    return [json.loads(line)["video"] for line in (world / "data" / "descriptions.jsonl").read_text().splitlines()][:2]


def rows_of(config) -> list[dict]:
    return datasets.open_captions(datasets.data_path(config, config.data.captions)).newest_last()


def asked_by(captioner: Captioner) -> dict[str, list[Prompt]]:
    """Return the requests about each video, in their order."""
    by_video: dict[str, list[Prompt]] = {}
    for prompt in captioner.asked:
        by_video.setdefault(prompt.video, []).append(prompt)
    return by_video


def without(frames: int, video: str) -> Callable[[Prompt], str | None]:
    """Return a captioner that fails at one unit of one video."""
    return lambda prompt: None if (prompt.video, prompt.frames[:1]) == (video, (frames,)) else shown(prompt)


def test_each_caption_is_asked_for_with_the_one_before_it_of_the_same_video(captioning, world):
    config, run, captioner = captioning("caption.dependent=true", "caption.count=3", "caption.frames=8")
    assert caption.caption(config, run) == ALL | {"captioned": 2}
    for video, prompts in asked_by(captioner).items():
        assert [prompt.frames for prompt in prompts] == [tuple(range(start, start + 8)) for start in (0, 8, 16)]
        assert [prompt.question for prompt in prompts] == [
            "describe .",
            f"<{video}@0> describe .",
            f"<{video}@8> describe .",
        ]
    assert {row["video"]: row["captions"] for row in rows_of(config)} == {
        video: [f"{video}@{first}" for first in (0, 8, 16)] for video in videos_of(world)
    }


def test_captions_are_independent_without_the_dependent_option(captioning):
    config, run, captioner = captioning("caption.count=2")
    caption.caption(config, run)
    assert {prompt.question for prompt in captioner.asked} == {"describe ."} and len(captioner.asked) == 4


@pytest.mark.parametrize("failing", [0, 12], ids=["the first part", "the last part"])
@pytest.mark.parametrize(
    ("text", "reason"), [(None, "no words"), ("half ...", "unit {unit} was cut at caption.max_tokens (9)")]
)
def test_a_part_without_a_caption_masks_its_video_and_the_next_run_asks_again(
    captioning, world, failing, text, reason, caplog
):
    config, run, captioner = captioning("caption.dependent=true", "caption.count=2", "caption.max_tokens=9")
    good, bad = videos_of(world)
    captioner.says = lambda prompt: without(failing, bad)(prompt) or text
    assert caption.caption(config, run) == ALL | {"captioned": 1, "failed": 1}
    first = {row["video"]: row for row in rows_of(config)}
    reason = reason.format(unit=int(failing > 0))
    assert first[bad]["masked"] == reason and not {"captions", "context"} & first[bad].keys()
    assert f"1 masked, {reason}: {bad}" in caplog.text
    assert len(asked_by(captioner)[bad]) == (1 if failing == 0 else 2)  # nothing more about what is lost
    assert datasets.captions_by_video(datasets.data_path(config, config.data.captions)).keys() == {(good, "")}

    captioner.says, captioner.asked = shown, []
    assert caption.caption(config, run) == ALL | {"captioned": 1, "retried": 1, "there": 1}
    assert asked_by(captioner).keys() == {bad}  # from its first part on
    assert [prompt.question for prompt in captioner.asked] == ["describe .", f"<{bad}@0> describe ."]
    second = {row["video"]: row for row in rows_of(config)}
    assert second[good] == first[good] and second[bad]["context"] == [f"{bad}@0", f"{bad}@12"]
    captioner.asked = []
    assert caption.caption(config, run) == ALL | {"there": 2} and captioner.asked == []


def test_a_cut_caption_that_is_kept_is_handed_on_and_marked(captioning):
    config, run, captioner = captioning("caption.dependent=true", "caption.count=2", "caption.cut=keep")
    captioner.says = lambda prompt: "half ..." if 0 in prompt.frames else shown(prompt)
    assert caption.caption(config, run) == ALL | {"captioned": 2, "cut": 2}
    assert {prompt.question for prompt in captioner.asked if 0 not in prompt.frames} == {"<half ...> describe ."}
    assert [row["cut"] for row in rows_of(config)] == [["unit 0"]] * 2


TWICE = (("a", "what ?"), ("a", "where ?"), ("b", "what ?"), ("a", "what ?"))


def test_captions_on_the_question_are_a_row_for_each_question_of_a_video(captioning, world):
    config, run, captioner = captioning("caption.conditioned=true", "caption.count=2", rows=TWICE)
    a, b = videos_of(world)
    captioner.says = lambda prompt: f"{shown(prompt)} {prompt.question}"
    assert caption.caption(config, run) == ALL | {"captioned": 3}
    rows = rows_of(config)
    assert sorted((row["video"], row["question"]) for row in rows) == sorted(
        [(a, "what ?"), (a, "where ?"), (b, "what ?")]
    )
    assert len({row["key"] for row in rows}) == 3
    for row in rows:
        assert row["captions"] == [f"{row['video']}@{first} [{row['question']}] describe ." for first in (0, 12)]
    told = {
        (prompt.video, prompt.question): prompt.captions for prompt in datasets.load_prompts(run, config.caption.of)
    }
    assert told == {(row["video"], row["question"]): tuple(row["context"]) for row in rows}


def test_a_question_that_failed_is_asked_again_alone(captioning, world):
    config, run, captioner = captioning("caption.conditioned=true", "caption.count=2", rows=TWICE)
    a, _ = videos_of(world)
    captioner.says = lambda prompt: None if (prompt.video, "where" in prompt.question) == (a, True) else shown(prompt)
    assert caption.caption(config, run) == ALL | {"captioned": 2, "failed": 1}
    first = {(row["video"], row["question"]): row for row in rows_of(config)}
    assert [name for name, row in first.items() if row.get("masked") == "no words"] == [(a, "where ?")]
    captioner.says, captioner.asked = shown, []
    assert caption.caption(config, run) == ALL | {"captioned": 1, "retried": 1, "there": 2}
    assert [(prompt.video, prompt.question) for prompt in captioner.asked] == [(a, "[where ?] describe .")] * 2
    second = {(row["video"], row["question"]): row for row in rows_of(config)}
    assert {name for name in first if first[name] != second[name]} == {(a, "where ?")}
    assert second[a, "where ?"]["context"] == [f"{a}@0", f"{a}@12"]


def test_a_new_question_about_a_captioned_video_is_captioned_alone(captioning, tmp_path):
    config, run, captioner = captioning("caption.conditioned=true", "caption.count=1")
    caption.caption(config, run)
    config, run, captioner = captioning("caption.conditioned=true", "caption.count=1", rows=TWICE[:3])
    assert caption.caption(config, run) == ALL | {"captioned": 1, "there": 2}
    assert [prompt.question for prompt in captioner.asked] == ["[where ?] describe ."]


def test_single_frames_are_shown_one_by_one_in_time_order(captioning):
    config, run, captioner = captioning("caption.unit=frame", "caption.count=4", "caption.dependent=true")
    assert caption.caption(config, run) == ALL | {"captioned": 2}
    for video, prompts in asked_by(captioner).items():
        frames = [prompt.frames for prompt in prompts]
        assert frames == [(4,), (9,), (13,), (18,)]
        assert [prompt.question for prompt in prompts][1:] == [f"<{video}@{n}> describe ." for n in (4, 9, 13)]
    for row in rows_of(config):
        assert row["frames"] == [[4], [9], [13], [18]]
        assert row["context"] == [f"{row['video']}@{n}" for n in (4, 9, 13, 18)]


SUMMED = ("caption.aggregate=summarise", "caption.count=2")


def test_a_summary_is_of_all_captions_of_its_video_and_question_and_is_what_others_read(captioning):
    config, run, captioner = captioning(*SUMMED, "caption.conditioned=true", rows=TWICE)
    captioner.says = lambda prompt: shown(prompt) if prompt.frames else f" all of {prompt.question} "
    assert caption.caption(config, run) == ALL | {"captioned": 3}
    for row in rows_of(config):
        captions = [f"{row['video']}@0", f"{row['video']}@12"]
        asked = f"{SUMMARY}[{row['question']}] {' '.join(captions)}"
        assert row["captions"] == captions and row["context"] == [f"all of {asked}"]
    assert len([prompt for prompt in captioner.asked if not prompt.frames]) == 3


def test_failed_videos_are_not_summarised_and_a_failed_summary_masks_its_video(captioning, world):
    config, run, captioner = captioning(*SUMMED)
    a, b = videos_of(world)
    captioner.says = lambda prompt: without(12, b)(prompt) if prompt.frames else None
    assert caption.caption(config, run) == ALL | {"failed": 2}
    assert [prompt.video for prompt in captioner.asked if not prompt.frames] == [a]
    captioner.says, captioner.asked = shown, []
    assert caption.caption(config, run) == ALL | {"captioned": 2, "retried": 2}
    assert len(captioner.asked) == 2 * 3  # whole videos: no caption of theirs was kept
    assert [row["context"] for row in rows_of(config)] == [["in short"]] * 2


def test_captions_beyond_the_budget_of_a_summary_are_left_out_whole_and_counted(captioning, monkeypatch):
    config, run, captioner = captioning(
        "caption.aggregate=summarise", "caption.count=4", "caption.max_caption_tokens=5"
    )
    monkeypatch.setattr(caption, "token_counter", lambda config: lambda text: len(text.split()))
    captioner.says = lambda prompt: f"frame {prompt.frames[0]}" if prompt.frames else "in short"
    assert caption.caption(config, run) == ALL | {"captioned": 2, "left_out": 4}
    summaries = [prompt.question for prompt in captioner.asked if not prompt.frames]
    assert summaries == [f"{SUMMARY}frame 0 frame 6"] * 2
    assert [(len(row["captions"]), row["left_out"]) for row in rows_of(config)] == [(4, 2)] * 2
