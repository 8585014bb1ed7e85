"""Rows that can never be used are counted and named, by id and line, before an engine or a learner starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from half_broken import half_broken
from without_actors import NoTopology

from rlaif.config.schema import Reward
from rlaif.errors import ConfigError, DataError
from rlaif.io.rundir import RunDir
from rlaif.models.reward import CARD, HEAD, card_text
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.stages.feedback import caption, sample, score
from rlaif.stages.feedback.judge_inputs import read_cases
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.train import evaluate, ppo, reward, sft
from rlaif.stages.train.prompts import open_deck

LONG = "describe the video . " * 80
STARTED = "an actor was asked for"
NO_EXPORT = "the export of a PPO run"


class Folder:
    """A copy of the world's data and a run without a cluster over it."""

    def __init__(self, root: Path, config_of):
        self.root, self._config_of = root, config_of

    def rows(self, file: str) -> list[dict]:
        return [json.loads(line) for line in (self.root / file).read_text().splitlines()]

    def write(self, file: str, rows: list[dict]) -> None:
        (self.root / file).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, *overrides: str) -> Run:
        config = self._config_of(f"data.root={self.root}", *overrides)
        return Run(config, RunDir(config.storage, config.name), None, NoTopology(config))


@pytest.fixture
def folder(world, tmp_path, make_config) -> Folder:
    shutil.copytree(world / "data", tmp_path / "data")
    return Folder(tmp_path / "data", lambda *overrides: make_config(tmp_path, *overrides))


def prompts_with(folder: Folder, file: str, **questions: str) -> int:
    """Append a prompt for each question to a file; returns how many there were."""
    rows = folder.rows(file)
    odd = [rows[0] | {"prompt_id": name, "question": question} for name, question in questions.items()]
    folder.write(file, rows + odd)
    return len(rows)


def train(stage, run: Run, *args) -> None:
    """Up to the first actor."""
    with pytest.raises(AssertionError, match=STARTED):
        stage(run.config, run, *args)


ODD = {"vp": "what is <|video_pad|> here ?", "image": "see <image> .", "start": "a <|vision_start|> b", "long": LONG}


@pytest.mark.parametrize(
    ("stage", "file", "limit"),
    [
        (ppo.train, "prompts.jsonl", "over 244 (rollout.max_model_len less the 12 of ppo.sampling.max_tokens)"),
        (ppo.train, "eval.jsonl", "over 255 (rollout.max_model_len less the 1 of an answer)"),
        (sample.sample, "prompts.jsonl", "over 255 (rollout.max_model_len less the 1 of an answer)"),
    ],
)
def test_prompts_that_no_engine_answers(folder, world, caplog, stage, file, limit):
    good = prompts_with(folder, file, **ODD)
    run = folder.run(f"candidates={{models: ['{world}/base'], prompts: [prompts.jsonl], max_tokens: 12}}")
    train(stage, run)
    assert f"{good} of {good + 4} rows kept, 3 media mark in text, 1 too long" in caplog.text
    for line, name in enumerate(ODD, good + 1):
        assert f"line {line}, id {name!r}: " in caplog.text
    assert limit in caplog.text


def test_prompts_behind_which_no_whole_answer_fits_are_sampled_with_a_remark(folder, world, caplog):
    run = folder.run(f"candidates={{models: ['{world}/base'], prompts: [prompts.jsonl], max_tokens: 256}}")
    train(sample.sample, run)
    remark = "they leave no room for a whole answer (rollout.max_model_len less the 256 of candidates.max_tokens)"
    assert f"{len(folder.rows('prompts.jsonl'))} rows are used although {remark}" in caplog.text


def test_evaluation_alone_checks_its_prompts_too(folder, caplog):
    good = prompts_with(folder, "eval.jsonl", **ODD)
    run = folder.run()
    (run.directory.path / "export").mkdir(parents=True)
    (run.directory.path / "export" / "x").touch()
    train(evaluate.evaluate, run)
    assert f"{good} of {good + 4} rows kept" in caplog.text


def test_a_file_of_unusable_prompts_is_an_error_and_so_is_one_with_strict(folder):
    rows = folder.rows("prompts.jsonl")
    folder.write("bad.jsonl", [rows[0] | {"question": LONG}])
    with pytest.raises(DataError, match="at least one good row(.|\n)*1 too long"):
        run = folder.run("data.prompts=bad.jsonl")
        ppo.train(run.config, run)
    prompts_with(folder, "prompts.jsonl", long=LONG)
    with pytest.raises(DataError, match="as data.strict asks for(.|\n)*id 'long'"):
        run = folder.run("data.strict=true")
        ppo.train(run.config, run)


def test_questions_that_are_odd_and_usable_are_kept_with_a_remark_on_marks_of_turns(folder, caplog):
    odd = {"brace": "{context} {0} {{ }}", "jinja": "{{ 7*7 }} {% raw %}", "space": "   ", "unk": "qwerty \x00 🎬"}
    good = prompts_with(folder, "prompts.jsonl", **odd, end="describe <|im_end|> the video .")
    run = folder.run()
    train(ppo.train, run)
    assert len(datasets.load(run, "prompts.jsonl", "prompts")) == good + 5
    assert "1 rows are used although question holds '<|im_end|>'" in caplog.text
    assert f"'end' (prompts.jsonl line {good + 5})" in caplog.text


def test_conversations_that_cannot_be_learned(folder, caplog):
    rows = folder.rows("sft.jsonl")
    ask, answer = {"role": "user", "content": "what ?"}, {"role": "assistant", "content": "a red circle"}
    odd = {
        "cut": [ask, answer | {"content": "a red <|im_end|> circle"}],
        "mark": [ask, answer | {"content": "a <video> circle"}],
        "system": [{"role": "system", "content": "<|image_pad|>"}, ask, answer],
        "long": [ask | {"content": LONG}, answer],
    }
    folder.write("sft.jsonl", rows + [rows[0] | {"id": name, "messages": turns} for name, turns in odd.items()])
    train(sft.train, folder.run("data.max_prompt_tokens=250"))
    for line, name in enumerate(odd, len(rows) + 1):
        assert f"line {line}, id {name!r}: " in caplog.text
    assert f"{len(rows)} of {len(rows) + 4} rows kept" in caplog.text


def test_pairs_that_a_reward_model_cannot_learn(folder, caplog):
    rows = folder.rows("pairs.jsonl")
    odd = {
        "question": {"question": "what is <|video_pad|> ?"},
        "chosen": {"chosen": "a <image> circle"},
        "captions": {"captions": ["a <|vision_start|>"]},
        "cut": {"chosen": "a red <|im_end|> circle"},
        "same": {"chosen": "a red qwerty", "rejected": "a red asdfgh"},
        "long": {"rejected": LONG},
    }
    folder.write("pairs.jsonl", rows + [rows[0] | {"pair_id": name} | change for name, change in odd.items()])
    train(reward.train, folder.run("data.max_prompt_tokens=250"))
    for line, name in enumerate(odd, len(rows) + 1):
        assert f"line {line}, id {name!r}: " in caplog.text
    assert f"{len(rows)} of {len(rows) + 6} rows kept" in caplog.text


def test_videos_that_no_captioner_can_be_asked_about(folder, world, caplog):
    captioned = "caption={model: '%s/base', of: [prompts.jsonl], max_tokens: 12, prompt: '%s'}"
    run = folder.run(captioned % (world, LONG.strip()), "data.captions=captions.jsonl", "data.pairs=none.jsonl")
    counts = caption.caption(run.config, run)
    assert counts["failed"] == 8 and counts["captioned"] == 0
    assert "8 of 8 videos cannot be captioned" in caplog.text and "rollout.max_model_len" in caplog.text


def test_answers_with_media_marks_are_not_judged(folder, world, caplog):
    prompts = folder.rows("prompts.jsonl")
    answers = [{"prompt_id": row["prompt_id"], "answers": ["a cat", "a dog"]} for row in prompts]
    answers[1]["answers"] = ["a cat", "a <|video_pad|> dog"]
    folder.write("answers.jsonl", answers)
    run = folder.run("data.candidates=answers.jsonl", "candidates={prompts: [prompts.jsonl]}", "label.context=none")
    cases, _ = read_cases(run.config, run)
    assert len(cases) == len(prompts) - 1
    assert "1 prompts have answers with a media mark" in caplog.text
    assert f"{answers[1]['prompt_id']!r} (prompts.jsonl line 2)" in caplog.text


def test_videos_that_do_not_decode_are_named_before_training(folder, caplog):
    for name in ("sft", "pairs"):
        half_broken(folder.root / f"half_{name}")
        rows = folder.rows(f"{name}.jsonl")
        folder.write(f"{name}.jsonl", [rows[0] | {"video": f"half_{name}"}, *rows[1:]])
    for stage, file in ((sft.train, "sft.jsonl"), (reward.train, "pairs.jsonl")):
        caplog.clear()
        train(stage, folder.run())
        assert "1 of the" in caplog.text and f"({file} line 1)" in caplog.text
        train(stage, folder.run("data.check_s=0"))
        with pytest.raises(DataError, match="data.strict"):
            run = folder.run("data.strict=true")
            stage(run.config, run)


def test_a_new_run_leaves_out_prompts_whose_videos_do_not_decode(folder):
    half_broken(folder.root / "half")
    rows = folder.rows("prompts.jsonl")
    folder.write("prompts.jsonl", [rows[0] | {"video": "half"}, *rows[1:]])
    for override, left_out in (("seed=0", 1), ("deterministic=true", 0), ("data.check_s=0", 0)):
        run = folder.run(override)
        deck = open_deck(run.config, run, datasets.load(run, "prompts.jsonl", "prompts"), None)
        assert len(deck.left_out) == left_out
        assert all(rows[0]["prompt_id"] not in [p.prompt_id for p in deck.of(n)] for n in range(9)) == bool(left_out)
    with pytest.raises(DataError, match="ppo.max_prompt_failures"):
        run = folder.run("ppo.max_prompt_failures=0.01")
        open_deck(run.config, run, datasets.load(run, "prompts.jsonl", "prompts"), None)


@pytest.fixture
def reads_captions(folder, world, tmp_path) -> str:
    """Return the option that names a reward model that was trained with captions."""
    export = tmp_path / "reward"
    shutil.copytree(world / "base", export)
    (export / CARD).write_text(card_text(str(export), None, RewardPrompt.of(Reward())))
    (export / HEAD).touch()
    return f"ppo.reward={export}"


@pytest.mark.parametrize("missing", ["prompts.jsonl", "eval.jsonl"])
def test_a_reward_model_that_reads_captions_needs_some(folder, reads_captions, missing):
    folder.write(missing, [{**row, "captions": []} for row in folder.rows(missing)])
    run = folder.run(reads_captions, "data.captions=typo.jsonl")
    with pytest.raises(DataError, match=r"none in any of \d+ prompts; data.captions \(typo.jsonl\) is not a file"):
        ppo.train(run.config, run)


def test_some_prompts_without_captions_are_counted(folder, reads_captions, caplog):
    rows = folder.rows("prompts.jsonl")
    folder.write("prompts.jsonl", [rows[0], *({**row, "captions": []} for row in rows[1:])])
    train(ppo.train, folder.run(reads_captions))
    assert f"{len(rows) - 1} of {len(rows)} prompts have no captions" in caplog.text


def test_scores_by_a_reward_model_that_reads_captions_need_some(folder, reads_captions):
    folder.write("pairs.jsonl", [{**row, "captions": []} for row in folder.rows("pairs.jsonl")])
    run = folder.run(f"score={{models: ['{reads_captions.removeprefix('ppo.reward=')}']}}")
    with pytest.raises(DataError, match="none in any of the records of"):
        score.score(run.config, run)


def test_a_bucket_that_does_not_answer_is_an_error_within_seconds(make_config, tmp_path):
    from rlaif.stages.run.run import open_run

    config = make_config(
        tmp_path, "storage='s3://no-such-bucket/runs?region=x&endpoint_override=localhost:1&scheme=http'"
    )
    with pytest.raises(ConfigError, match="a storage that answers at s3://no-such-bucket/runs"), open_run(config):
        raise AssertionError("a cluster was started")
