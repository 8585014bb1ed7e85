"""Everything that is wrong is found at once, with the option's name, before Ray starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import ray

from rlaif.config.schema import Lora, Reward
from rlaif.errors import ConfigError
from rlaif.models.reward import CARD, card_text
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.stages import preflight
from rlaif.stages.preflight import examine_all, functions

FUNCTIONS = """
import time
def good(prompt, response): return {"length": float(len(response)), "known": 1.0}
def raises(prompt, response): raise KeyError("scene")
def words(prompt, response): return "good"
def hangs(prompt, response): time.sleep(60)
def check(prompt, response): return {"claims": 1, "false_claims": 0}
CONSTANT = 3
"""


@pytest.fixture(scope="module")
def my_functions(tmp_path_factory):
    """A module of a user's functions, importable as `my_functions`; `broken_module` cannot be imported."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "my_functions.py").write_text(FUNCTIONS)
    (folder / "broken_module.py").write_text("import sys\nsys.exit('no')\n")
    sys.path.append(str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def problems(tmp_path, make_config):
    """problems(stage, *overrides) -> what is wrong with a run on the tests' world."""
    make_config(tmp_path)
    file = tmp_path / "config.yaml"

    def find(stage: str | None, *overrides: str) -> list[str]:
        found = examine_all(str(file), overrides, stage).problems
        assert not ray.is_initialized()
        return found

    find.file = file
    return find


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo", None])
def test_a_run_that_can_start_has_no_problems(problems, stage):
    assert problems(stage, "reward.context=none") == []


def test_problems_of_all_kinds_are_found_together(problems, world, tmp_path):
    """Of options, files, numbers, models and functions; nothing is written."""
    found = problems(
        "ppo",
        "iterations=3",
        "ppo.minibatch_size=3",
        "cluster.learner.actors=2",
        "data.prompts=typo.jsonl",
        "ppo.policy=/nothing",
        "ppo.reward={path: 'no_module:f'}",
        "ppo.eval_every=1",
        "eval.checker=rlaif.worlds.shapes.checker:typo",
        "data.eval=none.jsonl",
        "storage=/proc/x",
    )
    text = "\n".join(found)
    for words in (
        "iterations: no such option; nearest is `ppo.iterations`",
        "ppo.minibatch_size (3) must divide",
        f"data.prompts: expected prompts for `rlaif ppo`\n      found  no file at {world}/data/typo.jsonl",
        "ppo.policy: a Hugging Face model directory",
        "Put the file there, or set data.prompts",
        "ppo.reward: expected a function as `package.module:name`",
        "eval.checker: expected a function as `package.module:name`",
        "no file at",
        "storage: a folder that can be written",
    ):
        assert words in text
    assert len(found) == 9
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("stage", "override", "expected"),
    [
        ("ppo", "ppo.prompts_per_iteration=400", "at most the {prompts} usable prompts"),
        ("ppo", "rollout.max_model_len=4096", "rollout.max_model_len of at most 2048"),
        ("ppo", "ppo.reward=my_functions:good", "ppo.reward='{{path: my_functions:good}}'"),
        ("label", "label.judge=my_functions:good", "label.judge='{{path: my_functions:good}}'"),
        ("label", "label.reference=my_functions:typo", "label.reference: expected a function"),
        ("label", "label.split=my_functions:CONSTANT", "label.split: a function as"),
        ("demo", "label.split=broken_module:f", "importing it raised SystemExit"),
        ("ppo", "eval.checker=my_functions:CONSTANT", "'my_functions:CONSTANT', a int"),
        ("ppo", "ppo.reward={{path: 'my_functions:raises'}}", "KeyError: 'scene'"),
        ("ppo", "ppo.reward={{path: 'my_functions:words'}}", "could not convert string to float"),
        ("ppo", "ppo.reward={{path: 'my_functions:hangs'}}", "has not returned after 0.2 s"),
        ("ppo", "eval.checker=my_functions:raises", "eval.checker: a dict of counts"),
        ("eval", "name=other", "name: expected the export of a PPO run"),
        ("reward", "data.pairs_eval=none.jsonl", "data.pairs_eval: expected held-out preference pairs"),
        ("reward", "reward.dimensions=[harmless]", "compared in harmless"),
        ("sft", "data.sft=prompts.jsonl", "0 of"),
        ("sft", "data.root=/nothing", "data.root: expected the folder of your files"),
        ("sft", "data.sft=../data", "is a folder"),
        ("sft", "storage=nothing://bucket/x", "nothing://bucket/x"),
        ("score", "score.models=[/nothing]", "fix    Set score.models"),
        ("caption", "caption.model=/nothing", "caption.model: a Hugging Face"),
        ("sample", "candidates.models=[/nothing]", "candidates.models: a Hugging Face"),
        ("pairs", "name=y", "run `rlaif label` first"),
        ("eval winrate", "name=y", "run `rlaif sample` first"),
        ("eval agreement", "name=y", "data.pairs_eval: expected the preferences"),
        ("eval context", "name=y", "label.reference: expected code that knows"),
    ],
)
def test_what_a_stage_lacks_is_named_by_its_option(
    problems, my_functions, world, monkeypatch, stage, override, expected
):
    monkeypatch.setattr(functions, "DRY_CALL_S", 0.2)
    count = len((world / "data" / "prompts.jsonl").read_text().splitlines())
    judge = [] if "judge" in override else ["label.method=claims", f"label.judge={world}/base"]
    found = problems(stage, *judge, override.replace("{{", "{").replace("}}", "}"))
    assert any(expected.format(prompts=count) in problem for problem in found), found


@pytest.mark.parametrize(("stage", "option"), [("ppo", "ppo.reward={}"), ("score", "score.models=[{}]")])
def test_a_reward_model_without_its_base_is_found(problems, tmp_path, stage, option):
    card = card_text("/nothing", Lora(), RewardPrompt.of(Reward()))
    (tmp_path / CARD).write_text(card)
    found = problems(stage, option.format(tmp_path))
    assert any(option.partition("=")[0] in problem and "/nothing" in problem for problem in found), found


def test_a_good_function_is_called_once_on_one_row(problems, my_functions):
    assert problems("ppo", "ppo.reward={path: 'my_functions:good'}", "eval.checker=my_functions:check") == []


def test_models_that_earlier_stages_make_are_no_problems_of_the_whole_way(problems, world):
    chain = ("reward.init={run}/sft/export", "ppo.policy={run}/sft/export", "ppo.reward={run}/reward/export")
    found = examine_all(str(problems.file), [*chain, "reward.context=none"])
    assert found.problems == [] and found.stages == ("sft", "reward", "ppo", "eval")
    assert "ppo.policy: made by `rlaif sft` first" in found.notes
    assert len(problems("ppo", *chain)) == 2, "policy and reward model, for `rlaif ppo` alone"


def test_bad_rows_are_noted_and_with_strict_are_problems(problems, world, tmp_path):
    rows = (world / "data" / "prompts.jsonl").read_text().splitlines()
    for row in rows:
        (tmp_path / json.loads(row)["video"]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / json.loads(row)["video"]).write_bytes(b"")
    (tmp_path / "prompts.jsonl").write_text("\n".join([*rows, '{"prompt_id": "half"']))
    found = examine_all(str(problems.file), [f"data.root={tmp_path}"], "ppo")
    assert found.problems == [] and "1 file cut off" in "".join(found.notes)
    assert "as data.strict asks for" in "".join(problems("ppo", f"data.root={tmp_path}", "data.strict=true"))


def test_a_cache_that_cannot_be_written_is_found(problems, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = "\n".join(problems("sft"))
    assert f"{tmp_path}/file is a file" in found and "Set XDG_CACHE_HOME" in found


def test_a_stage_does_not_start_with_problems(problems):
    from rlaif.config.load import load_config

    config = load_config(problems.file, ["sft.init=/nothing", "data.sft=typo.jsonl"], "sft")
    with pytest.raises(ConfigError, match="2 problem") as error:
        preflight.require(config, "sft", "config.yaml")
    assert "sft.init" in error.value.found and "data.sft" in error.value.found
    assert not Path(config.storage).exists()
