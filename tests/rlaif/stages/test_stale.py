"""Files of feedback that outlive what they were made of: nothing stale is used, and nobody's own file is written over."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlaif.errors import ConfigError, ContractError, DataError
from rlaif.models.model_dir import ModelDir
from rlaif.records import Prompt
from rlaif.stages.feedback import caption, pairs, sample
from rlaif.stages.recipes import context_study, demo
from rlaif.stages.run import datasets
from rlaif.stages.train import reward

ASKED = Prompt("p", "v.mp4", "what ?")


@pytest.fixture
def config(make_config, world, tmp_path):
    return make_config(
        tmp_path, f"candidates.models=[{world}/base]", f"caption.model={world}/base", "data.captions=captions.jsonl"
    )


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(config, *rows):
    write(datasets.data_path(config, config.data.candidates), *({"prompt_id": "p", **row} for row in rows))


def row(model, text, asked=ASKED, **more):
    return {
        "model": model,
        "fingerprint": ModelDir(model).fingerprint,
        "asked": sample.prompt_digest(asked),
        "answers": [text],
        **more,
    }


def test_answers_of_other_models_weights_or_questions_are_not_judged(config, world, caplog):
    base = f"{world}/base"
    other = Prompt("p", "v.mp4", "what then ?")
    answers(
        config,
        row(base, "good"),
        row(base, "of another question", other),
        row(base, "of other weights") | {"fingerprint": "0" * 16},
        row(base, "of another model") | {"fingerprint": "1" * 16, "model": "elsewhere"},
    )
    assert sample.answers_by_prompt(config, [ASKED]) == {"p": ["good"]}
    assert "3 rows" in caplog.text
    assert sample.answers_by_prompt(config, [other]) == {"p": ["of another question"]}


def test_answers_without_an_origin_are_the_users_own(config):
    answers(config, {"answers": ["mine", "mine too"]})
    assert sample.answers_by_prompt(config, [ASKED]) == {"p": ["mine", "mine too"]}


def test_answers_sampled_in_another_way_are_not_added_to(config):
    answers(config, row("m", "a", sampling=sample.sampling_record(config) | {"per_model": 9}))
    with pytest.raises(ContractError, match="per_model.*9"):
        sample.check_sampling(config, sample.open_candidates(config))
    answers(config, row("m", "a", sampling=sample.sampling_record(config)))
    sample.check_sampling(config, sample.open_candidates(config))


def test_a_judge_may_see_other_frames_than_the_policy(config):
    """What is there is judged; what would be added was answered by what saw less, or more."""
    base = config.candidates.models[0]
    answers(config, row(base, "seen", sampling=sample.sampling_record(config)))
    other = config.model_copy(update={"video": config.video.model_copy(update={"num_frames": 16})})
    assert sample.answers_by_prompt(other, [ASKED]) == {"p": ["seen"]}
    with pytest.raises(ContractError, match="'num_frames': 16"):
        sample.check_sampling(other, sample.open_candidates(other))


def test_a_file_without_answers_of_these_models_is_an_error(config):
    answers(config, row(config.candidates.models[0], "of another file", replace(ASKED, video_sha256="f" * 64)))
    with pytest.raises(DataError, match="1 of other models, weights, questions or video files"):
        sample.answers_by_prompt(config, [ASKED])


def told(number, text, **more):
    return {
        "key": f"k{number}",
        "video": "v",
        "model": "m",
        "captioner": "c",
        "version": "1",
        "context": [text],
        **more,
    }


def test_the_newest_captions_of_a_video_are_used_and_versions_do_not_mix(tmp_path):
    path = write(tmp_path / "c.jsonl", told(9, "old"), told(1, "new"))
    assert datasets.captions_by_video(path) == {("v", ""): {"": ("new",)}}
    for other in ({"captioner": "d"}, {"version": "2"}, {"model": "n"}):
        write(path, told(1, "a"), told(2, "b", **other))
        with pytest.raises(DataError, match="one model and prompt"):
            datasets.captions_by_video(path)


def test_captions_of_other_weights_or_prompts_are_named_before_any_is_added(config):
    own = {"captioner": ModelDir(config.caption.model).fingerprint, "version": caption.prompt_version(config.caption)}
    path = datasets.data_path(config, config.data.captions).with_name("other-captions.jsonl")
    write(path, told(1, "a", **own))
    caption.check_captioner(config, datasets.open_captions(path))
    for other in ({"captioner": "0" * 16}, {"version": "0"}):
        write(path, told(1, "a", **own | other))
        with pytest.raises(ContractError, match=r"data\.captions"):
            caption.check_captioner(config, datasets.open_captions(path))


def test_preferences_of_another_origin_are_not_replaced(tmp_path):
    path = tmp_path / "pairs.jsonl"
    pairs.check_pair_target(path)
    write(path, {"pair_id": "1", "question": "q", "chosen": "a", "rejected": "b"})
    with pytest.raises(ConfigError, match="another origin"):
        pairs.check_pair_target(path)
    row = {"pair_id": "1", "question": "q", "chosen": "a", "rejected": "b"}
    told = {"model": "m", "kind": "k"}
    for judge in (told, json.dumps(told)):
        write(path, row | {"judge": judge})
        pairs.check_pair_target(path)
    for other in ({"judge": {"model": "m"}}, {"judge": "a model"}, {"judge": told, "scores": [{"value": 1.0}]}):
        write(path, row | other)
        with pytest.raises(ConfigError, match="another origin"):
            pairs.check_pair_target(path)


def test_rows_keep_their_own_captions_if_the_captioner_has_none(config):
    store = datasets.open_captions(datasets.data_path(config, config.data.captions).with_name("own-captions.jsonl"))
    about = {"model": "m", "captioner": "c", "version": "1"}
    store.append(
        [{"key": "k", "video": "v", **about, "context": ["made"]}, {"key": "l", "video": "w", **about, "masked": "no"}]
    )
    changed = config.model_copy(update={"data": config.data.model_copy(update={"captions": str(store.path)})})
    rows = [Prompt(video, video, "what ?", captions=("own",)) for video in ("v", "w", "x")]
    assert [row.captions for row in datasets.captioned(run_of(changed), rows)] == [("made",), ("own",), ("own",)]


def run_of(config, **sha256):
    """Return a run whose videos have these contents; other videos have none."""

    def spec(video):
        if video not in sha256:
            raise DataError("a video", "none", "the path")
        return SimpleNamespace(sha256=sha256[video])

    return SimpleNamespace(config=config, topology=SimpleNamespace(client=lambda: SimpleNamespace(spec=spec)))


def test_captions_of_a_replaced_video_file_are_not_used(config, tmp_path):
    """A video was replaced, captioned, and put back: its first captions count again, whatever came of the other file."""
    failed = {name: value for name, value in told(3, "").items() if name != "context"} | {"masked": "cut"}
    path = write(
        tmp_path / "c.jsonl",
        told(1, "of a", sha256="a"),
        told(2, "of b", sha256="b"),
        failed | {"sha256": "c"},
        told(4, "of the question", sha256="a", question="why ?"),
    )
    changed = config.model_copy(update={"data": config.data.model_copy(update={"captions": str(path)})})
    rows = [Prompt("p", "v", "what ?")]
    read = {now: datasets.captioned(run_of(changed, v=now), rows)[0].captions for now in "abcd"}
    assert read == {"a": ("of a",), "b": ("of b",), "c": (), "d": ()}
    write(path, told(4, "of the question", sha256="a", question="why ?"))
    asked = [Prompt("p", "v", "why ?"), Prompt("q", "v", "what ?")]
    assert [row.captions for row in datasets.captioned(run_of(changed, v="a"), asked)] == [("of the question",), ()]


def test_the_context_study_has_its_own_files_and_steps(config):
    odd = config.model_copy(
        update={
            "storage": "/mnt/labels-v1/answers-2",
            "context": config.context.model_copy(update={"reward_steps": 7}),
            "reward": config.reward.model_copy(update={"epochs": 3}),
        }
    )
    cell = context_study.cell_config(odd, 1, "none")
    assert reward.steps_of(cell.reward, 1000) == 7
    outside = context_study.outside_config(cell)
    assert Path(outside.data.labels).parent == Path(cell.data.labels).parent
    assert len({outside.data.labels, cell.data.labels, outside.data.candidates, cell.data.candidates}) == 4


def test_at_least_one_video_is_held_out_and_the_default_margin_follows_the_method(config):
    assert len(pairs.held_out_videos(config, ["a", "b", "c"])) >= 1
    for method, margin in pairs.MARGIN.items():
        changed = config.model_copy(update={"label": config.label.model_copy(update={"method": method})})
        assert pairs.pair_options(changed).margin == margin
    changed = config.model_copy(update={"pairs": config.pairs.model_copy(update={"margin": 0.0})})
    assert pairs.pair_options(changed).margin == 0


def test_equal_prompts_of_two_files_are_merged_and_different_prompts_with_one_id_are_rejected(monkeypatch):
    files = {"a": [ASKED], "b": [ASKED, Prompt("q", "v.mp4", "what ?")], "c": [Prompt("p", "w.mp4", "what ?")]}
    monkeypatch.setattr(datasets, "load", lambda run, file, kind, checks: files[file])
    run = SimpleNamespace()
    assert [prompt.prompt_id for prompt in datasets.load_prompts(run, ("a", "b"))] == ["p", "q"]
    with pytest.raises(DataError, match="prompt 'p'"):
        datasets.load_prompts(run, ("a", "c"))


def test_an_earlier_demos_feedback_and_pairs_get_another_name(make_config, tmp_path):
    own = write(tmp_path / "mine.jsonl", {})
    config = make_config(tmp_path, "data.root={run}/data", f"data.pairs_eval={own}")
    folder = tmp_path / "runs" / "run"
    for _ in range(2):
        write(folder / "feedback" / "labels.jsonl", {})
        write(folder / "data" / "pairs.jsonl", {})
        demo.set_aside_feedback(config)
    assert sorted(path.name for path in folder.iterdir()) == ["data", "feedback.1", "feedback.2"]
    assert sorted(path.name for path in (folder / "data").iterdir()) == ["pairs.jsonl.1", "pairs.jsonl.2"]
    assert own.exists()
