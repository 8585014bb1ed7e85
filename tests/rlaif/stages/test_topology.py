"""Which engine a stage is given. No actor is started."""

from __future__ import annotations

import pytest
from families import BUILDERS

from rlaif.stages.run.topology import Topology


@pytest.fixture
def asked(tmp_path, make_config, monkeypatch):
    """asked(family, *overrides) -> what `engines` asks for: the policy's engine, then another model's; adapter ranks."""

    def ask(family: str, *overrides: str) -> list[int | None]:
        for name, bos in (("policy", 1), ("other", 2)):  # two models, not two copies of one
            settings = BUILDERS[family](False)[1]
            settings.bos_token_id = bos
            settings.save_pretrained(tmp_path / family / name)
        policy, other = (str(tmp_path / family / name) for name in ("policy", "other"))
        topology = Topology(make_config(tmp_path, f"ppo.policy={policy}", *overrides), None)
        monkeypatch.setattr(topology, "rollouts", lambda path, rank: (path, rank))
        result = [topology.engines(path) for path in (policy, other)]
        assert [path for path, _ in result] == [policy, other]
        return [rank for _, rank in result]

    return ask


def test_the_policys_engine_has_room_for_ppos_adapters(asked):
    assert asked("qwen2_5_vl", "ppo.lora={r: 8, alpha: 8}") == [8, None]
    assert asked("qwen2_5_vl", "ppo.lora=null") == [None, None]


def test_families_without_adapters_get_no_room_for_them(asked):
    """`ppo.lora` is set by default, and a caption or an answer needs no adapter."""
    assert asked("llava_onevision") == [None, None]
