"""What a stage says and refuses when it goes on from a checkpoint, without actors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rlaif.config.schema import Config
from rlaif.errors import CheckpointError, ConfigError
from rlaif.io.rundir import RunDir
from rlaif.stages.run.run import Run, advice, check_start

LORA = {"r": 4, "alpha": 4}


def opened(tmp_path: Path, name: str = "run", **options) -> Run:
    config = Config(name=name, storage=str(tmp_path), **options)
    directory = RunDir(config.storage, config.name)
    directory.prepare()
    return Run(config, directory, None, None)


def begin(run: Run, start: str, stage: str = "ppo", identity: dict | None = None):
    checkpoints = run.checkpoints(stage, 2)
    return checkpoints, run.starting_point(stage, checkpoints, start, {"stage": stage, **(identity or {})})


def save(run: Run, iteration: int, stage: str = "ppo", identity: dict | None = None) -> None:
    checkpoints, _ = begin(run, "new" if iteration < 2 else "resume", stage, identity)
    meta = {"identity": {"stage": stage, **(identity or {})}, **run.record()}
    checkpoints.save(iteration, lambda folder: (folder / "state").write_text("x"), meta)


def test_changed_options_are_named_and_kept(tmp_path, caplog):
    save(opened(tmp_path, seed=1, ppo={"optim": {"lr": 1e-5}}), 1)
    now = {"seed": 2, "ppo": {"optim": {"lr": 2e-5}, "prompts_per_iteration": 8}}
    begin(opened(tmp_path, **now), "resume")
    for told in ("ppo.optim.lr: 1e-05 -> 2e-05", "seed: 1 -> 2", "ppo.prompts_per_iteration: 64 -> 8"):
        assert told in caplog.text
    assert "with another seed, ppo.prompts_per_iteration, rows may be repeated or skipped" in caplog.text
    kept = {file.name: yaml.safe_load(file.read_text()) for file in (tmp_path / "run" / "configs").iterdir()}
    assert {name: config["seed"] for name, config in kept.items()} == {"000000.yaml": 1, "000001.yaml": 2}
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == kept["000001.yaml"]


def test_unchanged_options_cause_no_warning_even_if_the_run_moved(tmp_path, caplog):
    save(opened(tmp_path / "a", ppo={"policy": f"{tmp_path}/a/run/sft/export"}), 1)
    (tmp_path / "a").rename(tmp_path / "b")
    begin(opened(tmp_path / "b", ppo={"policy": f"{tmp_path}/b/run/sft/export"}), "resume")
    assert "other options" not in caplog.text


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"lora": LORA}, {"lora": LORA | {"r": 8}}, "ppo.lora.r: checkpoint 4, now 8"),
        ({"lora": LORA}, {"lora": None}, "ppo.lora: checkpoint {"),
        ({"train_vision": True}, {"train_vision": False}, "ppo.train_vision: checkpoint true, now false"),
        ({}, {"advantage": "leave_one_out"}, "ppo.advantage: checkpoint gae, now leave_one_out"),
    ],
)
def test_options_that_a_checkpoint_cannot_follow_are_refused_by_name(tmp_path, before, now, told):
    save(opened(tmp_path, ppo=before), 1)
    configuration = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(CheckpointError) as caught:
        begin(opened(tmp_path, ppo=now), "resume")
    assert told in caught.value.found
    assert (tmp_path / "run" / "config.yaml").read_text() == configuration  # a refusal changes nothing


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"lora": LORA}, {"lora": LORA | {"r": 8}}, "ppo.lora.r: checkpoint 4, now 8"),
        ({"policy": "abc"}, {"policy": "def"}, "ppo.policy (its contents): checkpoint abc, now def"),
        (
            {"critic": {"base": "a", "lora": LORA}},
            {"critic": {"base": "a", "lora": LORA | {"r": 8}}},
            "critic's lora.r",
        ),
        ({"critic": {"base": "a"}}, {"critic": None}, "critic (ppo.advantage): checkpoint"),
    ],
)
def test_another_model_is_refused_by_the_option_that_names_it(tmp_path, before, now, told, caplog):
    save(opened(tmp_path), 1, identity=before)
    with pytest.raises(CheckpointError) as caught:
        begin(opened(tmp_path, seed=7), "resume", identity=now)
    assert told in caught.value.found
    assert "goes on" not in caplog.text


def test_check_start_rejects_earlier_checkpoints_by_their_manifests(tmp_path):
    run = opened(tmp_path, ppo={"lora": LORA})
    for start in ("new", "fresh", "resume"):
        check_start(run.config, "ppo", start)  # there are none
    save(run, 1)
    with pytest.raises(ConfigError, match="one that has done 1 iterations"):
        check_start(run.config, "ppo", "new")
    for stage, start in (("ppo", "fresh"), ("ppo", "resume"), ("sft", "new")):
        check_start(run.config, stage, start)
    other = opened(tmp_path, ppo={"lora": LORA | {"r": 8}})
    with pytest.raises(CheckpointError, match="ppo.lora.r: checkpoint 4, now 8"):
        check_start(other.config, "ppo", "resume")
    check_start(other.config, "ppo", "fresh")
    begin(other, "fresh")  # a new start without a checkpoint leaves the earlier ones in force
    with pytest.raises(ConfigError, match="--fresh to start it over"):
        check_start(other.config, "ppo", "new")


def test_a_resume_of_a_finished_stage_tells_what_to_type(tmp_path, caplog):
    run = opened(tmp_path, ppo={"iterations": 14})
    save(run, 1)
    save(run, 14)
    _, newest = begin(run, "resume")
    assert not run.nothing_left("ppo", newest, 14, "ppo.iterations"), "it was killed before the export"
    run.exported("ppo", 14)
    assert json.loads((tmp_path / "run" / "exported.json").read_text()) == {"iteration": 14}
    for total in (5, 14):
        caplog.clear()
        assert run.nothing_left("ppo", newest, total, "ppo.iterations")
        assert "nothing remains to be trained" in caplog.text
        assert "--resume ppo.iterations=N with N above 14" in caplog.text and "--fresh" in caplog.text
    assert not run.nothing_left("ppo", newest, 15, "ppo.iterations")
    assert not run.nothing_left("ppo", None, 5, "ppo.iterations")


def test_advice_after_an_early_end_names_the_newest_checkpoint(tmp_path):
    run = opened(tmp_path)
    assert "the same command starts again" in advice(run.config, "ppo") and "--resume" not in advice(run.config, "ppo")
    save(run, 1)
    assert "--resume continues from the checkpoint of iteration 1" in advice(run.config, "ppo")
    assert "the same command starts again" in advice(run.config, "sft")
