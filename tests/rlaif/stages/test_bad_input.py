"""What a user gets wrong is a clear error before any actor starts, or a row that is counted, named and skipped."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlavaOnevisionConfig, Qwen2VLConfig
from without_actors import NoTopology

from cluster.checkpoint import Checkpoints
from rlaif.config.schema import Reward
from rlaif.data.read import read_records
from rlaif.errors import CheckpointError, ConfigError, DataError
from rlaif.io.rundir import RunDir
from rlaif.models.reward import CARD, card_text
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.stages.feedback import score
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.train import ppo, reward, sft, supervised
from rlaif.stages.train.workers import identity


@pytest.fixture
def offline(tmp_path, make_config):
    """offline(*overrides) -> (config, a run without a cluster)."""

    def make(*overrides: str):
        config = make_config(tmp_path, *overrides)
        return config, Run(config, RunDir(config.storage, config.name), None, NoTopology(config))

    return make


def llama(folder: Path) -> Path:
    LlamaConfig().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("ppo.policy={folder}/nothing", "ppo.policy: a Hugging Face model"),
        ("ppo.policy={folder}/llama", "a video-language family that is known here"),
        ("ppo.policy={folder}/pickled", r"weights in \*\.safetensors files"),
        ("ppo.policy={folder}/onevision", r"ppo\.lora null \(full weights\) for a llava_onevision policy"),
        ("ppo.reward={folder}/nothing", "a reward model exported by `rlaif reward`"),
        ("ppo.reward={{path: 'no_such_module:f'}}", "a function as `package.module:name`"),
        ("eval.checker=rlaif.worlds.shapes.checker:typo", "a function as `package.module:name`"),
        ("data.prompts=typo.jsonl", "typo.jsonl"),
    ],
)
def test_a_ppo_run_that_cannot_work(offline, tmp_path, override, expected):
    llama(tmp_path / "llama")
    LlavaOnevisionConfig().save_pretrained(tmp_path / "onevision")
    Qwen2VLConfig().save_pretrained(tmp_path / "pickled")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    config, run = offline(override.format(folder=tmp_path))
    with pytest.raises((ConfigError, DataError), match=expected):
        ppo.train(config, run)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("ppo.reward_weights={harmlessness: 1}", "a weight for each dimension of the reward model: overall, length"),
        ("ppo.terms.length=-1", "beside ppo.terms.length"),
    ],
)
def test_dimensions_of_a_reward_model_that_do_not_fit(offline, tmp_path, override, expected):
    text = card_text(str(tmp_path), None, RewardPrompt.of(Reward()), ("overall", "length"))
    (tmp_path / CARD).write_text(text)
    config, run = offline(f"ppo.reward={tmp_path}", override)
    with pytest.raises(ConfigError, match=expected):
        ppo.train(config, run)


def test_a_job_for_a_reward_model_that_is_not_there(offline, tmp_path):
    config, run = offline(f"score.models=[{tmp_path}/nothing]")
    with pytest.raises(ConfigError, match=r"reward model exported by `rlaif reward`(.|\n)*score\.models"):
        score.score(config, run)


@pytest.mark.parametrize(
    ("lines", "overrides", "expected"),
    [
        (b"", (), "no rows at all"),
        (b'{"pair_id": 3}\n', (), "0 of 1 rows kept, 1 wrong type"),
        (b'{good}\n{"pair_id": "cut', ("data.strict=true",), "1 of 2 rows kept, 1 file cut off"),
        (b'{good}\n{"pair_id": "cut', ("score.out={run}/to_score.jsonl",), "which is to be replaced"),
        (None, (), "to_score.jsonl"),
    ],
    ids=["empty", "bad", "strict", "in place", "missing"],
)
def test_a_file_that_cannot_be_scored_is_as_it_was(offline, tmp_path, lines, overrides, expected):
    card = tmp_path / CARD
    card.write_text(card_text(str(tmp_path), None, RewardPrompt.of(Reward())))
    config, run = offline(f"score.models=[{tmp_path}]", "score.file={run}/to_score.jsonl", *overrides)
    good = b'{"pair_id": "r", "video": "v.mp4", "question": "q", "chosen": "a", "rejected": "b"}'
    file = Path(config.score.file)
    if lines is not None:
        file.parent.mkdir(parents=True)
        file.write_bytes(lines.replace(b"{good}", good))
    with pytest.raises(DataError, match=expected):
        score.score(config, run)
    assert lines is None or file.read_bytes() == lines.replace(b"{good}", good)


def test_a_family_without_served_adapters_may_train_full_weights(offline, tmp_path):
    """Past the check of the policy: the next thing that is wrong is reported."""
    LlavaOnevisionConfig().save_pretrained(tmp_path / "onevision")
    config, run = offline(f"ppo.policy={tmp_path}/onevision", "ppo.lora=null", f"ppo.reward={tmp_path}/nothing")
    with pytest.raises(ConfigError, match="a reward model exported"):
        ppo.train(config, run)


def test_a_family_whose_features_vllm_does_not_take_is_named(offline, tmp_path):
    LlavaOnevisionConfig().save_pretrained(tmp_path / "onevision")
    shared = ("ppo.lora=null", "rollout.vision=shared")
    config, run = offline(f"ppo.policy={tmp_path}/onevision", *shared)
    with pytest.raises(ConfigError, match="rollout.vision: engine for a llava_onevision policy"):
        ppo.train(config, run)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda of: {"lora": None}, "ppo.lora: checkpoint null, now {"),
        (lambda of: {"lora": of["lora"] | {"r": 8}}, "ppo.lora.r: checkpoint 8, now 4"),
        (lambda of: {"lora": of["lora"] | {"targets": ["q_proj"]}}, 'ppo.lora.targets: checkpoint ["q_proj"], now'),
        (lambda of: {"policy": "0123456789abcdef"}, "ppo.policy (its contents): checkpoint 0123456789abcdef"),
        (
            lambda of: {"critic": of["critic"] | {"base": "0123456789abcdef"}},
            "ppo.reward): checkpoint 0123456789abcdef",
        ),
        (lambda of: {"advantage": "leave_one_out"}, "ppo.advantage: checkpoint leave_one_out, now gae"),
    ],
    ids=["full weights", "rank", "targets", "base", "critic's base", "no critic"],
)
def test_a_checkpoint_of_another_model_is_refused_and_kept(offline, tmp_path, change, named):
    config, run = offline()
    own = identity(config)
    checkpoints = Checkpoints(run.directory.checkpoints("ppo"))
    other = {"identity": own | change(own), "learner": {}}
    checkpoints.save(3, lambda folder: (folder / "x.json").write_text("{}"), other)
    with pytest.raises(CheckpointError, match=re.escape(named)) as caught:
        ppo.train(config, run, "resume")
    assert "Set these as they were" in caught.value.fix
    assert checkpoints.latest().iteration == 3


TOLD = {
    "template": (("reward.prompt_template='{question}{context}'",), ["reward.prompt_template"]),
    "captions": (("reward.captions_template='{captions}'",), ["reward.captions_template"]),
    "separator": (("reward.captions_separator=/",), ["reward.captions_separator"]),
    "turn": (("reward.evaluation_turn=Good?",), ["reward.evaluation_turn"]),
    "budget": (("reward.max_caption_tokens=7",), ["reward.max_caption_tokens"]),
    "context": (
        ("reward.context=none",),
        ["reward.context", "data.pairs (its rows)", "data.pairs_eval (its rows)"],
    ),
    "regulariser": (("reward.centering=squared",), ["reward.centering"]),
    "its weight": (("reward.centering_coef=0.5",), ["reward.centering_coef"]),
    "margin": (("reward.margin=record",), ["reward.margin"]),
    "rank": (("reward.lora={r: 8, alpha: 4}",), ["reward.lora.r"]),
    "pairs": (("data.pairs=fewer.jsonl", "data.pairs_eval=pairs.jsonl"), ["data.pairs (its rows)"]),
    "seed": (("seed=9",), ["seed"]),
    "batch": (("reward.batch_size=2",), ["reward.batch_size"]),
    "held-out pairs": (("data.pairs_eval=fewer.jsonl",), ["data.pairs_eval (its rows)"]),
}
"""What is changed, and the options that the refusal names."""


@pytest.mark.parametrize("name", TOLD)
def test_a_reward_model_is_not_resumed_as_another_one(offline, world, tmp_path, name):
    shutil.copytree(world / "data", tmp_path / "data")
    plain = (f"data.root={tmp_path}/data", "data.pairs_eval=pairs.jsonl")
    rows = (tmp_path / "data" / "pairs.jsonl").read_text().splitlines()
    (tmp_path / "data" / "fewer.jsonl").write_text("\n".join(rows[1:]) + "\n")
    config, run = offline(*plain)
    checkpoints = run.checkpoints("reward", 2)
    meta = {"identity": reward.identity(config.reward, config.seed, *reward.training_pairs(config, run)), "learner": {}}
    checkpoints.save(3, lambda folder: (folder / "x.json").write_text("{}"), meta)
    overrides, named = TOLD[name]
    with pytest.raises(CheckpointError) as caught:
        reward.train(*offline(*plain, *overrides), "resume")
    assert re.findall(r"(?:^|; )([^;]+?): checkpoint ", caught.value.found) == named
    assert checkpoints.latest().iteration == 3


def test_what_a_reward_models_checkpoint_does_not_depend_on(offline, world, tmp_path):
    """How long it trains, where the pairs lie, and captions that nobody reads."""
    shutil.copytree(world / "data", tmp_path / "data")
    shutil.copy(tmp_path / "data" / "pairs.jsonl", tmp_path / "data" / "copy.jsonl")
    config, run = offline(f"data.root={tmp_path}/data")
    other, _ = offline(f"data.root={tmp_path}/data", "data.pairs=copy.jsonl", "reward.steps=9", "reward.optim.lr=0.1")
    assert reward.identity(config.reward, config.seed, *reward.training_pairs(config, run)) == reward.identity(
        other.reward, other.seed, *reward.training_pairs(other, Run(other, run.directory, None, run.topology))
    )
    rows, held_out = reward.training_pairs(config, run)
    told = [replace(row, captions=("another",)) for row in rows]
    for context, same in (("none", True), ("captions", False)):
        section = config.reward.model_copy(update={"context": context})
        assert (reward.identity(section, 0, rows, held_out) == reward.identity(section, 0, told, held_out)) == same


def test_a_family_that_transformers_does_not_know_either_says_what_is_needed(offline, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text('{"model_type": "video_llm_of_tomorrow"}')
    config, run = offline(f"ppo.policy={tmp_path}/new")
    with pytest.raises(ConfigError, match="video_llm_of_tomorrow") as caught:
        ppo.train(config, run)
    for wanted in ("transformers and vLLM have a class", "position ids", "placeholder", "tower", "docs/families.md"):
        assert wanted in caught.value.fix


BROKEN = {
    "missing": lambda good, path: None,
    "empty": lambda good, path: path.write_bytes(b""),
    "garbage": lambda good, path: path.write_bytes(b"not a video" * 100),
    "truncated": lambda good, path: path.write_bytes(good.read_bytes()[: good.stat().st_size // 2]),
}


@pytest.fixture
def broken_world(world, tmp_path):
    """Return the world's data with one more SFT row for each broken video, a row without fields and a duplicate."""
    folder = tmp_path / "data"
    shutil.copytree(world / "data", folder)
    rows = [json.loads(line) for line in (folder / "sft.jsonl").read_text().splitlines()]
    good = folder / rows[0]["video"]
    for name, write in BROKEN.items():
        write(good, folder / f"{name}.mp4")
        rows.append(rows[0] | {"id": name, "video": f"{name}.mp4"})
    rows += [{"id": "no fields"}, dict(rows[1])]
    (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder, len(rows) - len(BROKEN) - 2


def test_bad_rows_are_counted_named_and_skipped(offline, broken_world, caplog):
    folder, good = broken_world
    config, run = offline(f"data.root={folder}")
    rows = datasets.load(run, config.data.sft, "conversations")
    assert len(rows) == good
    for name in (*BROKEN, "no fields"):
        assert name in caplog.text
    with pytest.raises(DataError, match="as data.strict asks for"):
        datasets.load(offline(f"data.root={folder}", "data.strict=true")[1], "sft.jsonl", "conversations")


def test_rows_without_a_video_where_ranks_train_the_tower(offline, tmp_path):
    row = {"id": "t", "messages": [{"role": "user", "content": "red ?"}, {"role": "assistant", "content": "green"}]}
    (tmp_path / "talk.jsonl").write_text(json.dumps(row) + "\n")
    config, run = offline(f"data.root={tmp_path}", "data.sft=talk.jsonl", "cluster.learner.actors=2")
    with pytest.raises(ConfigError, match=r"1 of 1 without: t(.|\n)*sft\.train_vision"):
        sft.train(config, run)
    frozen, _ = offline("sft.train_vision=false", "sft.train_projector=false")
    for allowed, ranks in ((frozen, config), (config, offline("cluster.learner.actors=1")[0])):
        role = supervised.learner_spec(allowed, allowed.sft, "policy").roles[0]
        sft.check_videos(ranks, role, datasets.load(run, "talk.jsonl", "conversations"))


def test_videos_shorter_than_asked_for_are_skipped_or_fatal_when_all_are(offline, world):
    config, run = offline("video.num_frames=500")
    assert read_records(world / "data" / "prompts.jsonl", world / "data", "prompts")[0]
    with pytest.raises(DataError, match="at least one good row"):
        sft.train(config, run)
