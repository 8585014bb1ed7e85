"""Loading a configuration from YAML and overrides: a checked one, or one error that names every problem."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlaif.config.load import load_config
from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.config.shown import shown_config
from rlaif.errors import ConfigError
from rlaif.stages.table import scope_of

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


@pytest.fixture
def load(tmp_path):
    """Return load(text, *overrides), which gives the configuration in a file of that text."""

    def make(text="name: x\n", *overrides, stage="sft") -> Config:
        file = tmp_path / "config.yaml"
        file.write_text(text)
        return load_config(file, list(overrides), scope_of(stage))

    return make


def problems(error) -> list[str]:
    return [line.strip()[2:] for line in error.value.found.splitlines()[1:]]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
@pytest.mark.parametrize("stage", [None, "sft", "reward", "ppo"])
def test_every_shipped_configuration_loads(path, stage):
    assert load_config(path, [], scope_of(stage)).name


def test_there_are_shipped_configurations():
    assert "demo.yaml" in [path.name for path in CONFIGS]


def test_all_problems_are_reported_at_once(load):
    text = """
name: x
sed: 3
ppo:
  optm: {lr: 1}
  kl: {targt: 3, coef: -1}
  samples_per_prompt: many
model: {dtype: float8}
"""
    with pytest.raises(ConfigError) as error:
        load(text)
    lines = problems(error)
    assert error.value.found.startswith("6 problem(s)") and len(lines) == 6
    assert "sed: no such option; nearest is `seed`" in lines
    assert "ppo.optm: no such option; nearest is `ppo.optim`" in lines
    assert "ppo.kl.targt: no such option; nearest is `ppo.kl.target`" in lines
    assert any(line.startswith("ppo.kl.coef: ") and "-1" in line for line in lines)
    assert any(line.startswith("ppo.samples_per_prompt: ") and "'many'" in line for line in lines)
    assert any(line.startswith("model.dtype: ") and "bfloat16" in line for line in lines)


def test_invalid_caption_options_are_reported(load):
    with pytest.raises(ConfigError) as error:
        load("name: x\ncaption: {unit: second, count: 0, frames: 0, aggregate: sum}\n", stage="caption")
    options = ["caption.unit", "caption.count", "caption.frames", "caption.aggregate"]
    assert [line.partition(":")[0] for line in problems(error)] == options
    with pytest.raises(ConfigError) as error:
        load("name: x\ncaption: {dependent: true, prompt: see}\n", stage="caption")
    assert problems(error) == ["caption.prompt needs {previous} with caption.dependent=true"]


def test_unknown_key_without_similar_option_has_no_suggestion(load):
    with pytest.raises(ConfigError) as error:
        load("name: x\nzzzz: 1\n")
    assert problems(error) == ["zzzz: no such option"]


def test_unknown_key_that_is_the_name_of_a_section_class_is_reported(load):
    with pytest.raises(ConfigError) as error:
        load("name: x\nConfig: 1\n")
    assert len(problems(error)) == 1 and "no such option" in problems(error)[0]


def test_unknown_keys_in_alternatives_get_suggestions(load):
    with pytest.raises(ConfigError) as error:
        load("name: x\nppo: {reward: {pth: 'a:b'}, lora: {rank: 3}}\n")
    assert any("ppo.reward.pth: no such option; nearest is `ppo.reward.path`" in line for line in problems(error))
    assert any("ppo.lora.rank: no such option; nearest is `ppo.lora.r`" in line for line in problems(error))


def test_name_is_required(load):
    with pytest.raises(ConfigError, match="name: Field required"):
        load("seed: 1\n")


@pytest.mark.parametrize(
    ("override", "option", "value"),
    [
        ("ppo.kl.coef=0.1", "ppo.kl.coef", 0.1),
        ("ppo.optim.lr=1e-5", "ppo.optim.lr", 1e-5),
        ("ppo.lora=null", "ppo.lora", None),
        ("ppo.lora=", "ppo.lora", None),
        ("ppo.lora.r=8", "ppo.lora.r", 8),
        ("sft.lora.targets=[q_proj, v_proj]", "sft.lora.targets", ("q_proj", "v_proj")),
        ("model.gradient_checkpointing=true", "model.gradient_checkpointing", True),
        ("logging.wandb=off", "logging.wandb", "off"),
        ("pairs.lengths=off", "pairs.lengths", "off"),
        ("reward.captions_template=a = {captions}", "reward.captions_template", "a = {captions}"),
        ("ppo.policy={run}/elsewhere", "ppo.policy", "/big/x/elsewhere"),
        ("candidates.models=['{run}/elsewhere', hub/name]", "candidates.models", ("/big/x/elsewhere", "hub/name")),
        ("ppo.reward={path: 'a:b'}", "ppo.reward", Function(path="a:b")),
        ("ppo.reward.path=a:b", "ppo.reward", Function(path="a:b")),
        ("seed=7", "seed", 7),
    ],
)
def test_override_sets_one_option(load, override, option, value):
    node = load("name: x\nstorage: /big\nseed: 3\nppo: {kl: {target: 2.0}}\n", override)
    for part in option.split("."):
        node = getattr(node, part)
    assert node == value


def test_overrides_leave_their_neighbours_alone_and_the_last_one_wins(load):
    config = load("name: x\nppo: {kl: {target: 2.0}}\n", "ppo.kl.coef=0.1", "ppo.kl.coef=0.2")
    assert (config.ppo.kl.coef, config.ppo.kl.target) == (0.2, 2.0)


@pytest.mark.parametrize("override", ["seed", "=3", "ppo.kl.coef=[1"])
def test_malformed_override_is_refused(load, override):
    with pytest.raises(ConfigError) as error:
        load("name: x\n", override)
    assert "the argument" in error.value.fix


@pytest.mark.parametrize(
    ("text", "words"), [("a: [1\n", "line"), ("- 1\n", "a list"), ("x\n", "a single value"), ("", "an empty file")]
)
def test_file_without_a_mapping_is_refused(load, text, words):
    with pytest.raises(ConfigError) as error:
        load(text)
    assert words in error.value.found


def test_yaml_error_names_the_line_without_showing_it(load):
    with pytest.raises(ConfigError, match="in line 2, column 14") as error:
        load("name: x\napi_key_env: @hunter2\n")
    assert "hunter2" not in str(error.value)


def test_missing_file_is_reported(tmp_path):
    with pytest.raises(ConfigError, match="no file at .*none.yaml"):
        load_config(tmp_path / "none.yaml")


def test_run_directory_is_interpolated(load, monkeypatch, tmp_path):
    config = load("name: x\nstorage: /big/runs\n")
    assert (config.data.root, config.sft.init) == ("/big/runs/x/data", "/big/runs/x/base")
    assert config.ppo.reward == "/big/runs/x/reward/export"
    assert config.candidates.models == ("/big/runs/x/sft/export",)
    models = load("name: x\nstorage: /big/runs\nscore: {models: ['{run}/a', /b]}\n").score.models
    assert models == ("/big/runs/x/a", "/b")
    monkeypatch.chdir(tmp_path)
    assert load("name: x\n", "data.root=data").data.root == f"{tmp_path}/data"
    assert load("name: x\n", "data.root=s3://bucket/data").data.root == "s3://bucket/data"
    assert load("name: x\n").data.root == f"{tmp_path}/runs/x/data"  # actors may run in another directory
    monkeypatch.setenv("HOME", "/home/me")
    assert load("name: x\nstorage: ~/runs\n").data.root == "/home/me/runs/x/data"
    bucket = load("name: x\nstorage: 's3://bucket/runs?region=eu'\n")
    assert bucket.sft.init == "s3://bucket/runs/x/base?region=eu"


def test_shown_configuration_loads_as_the_same(load, tmp_path):
    config = load(
        "name: x\n", "ppo.lora.targets=[q_proj]", "ppo.reward={path: 'a:b'}", "video.height=56", "video.width=56"
    )
    assert load(shown_config(config)) == config


@pytest.mark.parametrize(
    ("texts", "value"), [((), "auto"), (("auto",), "auto"), (("true",), True), (("false",), False)]
)
def test_enforce_eager_takes_auto_and_truth_values(load, texts, value):
    rollout = load("name: x\n", *(f"rollout.enforce_eager={text}" for text in texts)).rollout
    assert rollout.enforce_eager is value or rollout.enforce_eager == value == "auto"
    assert shown_config(Config(name="x", rollout=rollout))


def test_enforce_eager_refuses_other_values(load):
    with pytest.raises(ConfigError, match="rollout.enforce_eager"):
        load("name: x\n", "rollout.enforce_eager=maybe")


@pytest.mark.parametrize(
    ("typed", "kind"),
    [
        ("off", "truth value"),
        ("12", "number"),
        ("1e5", None),
        ("007", None),
        ("2024-01-01", None),
        ("2024-13-45", None),
    ],
)
def test_name_that_yaml_misreads_gets_a_hint_to_quote_it(tmp_path, typed, kind):
    file = tmp_path / "c.yaml"
    file.write_text(f"name: {typed}\n")
    for path, overrides in ((file, []), (CONFIGS[0].with_name("demo.yaml"), [f"name={typed}"])):
        if kind is None:
            assert load_config(path, overrides).name == typed
            continue
        with pytest.raises(ConfigError) as caught:
            load_config(path, overrides)
        assert f"YAML reads that as a {kind}: quote it (name:" in caught.value.found
    file.write_text(f'name: "{typed}"\n')
    assert load_config(file).name == load_config(file, [f'name="{typed}"']).name == typed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nseed: 0\nseed: 7\n", "duplicate key `seed` (the first is in line 2) in line 3"),
        ("name: x\nppo: {clip: 0.1}\nppo: {iterations: 3}\n", "duplicate key `ppo` (the first is in line 2)"),
        ("name: x\nsft: {steps: 1, steps: 2}\n", "duplicate key `steps`"),
        ("name: !!int abc\n", "a value that does not fit its tag"),
        ("name: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    ],
)
def test_ambiguous_or_broken_yaml_is_refused(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match="valid YAML") as caught:
        load_config(tmp_path / "c.yaml")
    assert message in caught.value.found


@pytest.mark.parametrize(
    "override",
    [
        "ppo.optim.lr=.inf",
        "ppo.kl.coef=.nan",
        "ppo.target_kl=.nan",
        "ppo.optim.lr=true",
        "ppo.iterations=yes",
        "ppo.reward_weights={a: true}",
        "ppo.reward_weights={a: .nan}",
        "seed=1:30",
        "seed=0b11",
    ],
)
def test_a_number_must_be_finite_and_no_truth_value(load, override):
    with pytest.raises(ConfigError, match=override.partition("=")[0]) as caught:
        load("name: x\n", override)
    assert "number" in str(caught.value) or "integer" in str(caught.value)


def test_a_leading_zero_is_no_octal_number(load):
    assert load("name: x\nseed: 017\n").seed == 17


@pytest.mark.parametrize(("folder", "message"), [("b/mine", "add storage={root}/b"), ("b/other", "name=other")])
def test_configuration_of_a_copied_run_is_refused_with_the_fix(tmp_path, folder, message):
    text = f"name: mine\nstorage: {tmp_path}/a\n"
    for place in ("a/mine", folder):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / ".lock").touch()
        (tmp_path / place / "config.yaml").write_text(text)
    assert load_config(tmp_path / "a" / "mine" / "config.yaml").name == "mine"
    with pytest.raises(ConfigError, match="a moved or copied run directory") as caught:
        load_config(tmp_path / folder / "config.yaml")
    assert message.format(root=tmp_path) in caught.value.found
    assert load_config(tmp_path / folder / "config.yaml", [f"storage={tmp_path}/b"]).storage == f"{tmp_path}/b"
    assert load_config(tmp_path / folder / "config.yaml", ["name=new"]).name == "new"
