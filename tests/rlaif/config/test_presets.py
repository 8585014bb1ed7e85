"""Values of a preset are defaults: options that are set win, in files, overrides and code."""

from __future__ import annotations

import pytest

from rlaif.config.checks import problems_of
from rlaif.config.load import load_config
from rlaif.config.presets import PRESETS
from rlaif.config.schema import Config, Kl, Lora, Ppo, Reward
from rlaif.config.shown import shown_config
from rlaif.errors import ConfigError

SECTIONS = {"ppo": Ppo, "reward": Reward}


@pytest.fixture
def load(tmp_path):
    def make(text, *overrides, stage=None) -> Config:
        file = tmp_path / "config.yaml"
        file.write_text(f"name: x\n{text}")
        return load_config(file, list(overrides), stage)

    return make


def leaves(values, path=()):
    """Yield (path, value) of every option in nested groups."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


@pytest.mark.parametrize("section", list(SECTIONS))
def test_preset_sets_every_value(section):
    # A preset that named an unknown option would fail validation here.
    filled = SECTIONS[section](preset="vlm_rlaif").model_dump()
    for path, value in leaves(PRESETS["vlm_rlaif"][section]):
        node = filled
        for key in path:
            node = node[key]
        assert node == value, path


@pytest.mark.parametrize("section", list(SECTIONS))
def test_default_preset_is_modern(section):
    assert SECTIONS[section]() == SECTIONS[section](preset="modern")
    assert SECTIONS[section]().preset == "modern" and SECTIONS[section](preset="vlm_rlaif") != SECTIONS[section]()


def test_vlm_rlaif_constants():
    ppo, reward = Ppo(preset="vlm_rlaif"), Reward(preset="vlm_rlaif")
    steps = ppo.epochs * ppo.prompts_per_iteration * ppo.samples_per_prompt // ppo.minibatch_size
    assert (steps, ppo.sampling.max_tokens, ppo.sampling.truncate_at) == (4, 896, ("?",))
    assert (ppo.kl.coef, ppo.kl.estimator, ppo.kl.clamp, ppo.kl.controller) == (0.1, "k1", True, "fixed")
    assert (ppo.terms.no_eos, ppo.terms.length, ppo.reward_scale, ppo.score_slot) == (-8, -10, 10, "last_slot")
    assert (ppo.gamma, ppo.lam, ppo.clip, ppo.value_clip, ppo.value_coef) == (1, 1, 0.2, 0.2, 0.1)
    assert ppo.whiten_advantages and ppo.whiten_eps == "deviation"
    optim = ppo.optim
    assert (optim.lr, optim.warmup_steps, optim.max_grad_norm, ppo.schedule_per) == (3e-5, 5, 1, "iteration")
    assert ppo.critic_optim == ppo.optim and ppo.lora == reward.lora == Lora(r=64, alpha=16)
    assert (reward.optim.lr, reward.optim.warmup_ratio, reward.optim.max_grad_norm) == (2e-5, 0.03, 0.3)
    assert (reward.batch_size, reward.epochs, reward.centering, reward.centering_coef) == (16, 1, "mean_abs", 1e-3)


def test_set_options_win_over_the_preset(load):
    text = "ppo: {preset: vlm_rlaif, kl: {coef: 0.3}, lora: null, terms: {length: 0}, sampling: {truncate_at: []}}\n"
    ppo = load(text, "ppo.optim.lr=1e-4", "rollout.max_model_len=4096").ppo
    assert (ppo.kl.coef, ppo.kl.clamp, ppo.lora) == (0.3, True, None)
    assert (ppo.terms.length, ppo.terms.no_eos) == (0, -8)
    assert (ppo.sampling.truncate_at, ppo.sampling.max_tokens) == ((), 896)
    assert (ppo.optim.lr, ppo.optim.schedule, ppo.critic_optim.lr) == (1e-4, "cosine", 3e-5)


def test_preset_as_an_override_applies_to_its_section_only(load):
    config = load("reward: {batch_size: 32}\n", "reward.preset=vlm_rlaif")
    assert (config.reward.batch_size, config.reward.optim.lr) == (32, 2e-5) and config.ppo == load("").ppo


def test_section_built_in_code_replaces_the_presets_section():
    ppo = Ppo(preset="vlm_rlaif", kl=Kl(coef=0.2))
    assert ppo.kl == Kl(coef=0.2) and ppo.gamma == 1 and not ppo.kl.clamp


def test_shown_preset_loads_as_the_same(load, tmp_path):
    config = load("ppo: {preset: vlm_rlaif, clip: 0.3}\nreward: {preset: vlm_rlaif, verdict: so}\n")
    written = tmp_path / "again.yaml"
    written.write_text(shown_config(config))
    assert load_config(written) == config


def test_unknown_preset_and_unknown_option_beside_a_preset(load):
    with pytest.raises(ConfigError) as error:
        load("ppo: {preset: vlm_rlaif, kl: {clam: true}}\nreward: {preset: vlm}\n")
    assert "ppo.kl.clam: no such option; nearest is `ppo.kl.clamp`" in error.value.found
    assert "reward.preset: " in error.value.found and "'vlm_rlaif'" in error.value.found


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"ppo": {"advantage": "leave_one_out", "score_slot": "last_slot"}}, "ppo.score_slot=last_slot"),
        ({"ppo": {"advantage": "leave_one_out", "whiten_rewards": True}}, "ppo.whiten_rewards=true"),
        ({"ppo": {"loss_mean": "slots"}, "model": {"attention": "flash_attention_2"}}, "model.attention"),
        ({"ppo": {"score_slot": "last_slot"}, "model": {"attention": "flash_attention_2"}}, "model.attention"),
        ({"reward": {"verdict": "so"}}, "reward.verdict"),
    ],
)
def test_incompatible_preset_options_are_reported(options, named):
    base = {"name": "x", "cluster": {"learner": {"actors": 2}}}
    (problem,) = problems_of(Config.model_validate(base | options))
    assert named in problem


def test_preset_has_no_problems():
    both = {"ppo": {"preset": "vlm_rlaif"}, "reward": {"preset": "vlm_rlaif"}}
    assert problems_of(Config.model_validate({"name": "x", "cluster": {"learner": {"actors": 8}}} | both)) == []
    mean = {"loss_mean": "slots", "advantage": "leave_one_out"}
    without_critic = {"name": "x", "ppo": mean, "model": {"attention": "flash_attention_2"}}
    assert problems_of(Config.model_validate(without_critic)) == []
