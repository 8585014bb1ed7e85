"""Captions, answers and pairs as they are made and kept, over a model that answers from a script. No actor is started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from preference_rows import RLAIF_V, picture

from actors.frames import LocalFrames
from actors.rollout import Answers, Failure
from rlaif.data.files import read_rows, write_rows
from rlaif.data.formats.own import PAIRS
from rlaif.data.formats.table import FORMATS
from rlaif.data.preference import PreferencePair
from rlaif.data.read import read_records
from rlaif.errors import ConfigError, ContractError, DataError
from rlaif.feedback.narrative import prompt_version
from rlaif.feedback.scoring import ScoringModel
from rlaif.io.rundir import RunDir
from rlaif.records import Masked, Sample, Scored
from rlaif.stages.feedback import caption, label, pairs, sample, score
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.train import reward


class Script:
    """A rollout pool that says what `answer(prompt)` does: a text, (text, finish reason), or a Failure."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def submit(self, batch, prompts, n, seed, sampling):
        self.asked += prompts
        samples, failures = [], []
        for prompt in prompts:
            said = self.answer(prompt)
            if isinstance(said, Failure):
                failures.append(said)
                continue
            text, reason = said if isinstance(said, tuple) else (said, "stop")
            none = np.array([1], np.int32)
            samples += [Sample(prompt, i, "", 0, none, none, none, f"{text}{i or ''}", reason, 0) for i in range(n)]
        self.answers = Answers(samples, failures)

    def results(self, batch, timeout):
        yield self.answers


class Scripted:
    """Videos are probed in this process; engines are the script."""

    def __init__(self, config, answer):
        self.client = lambda: LocalFrames(config.data.root, config.video.num_frames)
        self.pool = Script(answer)
        self.engines = lambda model: self.pool


@pytest.fixture
def scripted(tmp_path, make_config, world):
    """scripted(answer, *overrides) -> (config, run) on data of its own, with two prompts about two videos."""
    root = tmp_path / "data"
    if not root.exists():
        shutil.copytree(world / "data", root)
        rows = [json.loads(line) for line in (root / "descriptions.jsonl").read_text().splitlines()]
        rows = list({row["video"]: row for row in rows}.values())[:2]
        write_rows(root / "few.jsonl", [{k: v for k, v in row.items() if k != "captions"} for row in rows])
        (root / "pairs.jsonl").unlink()

    def make(answer=lambda prompt: "what is seen", *overrides: str):
        plain = [f"data.root={root}", f"caption.model={world}/base", f"candidates.models=[{world}/base]"]
        plain += ["data.captions={run}/captions.jsonl", "caption.of=[few.jsonl]", "candidates.prompts=[few.jsonl]"]
        config = make_config(tmp_path, *plain, "caption.count=3", "caption.frames=8", *overrides)
        run = Run(config, RunDir(config.storage, config.name), None, Scripted(config, answer))
        return config, run

    return make


def videos(config) -> list[str]:
    return [row.fields["video"] for row in read_rows(datasets.data_path(config, "few.jsonl"))]


def kept(config) -> dict[str, dict]:
    return {
        row["video"]: row for row in datasets.open_captions(datasets.data_path(config, config.data.captions)).rows()
    }


# -- captions


def cut_in_the_second_unit_of(video):
    def answer(prompt):
        return ("cut her", "length") if prompt.video == video and prompt.frames[:1] == (8,) else "seen"

    return answer


def test_a_caption_that_was_cut_is_masked_with_its_reason_and_asked_for_again(scripted, caplog):
    config, _ = scripted()
    one, other = videos(config)
    config, run = scripted(cut_in_the_second_unit_of(one))
    found = caption.caption(config, run)
    assert found == {"captioned": 1, "retried": 0, "there": 0, "failed": 1, "left_out": 0, "cut": 0}
    assert (
        kept(config)[one]["masked"] == "unit 1 was cut at caption.max_tokens (256)"
        and "captions" not in kept(config)[one]
    )
    assert kept(config)[other]["context"] == ["seen"] * 3
    assert f"1 masked, unit 1 was cut at caption.max_tokens (256): {one}" in caplog.text
    assert (
        len([prompt for prompt in run.topology.pool.asked if prompt.video == one]) == 2
    )  # the third unit is not asked for
    before = datasets.data_path(config, config.data.captions).read_bytes()
    config, run = scripted(lambda prompt: "whole")
    found = caption.caption(config, run)
    assert found == {"captioned": 1, "retried": 1, "there": 1, "failed": 0, "left_out": 0, "cut": 0}
    assert {prompt.video for prompt in run.topology.pool.asked} == {one}
    assert kept(config)[one]["context"] == ["whole"] * 3 and kept(config)[other]["context"] == ["seen"] * 3
    assert datasets.data_path(config, config.data.captions).read_bytes().startswith(before)
    again = caption.caption(*scripted(lambda prompt: pytest.fail("asked again")))
    assert (again["there"], again["retried"]) == (2, 0)


def test_a_cut_caption_may_be_kept_and_says_so(scripted):
    config, _ = scripted()
    one, other = videos(config)
    config, run = scripted(cut_in_the_second_unit_of(one), "caption.cut=keep")
    assert caption.caption(config, run) | {"there": 0} == {
        **{"captioned": 2, "retried": 0, "there": 0, "failed": 0, "left_out": 0, "cut": 1},
    }
    assert kept(config)[one]["cut"] == ["unit 1"] and kept(config)[one]["context"] == ["seen", "cut her", "seen"]
    assert "cut" not in kept(config)[other]


def summarising(prompt):
    return " a summary\n" if not prompt.frames else "a red circle moves"


def test_a_summary_is_asked_for_with_whole_captions_within_the_budget(scripted, monkeypatch):
    monkeypatch.setattr(caption, "token_counter", lambda config: lambda text: len(text.split()))
    options = ("caption.aggregate=summarise", "caption.max_caption_tokens=9", "caption.summary_prompt='<{captions}>'")
    config, run = scripted(summarising, *options)
    assert caption.caption(config, run)["left_out"] == 2
    told = [prompt.question for prompt in run.topology.pool.asked if not prompt.frames]
    assert told == ["<a red circle moves a red circle moves>"] * 2
    for row in kept(config).values():
        assert row["left_out"] == 1 and len(row["captions"]) == 3 and row["context"] == ["a summary"]
    config, run = scripted(summarising, *options, "caption.max_caption_tokens=12", "data.captions={run}/all.jsonl")
    assert caption.caption(config, run)["left_out"] == 0 and "left_out" not in kept(config)[videos(config)[0]]
    config, run = scripted(summarising, *options, "caption.max_caption_tokens=3", "data.captions={run}/none.jsonl")
    assert caption.caption(config, run)["failed"] == 2
    assert "no caption fits" in kept(config)[videos(config)[0]]["masked"]


def test_the_budget_of_a_summary_counts_the_captioners_tokens_and_belongs_to_the_prompt(scripted):
    config, _ = scripted(summarising, "caption.aggregate=summarise")
    assert caption.token_counter(config)("a red circle moves") == 4
    other, _ = scripted(summarising, "caption.aggregate=summarise", "caption.max_caption_tokens=9")
    joined, _ = scripted(summarising, "caption.max_caption_tokens=9")
    versions = [prompt_version(one.caption) for one in (config, other, scripted()[0], joined)]
    assert versions[0] != versions[1] and versions[2] == versions[3]


def test_a_summary_that_was_cut_is_masked(scripted):
    config, run = scripted(lambda prompt: "seen" if prompt.frames else ("tol", "length"), "caption.aggregate=summarise")
    assert caption.caption(config, run)["failed"] == 2
    assert kept(config)[videos(config)[0]]["masked"].startswith("summary was cut")


# -- captions of imported pairs


def published(config, file: str, names: list[str]) -> Path:
    """VLM-RLAIF's rows, as they are."""
    turns = [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "x"}]
    outputs = {f"output_{n}": {"from": "gpt", "value": text} for n, text in ((1, "long answer"), (2, "short"))}
    row = {"conversations": turns, **outputs, "preference": 1}
    path = datasets.data_path(config, file)
    write_rows(path, [row | {"id": f"{n}", "image": name} for n, name in enumerate(names)])
    return path


def imported(config, file: str, *names: str, **about) -> None:
    rows = [
        {"pair_id": f"{name}#{n}", "video": name, "question": "what ?", "chosen": "a", "rejected": "b", **about}
        for n, name in enumerate(names)
    ]
    path = datasets.data_path(config, file)
    write_rows(path, map(PAIRS.columns, rows) if path.suffix == ".parquet" else rows, PAIRS.schema)


def test_the_videos_of_pairs_are_captioned_too_and_each_once(scripted, caplog):
    options = ("data.pairs=theirs.parquet", "data.pairs_eval=held_out.json")
    config, run = scripted(lambda prompt: "seen", *options)
    one, other = videos(config)
    more = sorted({row.fields["video"] for row in read_rows(datasets.data_path(config, "eval.jsonl"))})[:2]
    imported(config, "theirs.parquet", one, more[0], more[0], "gone.mp4")
    published(config, "held_out.json", [more[1], other])
    assert caption.caption(config, run)["captioned"] == 4
    assert set(kept(config)) == {one, other, *more} and "gone.mp4" in caplog.text
    (trained,) = [row for row in datasets.load(run, "theirs.parquet", "pairs") if row.video == one]
    assert trained.captions == ("seen",) * 3


def test_pairs_of_videos_and_an_empty_file_of_pairs_need_no_captions(scripted):
    config, run = scripted(lambda prompt: "seen", "caption.of=[nothing.jsonl]")
    with pytest.raises(ConfigError, match=r"preferences in data\.pairs"):
        caption.caption(config, run)
    one, other = videos(config)
    write_rows(datasets.data_path(config, "pairs.jsonl"), [])
    assert datasets.load(run, "pairs.jsonl", "pair_prompts") == []
    sides = {"pair_id": "r", "question": "q", "chosen_video": one, "rejected_video": other}
    write_rows(datasets.data_path(config, "pairs.jsonl"), [sides])
    assert datasets.load(run, "pairs.jsonl", "pair_prompts") == []
    with pytest.raises(DataError, match=r"preference pairs in .*few\.jsonl"):
        datasets.load(run, "few.jsonl", "pair_prompts")


def test_a_reward_model_that_reads_captions_says_where_they_come_from(scripted, caplog):
    """Missing captions are an error with the command that makes them; those that failed are counted."""
    config, run = scripted(lambda prompt: "seen", "reward.eval_fraction=0.5")
    one, other = videos(config)
    imported(config, "pairs.jsonl", one, other)
    for run_config in (config, scripted(None, "data.captions=null")[0]):
        own = Run(run_config, run.directory, None, run.topology)
        with pytest.raises(DataError, match=r"captions of the videos in pairs\.jsonl(.|\n)*rlaif caption CONFIG"):
            reward.training_pairs(run_config, own)
    none, _ = scripted(None, "reward.context=none", "reward.eval_fraction=0.5")
    assert len(reward.training_pairs(none, Run(none, run.directory, None, run.topology))[0]) == 1
    caption.caption(config, run)
    assert all(row.captions for rows in reward.training_pairs(config, run) for row in rows)
    path = datasets.data_path(config, config.data.captions)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row if row["video"] == one else {k: v for k, v in row.items() if k != "context"} for row in rows]
    path.write_text("".join(json.dumps(row if row["video"] == one else row | {"masked": "no"}) + "\n" for row in rows))
    reward.training_pairs(config, run)
    assert "1 of 2 rows have no captions" in caplog.text
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["video"] == one))
    with pytest.raises(DataError, match=f"none of 1 videos: {other}"):
        reward.training_pairs(config, run)


def test_own_captions_of_some_pairs_are_enough_without_a_store(scripted):
    config, run = scripted(None, "data.captions=null", "reward.eval_fraction=0.5")
    one, other = videos(config)
    rows = [
        {"pair_id": name, "video": name, "question": "q", "chosen": "a", "rejected": "b", "captions": captions}
        for name, captions in ((one, ["told"]), (other, []))
    ]
    write_rows(datasets.data_path(config, "pairs.jsonl"), rows)
    assert len(reward.training_pairs(config, run)[0]) == 1


# -- answers and pairs


def test_answers_that_failed_are_asked_for_again_and_nothing_else_is(scripted, caplog):
    config, _ = scripted()
    one, _ = videos(config)

    def answer(prompt):
        return Failure(prompt.prompt_id, "no room") if prompt.video == one else "an answer"

    config, run = scripted(answer, "candidates.per_model=2")
    assert sample.sample(config, run) == {"made": 1, "retried": 0, "there": 0, "failed": 1}
    assert "answers of" in caplog.text and "1 masked, no room: " in caplog.text
    path = datasets.data_path(config, config.data.candidates)
    before = path.read_bytes()
    config, run = scripted(lambda prompt: "an answer", "candidates.per_model=2")
    assert sample.sample(config, run) == {"made": 1, "retried": 1, "there": 1, "failed": 0}
    assert [prompt.video for prompt in run.topology.pool.asked] == [one]
    assert path.read_bytes().startswith(before) and len(path.read_bytes().splitlines()) == 3
    assert all(
        len(answers) == 2
        for answers in sample.answers_by_prompt(config, datasets.load(run, "few.jsonl", "prompts")).values()
    )
    config, run = scripted(lambda prompt: pytest.fail("asked again"), "candidates.per_model=2")
    assert sample.sample(config, run) == {"made": 0, "retried": 0, "there": 2, "failed": 0}


def test_a_row_names_every_sampling_option_and_a_change_of_any_is_noticed(scripted, monkeypatch):
    config, run = scripted()
    sample.sample(config, run)
    (row, *_), store = sample.open_candidates(config).rows(), sample.open_candidates(config)
    assert row["sampling"] == {
        **{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 256, "truncate_at": []},
        **{"per_model": 4, "run_seed": 0, "video": {"num_frames": 8, "height": None, "width": None}},
    }
    changed = sample.sampling_options(config).model_copy(update={"top_k": 5})  # as if the default were another one
    monkeypatch.setattr(sample, "sampling_options", lambda config: changed)
    with pytest.raises(ContractError, match="top_k"):
        sample.check_sampling(config, store)


def test_pairs_say_how_both_answers_were_sampled_and_may_be_parquet(scripted):
    """Two models: each answer keeps its own origin, wherever it ends up."""
    overrides = ("label.judge={path: 'opinions:longer'}", "label.context=none", "pairs.lengths=off")
    config, run = scripted(None, *overrides, "data.pairs={run}/made.parquet", "candidates.per_model=2")
    path = datasets.data_path(config, config.data.candidates)
    base, sampled = config.candidates.models[0], sample.sampling_record(config)
    who = {"model": base, "fingerprint": sample.ModelDir(base).fingerprint, "seed": 7, "sampling": sampled}
    asked = datasets.load(run, "few.jsonl", "prompts")
    rows = [
        {"prompt_id": p.prompt_id, "asked": sample.prompt_digest(p), **who, "answers": ["short", f"a longer one {n}"]}
        for n, p in enumerate(asked)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    label.label(config, run)
    for _ in range(2):  # what it wrote itself is replaced
        assert pairs.pairs(config, run)["pairs"] == 2
    found = list(PAIRS.read(read_rows(datasets.data_path(config, config.data.pairs))))
    for record in found:
        origin = {name: who[name] for name in ("model", "fingerprint", "seed", "sampling")}
        assert record.provenance["chosen"] == origin | {"index": 1} and record.chosen.startswith("a longer one")
        assert record.provenance["rejected"] == origin | {"index": 0}
    read, report = read_records(datasets.data_path(config, config.data.pairs), config.data.root, "pairs")
    assert len(read) == 2 and not report.skipped
    rows = [{key: row[key] for key in ("prompt_id", "answers")} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))  # answers of one's own
    pairs.pairs(config, run)
    (record, *_) = PAIRS.read(read_rows(datasets.data_path(config, config.data.pairs)))
    assert record.provenance.keys() <= {"prompt_type"}


def test_origins_follow_the_order_of_the_models(scripted, world):
    config, run = scripted(None, "candidates.models=[hub/one, hub/two]")
    asked = datasets.load(run, "few.jsonl", "prompts")
    path = datasets.data_path(config, config.data.candidates)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"prompt_id": asked[0].prompt_id, "model": model, "fingerprint": model, "seed": seed, "answers": answers}
        for model, seed, answers in (("hub/two", 2, ["c"]), ("hub/one", 1, ["a", "b"]))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sample.answers_by_prompt(config, asked)[asked[0].prompt_id] == ["a", "b", "c"]
    told = sample.answer_origins(config, asked)[asked[0].prompt_id]
    assert [(one["model"], one["seed"], one["index"]) for one in told] == [
        *[("hub/one", 1, 0), ("hub/one", 1, 1), ("hub/two", 2, 0)]
    ]


# -- scores


class Lengths:
    """A reward pool in this process."""

    actors = (None, None)

    def __init__(self):
        self.asked = []

    def score(self, answers):
        self.asked += answers
        return {a.key: Masked("bad") if "gone" in a.prompt.video else Scored(1.0, {"score": 1.0}) for a in answers}

    def collect(self, batches):
        return {key: outcome for batch in batches for key, outcome in batch.items()}


def test_scores_go_by_what_a_video_shows_not_by_where_it_lies(scripted, monkeypatch):
    config, run = scripted()
    one, other = videos(config)
    root = Path(config.data.root)
    shutil.copy(root / one, root / "copy.mp4")
    pool = Lengths()
    monkeypatch.setattr(score, "start_reward_actors", lambda config, run, path: pool)
    run.topology.stop_rewards = lambda: None
    records = [PreferencePair(name, "q", "a", "b", video=name) for name in (one, "copy.mp4", other, "gone.mp4")]

    def filled(store):
        job = score.ScoringJob(
            ScoringModel("rm", "f" * 16, ("overall",)), lambda record: (), score.frame_hashes(run), reads_captions=True
        )
        pool.asked.clear()
        score.fill_scores(config, run, job, records, store, len(records))
        assert job.without_context == len(records)
        return [(answer.prompt.video, answer.response) for answer in pool.asked]

    store = score.Store(root / "scores.jsonl", key=lambda row: row["key"])
    assert filled(store) == [(name, text) for name in (one, other, "gone.mp4") for text in "ab"]  # the copy is the same
    assert filled(store) == [("gone.mp4", "a"), ("gone.mp4", "b")]
    shutil.copy(root / other, root / "copy.mp4")
    shutil.copy(root / other, root / one)
    assert filled(store) == [("gone.mp4", "a"), ("gone.mp4", "b")]  # under the old name, and known
    more = sorted({row.fields["video"] for row in read_rows(datasets.data_path(config, "eval.jsonl"))})[0]
    shutil.copy(root / more, root / one)
    assert filled(store)[:2] == [(one, "a"), (one, "b")]


def test_frames_that_a_row_lists(scripted, caplog):
    """Captions are of exactly those; reward models are trained on them, and score them, only where the video shows them."""
    config, run = scripted(
        lambda prompt: "seen", "video.num_frames=2", "data.pairs_eval=theirs.json", "reward.context=none"
    )
    root = Path(config.data.root)
    (root / "v").mkdir()
    names = [f"v/{number}.png" for number in (1, 2, 3, 10, 11, 12)]
    for number, name in enumerate(names):
        (root / name).write_bytes(picture(number))
    lists = {"all": names, "some": names[1:4], "turned": names[::-1]}
    about = {"video": "v", "question": "what ?", "chosen": "a", "rejected": "b"}
    write_rows(root / "pairs.jsonl", [about | {"pair_id": name, "frames": lists[name]} for name in lists])
    theirs = json.loads(published(config, "theirs.json", ["v"] * 3).read_text())
    theirs = [row | {"images": lists[name], "image": None} for row, name in zip(theirs, lists, strict=True)]
    write_rows(root / "theirs.json", theirs)
    caption.caption(config, run)
    captioned = {video: row for video, row in kept(config).items() if video not in videos(config)}
    assert len(captioned) == 3 and sorted(len(row["frames"]) for row in captioned.values()) == [3, 3, 3]
    assert {client.total_frames for client in map(run.topology.client().spec, captioned)} == {3, 6}
    assert len({row["sha256"] for row in captioned.values()}) == 3
    assert {record.video for record in datasets.load_with_report(run, config.data.pairs_eval, "preferences")[0]} == set(
        captioned
    )
    assert [row.pair_id for row in datasets.load(run, "pairs.jsonl", "pairs")] == ["all"]
    assert "2 frames differ" in caplog.text and "--media DIR" in caplog.text
    assert [record.pair_id for record in score.valid_records(config, root / "pairs.jsonl")] == ["all"]
    surveyed = score.survey_file(config, root / "pairs.jsonl")
    assert surveyed.counts == {"kept": 1, "frames differ": 2}
    strict, _ = scripted(None, "data.strict=true")
    with pytest.raises(DataError, match="2 frames differ"):
        score.survey_file(strict, root / "pairs.jsonl")


def test_images_inside_a_file_of_pairs_are_captioned(scripted):
    config, run = scripted(lambda prompt: "seen", "video.num_frames=1", "caption.of=[nothing.jsonl]")
    row = RLAIF_V | {"question": "what ?", "chosen": "a", "rejected": "b"}
    rows = [row | {"idx": str(n), "image": {"bytes": picture(n), "path": None}} for n in range(2)]
    write_rows(datasets.data_path(config, "theirs.parquet"), rows, FORMATS["rlaif_v"].schema)
    config, run = scripted(
        lambda prompt: "seen", "video.num_frames=1", "caption.of=[nothing.jsonl]", "data.pairs_eval=theirs.parquet"
    )
    assert caption.caption(config, run)["captioned"] == 2
    assert all(record.captions for record in datasets.load_with_report(run, config.data.pairs_eval, "preferences")[0])


# -- files in a bucket


@pytest.mark.parametrize(
    ("override", "file", "told"),
    [
        (
            "data.root=s3://bucket/data",
            "prompts.jsonl",
            r"URI s3://bucket/data/prompts.jsonl(.|\n)*Set data\.root to a folder",
        ),
        (
            "data.prompts=gs://bucket/p.jsonl",
            None,
            r"URI gs://bucket/p.jsonl(.|\n)*Set data\.prompts to a folder or file",
        ),
        ("storage=s3://bucket/runs", None, r"URI s3://bucket/runs/run/data/prompts.jsonl"),
    ],
)
def test_a_file_in_a_bucket_is_an_error_that_names_the_option(scripted, make_config, tmp_path, override, file, told):
    plain = () if "storage" not in override else ("data.root={run}/data",)
    config = make_config(tmp_path, *plain, override)
    with pytest.raises(ConfigError, match=told):
        datasets.data_path(config, file or config.data.prompts)
    assert datasets.data_path(config, "/data/p.jsonl") == Path("/data/p.jsonl")
    assert datasets.data_path(config, "file:///data/p.jsonl") == Path("/data/p.jsonl")


def test_a_reader_of_captions_keeps_the_newest(tmp_path):
    """A video that changed and was captioned again, then changed back: what was retried counts, not what was made between."""
    store = datasets.open_captions(tmp_path / "c.jsonl")
    about = {"video": "v", "model": "m", "captioner": "c", "version": "1"}
    store.append([{"key": "one", **about, "masked": "no"}])
    store.append([{"key": "two", **about, "context": ["two"]}])
    store.append([{"key": "one", **about, "context": ["one"]}])
    for rows in (store.newest_last(), datasets.open_captions(tmp_path / "c.jsonl").newest_last()):
        assert [row["key"] for row in rows] == ["two", "one"]
    assert datasets.captions_by_video(tmp_path / "c.jsonl") == {("v", ""): {"": ("one",)}}


@pytest.mark.parametrize("extra", [{"kind": "how"}, {"safety": {"prompt_type": "how"}, "kind": "describe"}])
def test_a_pair_record_of_one_origin_only(extra):
    origin = SimpleNamespace(prompt_id="p", sample_index=0, answer="a", score=1.0)
    other = SimpleNamespace(prompt_id="p", sample_index=1, answer="b", score=0.0)
    prompt = SimpleNamespace(video="v.mp4", question="q", captions=(), extra=extra)
    made = pairs.pair_record(
        SimpleNamespace(chosen=origin, rejected=other, margin=1.0),
        SimpleNamespace(prompt=prompt),
        {"model": "j", "kind": "k"},
        [{}, {"model": "m"}],
    )
    assert made.judge == {"model": "j", "kind": "k", "chosen": 1.0, "rejected": 0.0}
    assert made.provenance == {"prompt_type": "how", "rejected": {"model": "m"}}
    assert made.along("overall") == made and PAIRS.build(made.to_row()) == made
