"""Options that differ between a checkpoint and the run that resumes it: reported, refused, or without effect."""

from __future__ import annotations

import pytest

from rlaif.config.difference import Change, changed_options, decides_order, is_fixed, resumed_with
from rlaif.config.schema import Config


def dumped(**options) -> dict:
    return Config(name="run", storage="/runs", **options).model_dump(mode="json")


def changed(stage: str, before: dict, now: dict, directories=("/runs/run", "/runs/run")) -> list[str]:
    return [str(change) for change in resumed_with(stage, before, now, directories)]


@pytest.mark.parametrize(
    ("stage", "before", "now", "expected"),
    [
        (
            "ppo",
            {"ppo": {"optim": {"lr": 1e-5}}},
            {"ppo": {"optim": {"lr": 2e-5}}},
            ["ppo.optim.lr: 1e-05 -> 2e-05"],
        ),
        ("sft", {"seed": 1}, {"seed": 2}, ["seed: 1 -> 2"]),
        ("ppo", {"cluster": {"learner": {"actors": 2}}}, {}, []),
        ("ppo", {"cluster": {"learner": {"actors": 4}}}, {}, ["cluster.learner.actors: 4 -> 2"]),
        ("ppo", {"sft": {"steps": 3}, "data": {"sft": "a"}}, {"reward": {"steps": 5}}, []),
        ("reward", {"data": {"pairs": "a.jsonl"}}, {"data": {"pairs": "b.jsonl"}}, ["data.pairs: a.jsonl -> b.jsonl"]),
        ("ppo", {"ppo": {"lora": {"r": 4}}}, {"ppo": {"lora": {"r": 8}}}, ["ppo.lora.r: 4 -> 8"]),
        ("ppo", {"ppo": {"reward_weights": {"a": 1.0}}}, {}, ['ppo.reward_weights: {"a": 1.0} -> {}']),
        (
            "ppo",
            {"ppo": {"reward": "/model"}},
            {"ppo": {"reward": {"path": "a:b"}}},
            ['ppo.reward: /model -> {"path": "a:b"}'],
        ),
        ("ppo", {"cluster": {"address": "a:1"}}, {"cluster": {"address": "b:2"}}, []),
    ],
)
def test_changed_options_that_the_stage_reads_are_reported(stage, before, now, expected):
    changes = changed(stage, dumped(**before), dumped(**now))
    assert changes == expected


def test_section_that_becomes_null_is_one_change():
    (change,) = changed_options({"lora": {"r": 4, "alpha": 8}}, {"lora": None})
    assert (change.option, change.before, change.now) == ("lora", {"r": 4, "alpha": 8}, None)
    assert changed_options({"lora": None}, {"lora": {"r": 4}}) == [Change("lora", None, {"r": 4})]
    assert changed_options({"lora": None, "a": {}}, {"lora": None, "a": {}}) == []


def test_moved_run_has_no_changes():
    before = dumped(data={"root": "/runs/run/data"}, ppo={"policy": "/runs/run/sft/export"})
    now = dumped(data={"root": "/new/run/data"}, ppo={"policy": "/new/run/sft/export"})
    assert changed("ppo", before, now, ("/runs/run", "/new/run")) == []
    assert len(changed("ppo", before, now, ("/elsewhere", "/new/run"))) == 2


def test_options_missing_on_one_side_are_not_reported():
    before = dumped()
    del before["ppo"]["reward_timeout_s"]
    before["ppo"]["of_an_older_version"] = 1
    assert changed("ppo", before, dumped()) == []


@pytest.mark.parametrize(
    ("stage", "option", "fixed", "order"),
    [
        ("ppo", "ppo.lora", True, False),
        ("ppo", "ppo.lora.r", True, False),
        ("ppo", "model.train_vision", True, False),
        ("sft", "sft.train_projector", True, False),
        ("reward", "reward.dimensions", True, False),
        ("ppo", "ppo.advantage", True, False),
        ("ppo", "ppo.optim.lr", False, False),
        ("ppo", "cluster.learner.actors", False, False),
        ("ppo", "ppo.prompts_per_iteration", False, True),
        ("sft", "sft.batch_size", False, True),
        ("ppo", "seed", False, True),
        ("ppo", "eval.seed", False, False),
        ("ppo", "data.prompts", False, True),
    ],
)
def test_fixed_options_and_options_that_decide_the_order(stage, option, fixed, order):
    assert (is_fixed(stage, option), decides_order(option)) == (fixed, order)
