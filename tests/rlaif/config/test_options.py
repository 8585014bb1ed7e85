"""The list of options, its reference page, and the suggestions for an option that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rlaif.config.load import examine, load_config
from rlaif.config.nearest import nearest
from rlaif.config.options import WIDTH, all_options, listing, options_page
from rlaif.config.shown import shown_config
from rlaif.errors import ConfigError


def test_every_option_is_listed_with_type_default_and_meaning():
    options = {option.path: option for option in all_options()}
    learners = options["cluster.learner.actors"]
    assert (learners.kind, learners.default) == ("integer >= 1", "2")
    assert options["ppo.kl.estimator"].kind == "k1 | k3"
    assert options["ppo.save.every"].default == "10" and options["sft.save.every"].default == "0"
    assert options["ppo.lora"].default == "the options below"
    assert [option.path for option in options.values() if not option.text] == []


PAGE = Path(__file__).parents[3] / "docs" / "options.md"


def test_options_page_is_up_to_date():
    stale = "docs/options.md is stale: run `python -m rlaif.config.options > docs/options.md`"
    assert PAGE.read_text() == options_page(), stale


def test_defaults_are_on_one_line():
    for option in all_options():
        assert "\n" not in option.default, option.path
    (template,) = [option for option in all_options() if option.path == "label.captions_template"]
    assert template.default == r'"What happens in the video: {captions}\n"'


def test_options_page_has_every_option_once_and_no_html():
    page = options_page()
    for option in all_options():
        heading = f"\n## {option.path}\n"
        item = f"- **`{option.path}`**"
        assert page.count(heading) + page.count(item) == 1, option.path
    without_code = re.sub(r"`[^`]*`", "", page)
    # Markdown takes <name> outside of code for an HTML tag and shows nothing.
    assert not re.search(r"<[A-Za-z/!?]", without_code)


def test_every_description_is_a_sentence():
    for option in all_options():
        assert option.text.endswith("."), option.path
        assert not re.search(r"\bNone\b", option.text), f"{option.path}: YAML writes null"


@pytest.mark.parametrize(
    ("section", "inside", "outside"),
    [
        ("ppo.optim", "ppo.optim.lr", "ppo.critic_optim.lr"),
        ("ppo.optim.lr", "ppo.optim.lr  (", "betas"),
        ("", "bench.rounds", "~"),
    ],
)
def test_listing_of_a_section(section, inside, outside):
    text = listing(section)
    assert inside in text and outside not in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_listing_of_an_unknown_section_is_none():
    assert listing("pp") is None and listing("ppo.opt") is None


@pytest.mark.parametrize(
    ("typed", "stage", "meant"),
    [
        ("iterations", None, ["ppo.iterations"]),
        ("ppo.lora.rank", None, ["ppo.lora.r"]),
        ("sft.stps", None, ["sft.steps"]),
        ("sed", None, ["seed"]),
        ("lr", "sft", ["sft.optim.lr"]),
        ("learning_rate", "sft", ["sft.optim.lr"]),
        ("ppo.lr", None, ["ppo.critic_optim.lr", "ppo.optim.lr"]),
        ("kl.coef", None, ["ppo.kl.coef"]),
        ("reward.batchsize", None, ["reward.batch_size"]),
        ("max_new_tokens", "ppo", ["ppo.sampling.max_tokens"]),
        ("zzzz", None, []),
    ],
)
def test_mistyped_option_gets_suggestions_with_full_paths(typed, stage, meant):
    assert nearest(typed, stage) == meant


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"name: x\nstorage: {tmp_path}/runs\n")
    return path


def test_unreadable_and_incompatible_options_are_reported_together(file):
    config, problems = examine(
        file, ["iterations=3", "ppo.kl.coef=many", "ppo.minibatch_size=7", "model.dtype=int8"], "ppo"
    )
    assert config.ppo.minibatch_size == 7
    assert [problem.partition(":")[0] for problem in problems[:3]] == ["model.dtype", "ppo.kl.coef", "iterations"]
    assert "ppo.minibatch_size (7) must divide" in problems[3]


def test_unreadable_option_causes_no_second_problem(file):
    for option in ("ppo.minibatch_size", "ppo.samples_per_prompt"):
        _, problems = examine(file, [f"{option}=many", "ppo.prompts_per_iteration=3"], "ppo")
        assert len(problems) == 1 and problems[0].startswith(f"{option}: ")


@pytest.mark.parametrize("option", ["eval.checker", "label.reference", "label.split"])
def test_function_in_braces_gets_a_hint(file, option):
    _, problems = examine(file, [f"{option}={{path: 'a:b'}}"])
    assert len(problems) == 1 and f"write {option}=a:b, without braces" in problems[0]


def test_folder_error_names_the_configuration_inside(tmp_path, file):
    with pytest.raises(ConfigError, match="the folder .*(.|\n)*config.yaml"):
        load_config(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ConfigError, match="the run directory .*(.|\n)*config.yaml, the configuration that this run"):
        load_config(tmp_path)


def test_shown_configuration_hides_secrets(file):
    server = "label.judge={url: 'http://h:1/v1/hunter2', model: m, api_key_env: HUNTER2, extra: {token: hunter2}}"
    bucket = "storage=s3://hunter2:hunter2@bucket/runs?region=eu&secret_key=hunter2"
    config, problems = examine(file, [server, bucket])
    text = shown_config(config)
    assert problems == [] and "hunter2" not in text.lower()
    assert "s3://(hidden)@bucket/runs?region=eu&secret_key=(hidden)" in text
