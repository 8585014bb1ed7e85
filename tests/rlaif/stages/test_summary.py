"""The end of every stage: its figures, where things are, and next commands that can be typed as they are."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from rlaif.cli import main
from rlaif.cli.stages import summarise
from rlaif.config.load import load_config
from rlaif.config.schema import Config
from rlaif.io.rundir import RunDir
from rlaif.stages.recipes import demo
from rlaif.stages.run import summary
from rlaif.stages.run.summary import CommandLine
from rlaif.stages.table import stage_named

ROW = {"policy": "sft", "seed": 0, "decoding": "greedy", "hallucination": 0.3, "recall": 0.8, "kl": 0.0, "length": 7.5}
COMPARED = {"agreement": 0.93, "pairs": 40}
RESULTS = {
    "sft": "EXPORT",
    "caption": {"captioned": 3, "retried": 0, "there": 5, "failed": 0, "left_out": 0, "cut": 0},
    "sample": {"made": 8, "retried": 0, "there": 0, "failed": 0},
    "label": {
        "prompts": 8, "answers": 24, "masked": {"cut": 2}, "claims": 60, "rejected": 9, "again": 0,
        "flips": {"before": 0.25}, "agreement": {"overall": COMPARED},
    },
    "pairs": {"pairs": 31, "prompts_with_pairs": 7, "held_out": 4, "dropped": {"equal scores": 5}},
    "reward": "EXPORT",
    "score": {"rows": 31, "out": "scored.jsonl", "models": [{"model": "rm", "candidates": 62, "masked": 1}]},
    "ppo": "EXPORT",
    "eval": [ROW],
}  # fmt: skip
METRICS = {
    "sft": [{"train/nll": 2.5}, {"train/nll": 0.125}],
    "reward": [{"eval/accuracy": 0.75}, {"eval/accuracy": 0.875}, {"eval/accuracy": 0.8125}],
    "ppo": [{"reward/mean": 1.25, "kl/response": 0.0}, {"reward/mean": 2.5, "kl/response": 0.5}],
}
EXPECTED = {
    "sft": ["2.500 -> 0.125", "EXPORT"],
    "caption": ["3 captioned, 5 there"],
    "sample": ["8 made"],
    "label": ["24 (2 without a score)", "60, of which the judge rejects 9", "25.0%", "93.0% of 40 pairs"],
    "pairs": ["31 of 7 prompts, 4 held out", "5 equal scores"],
    "reward": ["87.5% at step 2", "EXPORT"],
    "score": ["scored.jsonl", "62 candidates, 1 without a score"],
    "ppo": ["1.250 -> 2.500", "0.50 nats", "| sft | 0 | greedy |", "EXPORT"],
    "eval": ["| sft | 0 | greedy |"],
}
DEMO = CommandLine("configs/demo.yaml")
DEMO_RESULT = demo.DemoResult([ROW, {**ROW, "policy": "rlaif"}], {})
NEXT = {"sft": "caption", "caption": "sample", "sample": "label", "label": "pairs", "pairs": "reward", "ppo": "eval"}


@pytest.fixture(autouse=True)
def started_by_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["rlaif"])
    monkeypatch.setattr("shutil.which", lambda name: str(Path("rlaif").resolve()))


@pytest.fixture
def command_line(tmp_path, make_config):
    make_config(tmp_path)  # writes the file
    return CommandLine(str(tmp_path / "config.yaml"), ["seed=7", "data.captions={run}/captions of it.jsonl"])


@pytest.fixture
def config(command_line):
    config = load_config(command_line.config, list(command_line.overrides))
    run = RunDir(config.storage, config.name)
    run.prepare()
    for stage, rows in METRICS.items():
        for iteration, row in enumerate(rows, 1):
            run.append_metrics({"stage": stage, "iteration": iteration, **row})
    run.write_eval("ppo", {"rows": [ROW]})
    run.write_text("logs/ppo.log", "")
    return config


def commands_of(text: str) -> list[list[str]]:
    """Return the commands that a summary prints, as the words after the program."""
    lines = [line.strip() for line in text.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("rlaif ")]


def parsed(words: list[str]):
    """Return (arguments, configuration) of printed words, read as the command line reads them."""
    args = main.parse_arguments(words)
    return args, load_config(args.config, args.overrides, stage_named(args.command).scope)


@pytest.mark.parametrize("stage", RESULTS)
def test_summary_has_figures_and_places(config, command_line, stage):
    text = summarise(stage_named(stage), config, RESULTS[stage]).text("headline", command_line)
    assert not [part for part in EXPECTED[stage] if part not in text]
    assert str(config.storage) in text


@pytest.mark.parametrize("stage", RESULTS)
def test_following_commands_have_the_same_configuration(config, command_line, stage):
    text = summarise(stage_named(stage), config, RESULTS[stage]).text("headline", command_line)
    commands = commands_of(text)
    assert [words[0] for words in commands] == ([NEXT[stage]] if stage in NEXT else [])
    for words in commands:
        _, read = parsed(words)
        assert read == config


def following(stage: str, config: Config) -> list[str]:
    """Return the names of the stages that can follow one, in a run without metrics."""
    directory = RunDir(config.storage, config.name)
    directory.prepare()
    directory.metrics.touch()
    steps = summarise(stage_named(stage), config, "EXPORT").following
    return [name for _, name, _ in steps]


def test_ppo_follows_the_reward_model_that_it_uses(tmp_path, make_config, world):
    own = ["ppo.reward={run}/reward/export", f"ppo.policy={world}/base"]
    assert following("reward", make_config(tmp_path, *own)) == ["ppo"]
    uses_function = make_config(tmp_path)
    assert not following("reward", uses_function)
    has_no_policy = make_config(tmp_path, own[0], "ppo.policy={run}/sft/export")
    assert not following("reward", has_no_policy)


def test_reward_model_follows_sft_if_pairs_exist(tmp_path, make_config):
    """With a file of pairs, or a function as the reward, the next training stage comes before the feedback of a judge."""
    own = ["reward.init={run}/sft/export", "ppo.policy={run}/sft/export", "data.captions=null"]
    own += ["ppo.reward={run}/reward/export", f"data.pairs={tmp_path}/pairs.jsonl"]
    assert following("sft", make_config(tmp_path, *own)) == ["sample"]
    (tmp_path / "pairs.jsonl").write_text("")
    assert following("sft", make_config(tmp_path, *own)) == ["reward", "sample"]
    own[4] = "ppo.reward={path: 'rlaif.worlds.shapes.checker:reward'}"
    assert following("sft", make_config(tmp_path, *own)) == ["ppo", "sample"]


@pytest.mark.parametrize(
    ("argv", "on_path", "expected"),
    [
        ("/opt/x/bin/rlaif", "/opt/x/bin/rlaif", "rlaif"),
        (".venv/bin/rlaif", None, ".venv/bin/rlaif"),
        (".venv/bin/rlaif", "/usr/bin/rlaif", ".venv/bin/rlaif"),
        ("/x/rlaif/__main__.py", None, f"{sys.executable} -m rlaif"),
        ("pytest", None, "rlaif"),
    ],
)
def test_program_is_named_as_it_was_started(monkeypatch, argv, on_path, expected):
    monkeypatch.setattr(sys, "argv", [argv])
    monkeypatch.setattr("shutil.which", lambda name: on_path)
    assert summary.program() == expected


@pytest.mark.parametrize("overrides", [(), ("storage=a b", "name=x", "ppo.kl.coef=0.1"), ("data.captions=null",)])
def test_demo_commands_have_the_same_configuration(tmp_path, monkeypatch, overrides):
    monkeypatch.chdir(tmp_path)
    file = demo.SHIPPED.parents[3] / "configs" / "demo.yaml"
    command_line = CommandLine(str(file), list(overrides))
    config = load_config(file, list(overrides))
    text = demo.summarise_demo(config, RunDir(config.storage, config.name), DEMO_RESULT).text("headline", command_line)
    again, variant = commands_of(text)
    args, read = parsed(again)
    assert args.command == "eval" and read == config
    args, read = parsed(variant)
    assert args.command == "ppo" and read.name != config.name and read.ppo.kl.coef == 0.2
    for section, option in (("data", "root"), ("data", "captions"), ("ppo", "policy"), ("ppo", "reward")):
        assert getattr(getattr(read, section), option) == getattr(getattr(config, section), option)


def test_demo_summary_names_the_spread_of_figures(tmp_path):
    config = load_config(demo.SHIPPED.parents[3] / "configs" / "demo.yaml", [f"storage={tmp_path}"])
    rows = [ROW, {**ROW, "policy": "rlaif", "hallucination": 0.06}]
    result = demo.DemoResult(rows, {"peak memory": "8.5 GiB"})
    text = demo.summarise_demo(config, RunDir(config.storage, config.name), result).text("headline", DEMO)
    left, answers = demo.SPREAD["hallucination_left"], demo.SPREAD["qa_accuracy"]
    assert "seed 0: 20% of SFT's greedy hallucination is left" in text and "8.5 GiB" in text
    assert f"{left[0]:.0%} to {left[1]:.0%}" in text and f"{answers[0]:.2f} to {answers[1]:.2f}" in text


@pytest.mark.parametrize(("scratch", "words"), [(False, "comes with rlaif"), (True, "from scratch")])
def test_demo_names_its_base_model(tmp_path, scratch, words):
    file = demo.SHIPPED.parents[3] / "configs" / "demo.yaml"
    assert words in demo.started_from(load_config(file, [f"storage={tmp_path}", f"demo.scratch={scratch}"]))
