"""`rlaif init`: a configuration that fits the files in the folder, and replaces an existing one only with --force."""

from __future__ import annotations

import json

import pytest

from rlaif.config.load import load_config
from rlaif.config.starter import next_steps, write_config
from rlaif.errors import ConfigError
from rlaif.models.tiny import build_tiny


def write_rows(folder, name, count, **fields):
    rows = [{"prompt_id": f"{name}{i}", "video": "clips/a.mp4", "question": "what ?", **fields} for i in range(count)]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("positions", [None, 512])
def test_written_configuration_loads_without_demo_options(tmp_path, gpu, positions):
    folder = tmp_path / "my clips: 1"
    target, _ = write_config(folder, gpu, None, positions, False)
    config, text = load_config(target), target.read_text()
    assert (config.name, config.data.root) == ("my-clips-1", str(folder))
    assert config.eval.checker is None and "early" not in config.reward.captions_template
    assert config.rollout.max_model_len == (positions or (8192 if gpu else 4096))
    assert config.data.max_prompt_tokens + config.ppo.sampling.max_tokens == config.rollout.max_model_len
    assert config.model.device == ("cuda" if gpu else "cpu")
    assert (config.cluster.rollout.gpus > 0) is gpu and "<" not in text.replace("<storage>/<name>", "")


def test_configuration_fits_the_row_files(tmp_path):
    write_rows(tmp_path, "prompts.jsonl", 5, captions=["a", "b"])
    write_rows(tmp_path, "pairs.jsonl", 3, captions=["a", "b"])
    write_rows(tmp_path, "pairs_eval.json", 0)
    target, files = write_config(tmp_path, False, "/models/mine", None, False)
    config = load_config(target)
    assert config.ppo.prompts_per_iteration == 5 and config.ppo.minibatch_size == 20
    assert config.reward.batch_size == 3 and config.reward.context == "captions"
    assert config.data.pairs_eval == "pairs_eval.json" and config.data.prompts == "prompts.jsonl"
    assert config.ppo.policy == config.reward.init == "/models/mine", "without conversations nothing is fine-tuned"
    assert "(5 rows)" in target.read_text() and set(files) == {"prompts", "pairs", "pairs_eval"}


def test_next_steps_name_an_existing_clip(tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "x.MP4").write_bytes(b"")
    target, files = write_config(tmp_path, False, None, None, False)
    text = next_steps(tmp_path, files)
    assert text.count('"video": "films/x.MP4"') == 4 and f"rlaif check {target}" in text
    text = next_steps(tmp_path, files, ".venv/bin/rlaif")
    assert f".venv/bin/rlaif check {target}" in text and ".venv/bin/rlaif options" in text


def test_existing_configuration_is_replaced_only_with_force(tmp_path):
    target, _ = write_config(tmp_path, False, None, None, False)
    target.write_text("name: mine\n")
    with pytest.raises(ConfigError, match="--force"):
        write_config(tmp_path, False, None, None, False)
    assert target.read_text() == "name: mine\n"
    write_config(tmp_path, False, None, None, True)
    assert load_config(target).sft.init


@pytest.mark.parametrize("where", ["file", "/proc/x"])
def test_unwritable_folder_is_refused(tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="folder"):
        write_config(tmp_path / where, False, None, None, False)


def test_init_takes_the_length_of_the_model(tmp_path, capsys):
    from rlaif.cli import main

    build_tiny(tmp_path / "model", ["a"], max_positions=256)
    assert main.main(["init", str(tmp_path), "--model", str(tmp_path / "model")]) == 0
    config = load_config(tmp_path / "rlaif.yaml")
    assert config.rollout.max_model_len == 256 and config.sft.init == str(tmp_path / "model")
    assert "next:  rlaif check" in capsys.readouterr().out


def test_init_says_that_a_folder_is_new(tmp_path, capsys):
    from rlaif.cli import main

    for typed, says_new in ([str(tmp_path / "typo")], True), ([str(tmp_path / "typo"), "--force"], False):
        assert main.main(["init", *typed]) == 0
        assert ("rlaif.yaml in a new folder\n" in capsys.readouterr().out) == says_new


def test_unusable_target_is_refused(tmp_path):
    (tmp_path / "a" / "rlaif.yaml").mkdir(parents=True)
    with pytest.raises(ConfigError, match="a folder"):
        write_config(tmp_path / "a", False, None, None, True)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "deeper")
    with pytest.raises(ConfigError):
        write_config(tmp_path / "link", False, None, None, False)
    with pytest.raises(ConfigError):
        write_config(tmp_path / ("long" * 80), False, None, None, False)


@pytest.mark.parametrize("name", ["123", "true", "2024-01-01"])
def test_folder_name_that_yaml_misreads_is_quoted(tmp_path, name):
    write_config(tmp_path / name, False, None, None, False)
    assert load_config(tmp_path / name / "rlaif.yaml").name == name
