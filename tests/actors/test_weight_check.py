"""Weights that arrive undamaged but do not fit the engine's model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from families import BUILDERS, build

from actors.weight_check import WeightCheck
from cluster.publish import pack_weights
from learners.export import adapter_config
from learners.roles import Role
from learners.spec import RoleSpec
from learners.state import published_weights
from rlaif.config.schema import Lora
from rlaif.errors import ContractError
from rlaif.models.tiny import build_tiny
from rlaif.models.vlm import VideoLM, load_vlm

WORDS = ["a", "red", "blue", "circle", "moves", "left", "right", "and", "what", "do", "you", "see", "?"]
LORA = Lora(r=4, alpha=8)
UP = "model.language_model.layers.2.mlp.up_proj.weight"
NORM = "model.language_model.layers.0.input_layernorm.weight"
QUERY = "base_model.model.model.language_model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(build_tiny(tmp_path_factory.mktemp("tiny"), WORDS, seed=0))


@pytest.fixture(scope="module")
def weights(model) -> dict[str, torch.Tensor]:
    return load_vlm(model, "float32").state_dict()


def adapter(model: str, lora: Lora) -> dict[str, torch.Tensor]:
    """Return the weights of an adapter under the names that a learner sends."""
    module = VideoLM(load_vlm(model, "float32"), adapters={"policy": lora})
    return {
        name.removeprefix("model.").replace(".policy.", "."): parameter
        for name, parameter in module.named_parameters()
        if "lora_" in name
    }


def full(tensors):
    return pack_weights(tensors.items(), 1 << 20, version=7)[0]


def lora(tensors, r=4):
    return pack_weights(tensors.items(), 1 << 20, version=7, kind="adapter", lora={"r": r})[0]


WRONG = {
    "unknown": (lambda t: {**t, UP.replace("2", "9"): t[UP]}, "layers.9.mlp.up_proj.weight'.* does not know"),
    "missing": (lambda t: {n: x for n, x in t.items() if n != NORM}, f"no tensor '{NORM}'"),
    "tied head": (lambda t: {n: x for n, x in t.items() if n != "lm_head.weight"}, "no tensor 'lm_head.weight'"),
    "shape": (lambda t: {**t, UP: t[UP][:-1]}, rf"'{UP}' as \(255, 128\) instead of \(256, 128\)"),
    "transposed": (lambda t: {**t, UP: t[UP].T}, rf"'{UP}' as \(128, 256\)"),
    "dtype": (lambda t: {**t, NORM: t[NORM].bfloat16()}, f"'{NORM}' as bfloat16 instead of float32"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_full_weights_are_refused(model, weights, fault):
    """Manifest and tensors agree, so only a comparison with the engine's own model finds the fault."""
    change, named = WRONG[fault]
    check = WeightCheck(model, "float32", None)
    check.check(full(weights))
    with pytest.raises(ContractError, match=named) as caught:
        check.check(full(change(weights)))
    assert "version 7" in caught.value.expected and model in caught.value.expected
    assert "same model directory" in caught.value.fix


def test_another_precision_of_the_whole_model_is_refused(model, weights):
    check = WeightCheck(model, "bfloat16", None)
    check.check(full({name: tensor.bfloat16() for name, tensor in weights.items()}))
    with pytest.raises(ContractError, match="as float32 instead of bfloat16"):
        check.check(full(weights))


@pytest.mark.parametrize("r", [2, 5, 16])
def test_adapter_of_another_rank_is_refused(model, r):
    """A rank of 5 would fit into the memory that vLLM reserves for 4, and 2 would be padded."""
    check = WeightCheck(model, "float32", 4, LORA.targets)
    check.check(lora(adapter(model, LORA)))
    other = adapter(model, Lora(r=r))
    with pytest.raises(ContractError, match=f"of rank {r}") as caught:
        check.check(lora(other, r))
    assert "of rank 4" in caught.value.expected and "ppo.lora.r" in caught.value.fix
    with pytest.raises(ContractError, match=rf"lora_A.*\({r}, 128\) instead of \(4, 128\)"):
        check.check(lora(other, 4))  # its configuration claims the right one
    with pytest.raises(ContractError, match="rank None"):
        check.check(replace(lora(other), lora={}))


FEWER = Lora(r=4, targets=("q_proj", "k_proj"))


@pytest.mark.parametrize(
    ("engine", "learner", "named"),
    [
        (LORA, FEWER, r"no tensor '.*(o_proj|gate_proj|down_proj)"),
        (FEWER, LORA, r"(o_proj|gate_proj|down_proj).* does not know"),
        (FEWER, FEWER.model_copy(update={"targets": ("q_proj", "v_proj")}), r"v_proj.* does not know"),
    ],
    ids=["fewer", "more", "others"],
)
def test_adapter_with_other_target_modules_is_refused(model, engine, learner, named):
    check = WeightCheck(model, "float32", 4, engine.targets)
    check.check(lora(adapter(model, engine)))
    with pytest.raises(ContractError, match=named):
        check.check(lora(adapter(model, learner)))


def test_an_adapter_is_checked_without_a_list_of_modules_too(model):
    check, tensors = WeightCheck(model, "float32", 4), adapter(model, FEWER)
    check.check(lora(tensors))
    half = {name: tensor for name, tensor in tensors.items() if name != QUERY}
    tower = {**tensors, "base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight": tensors[QUERY]}
    for wrong, named in ((half, f"no tensor '{QUERY}'"), (tower, "visual.* does not know")):
        with pytest.raises(ContractError, match=named):
            check.check(lora(wrong))


def test_an_adapter_may_stay_in_float32_under_a_bfloat16_model(model):
    """PEFT leaves an adapter in float32 if no optimizer has cast it."""
    tensors, check = adapter(model, LORA), WeightCheck(model, "bfloat16", 4, LORA.targets)
    check.check(lora(tensors))
    check.check(lora({name: tensor.bfloat16() for name, tensor in tensors.items()}))
    with pytest.raises(ContractError, match="as float16 instead of bfloat16 or float32"):
        check.check(lora({name: tensor.half() for name, tensor in tensors.items()}))


def test_adapter_of_a_larger_model_is_refused(model, tmp_path):
    """Refuse the same names with other sizes: the base has another width, and its fingerprint was not sent."""
    tensors = {n: torch.cat([t, t], -1) if "lora_A" in n else t for n, t in adapter(model, LORA).items()}
    with pytest.raises(ContractError, match=r"\(4, 256\) instead of \(4, 128\)"):
        WeightCheck(model, "float32", 4, LORA.targets).check(lora(tensors))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", BUILDERS)
def test_learner_weights_pass_the_check_of_every_family(family, tied, tmp_path):
    path = str(build(family, tmp_path, tied))
    role = Role(RoleSpec("policy", path), VideoLM(load_vlm(path, "float32")), None)
    WeightCheck(path, "float32", None).check(pack_weights(published_weights(role), 1 << 20, version=1)[0])
    role = Role(RoleSpec("policy", path, LORA), VideoLM(load_vlm(path, "float32"), (), {"policy": LORA}), "policy")
    manifest, _ = pack_weights(published_weights(role), 1 << 20, version=1, kind="adapter", lora=adapter_config(role))
    assert len(manifest.tensors) >= 2 * len(LORA.targets)
    WeightCheck(path, "float32", LORA.r, LORA.targets).check(manifest)
