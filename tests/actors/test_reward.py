"""Scores by a function and by a model: one typed outcome per answer, by key."""

from __future__ import annotations

import json
import math
import shutil
import sys
import types
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from actors.reward import RewardActor
from actors.reward_pool import start_reward_pool
from rlaif.config.schema import Lora, Model, Reward
from rlaif.errors import ConfigError, DataError
from rlaif.functions import FunctionScorer, load_function
from rlaif.io.storage import locate
from rlaif.models.bases import RECORD
from rlaif.models.model_dir import ModelDir
from rlaif.models.reward import (
    CARD,
    ModelScorer,
    card_text,
    check_weights,
    dimensions_of,
    read_card,
    require_reward_model,
    reward_fingerprint,
)
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.models.tiny import build_tiny
from rlaif.models.vlm import VideoLM, load_vlm
from rlaif.records import Masked, Prompt, RewardInput, Scored, reward_outcome
from rlaif.video.spec import FrameSpec

WORDS = [
    "a",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "triangle",
    "moves",
    "left",
    "right",
    "up",
    "down",
    "what",
    "do",
    "you",
    "see",
    "?",
    ".",
    ":",
    "context",
]
MODEL = Model(dtype="float32", device="cpu")
LORA = Lora(r=4, alpha=8)


class NoiseFrames:
    """Videos of noise: the name decides the pixels; `broken` cannot be decoded."""

    def spec(self, video: str) -> FrameSpec:
        if video == "broken":
            raise DataError("a video that decodes", "garbage", "the file")
        return FrameSpec(f"{video:0>64}", tuple(range(0, 24, 3)), 56, 56, 8.0, 24)

    def get(self, video: str, spec: FrameSpec) -> np.ndarray:
        return np.random.default_rng([ord(c) for c in video]).integers(0, 255, (8, 56, 56, 3), dtype=np.uint8)


def answer(response, video="clip", captions=("a red circle moves left",), index=0) -> RewardInput:
    return RewardInput((video, index), Prompt(video, video, "what do you see ?", captions=captions), response)


# -- functions


def judge(prompt, response):
    """Return a reward, or fail, as the response says."""
    replies = {
        "number": 1.5,
        "whole": 2,
        "flag": True,
        "array": np.float32(0.5),
        "parts": {"truth": 1.0, "style": -0.25},
        "nan": float("nan"),
        "bad part": {"truth": 1.0, "style": math.inf},
        "nothing": None,
        "no parts": {},
        "text": "good",
        "a part without a number": {"truth": None},
    }
    if response == "raise":
        raise KeyError("no ground truth")
    if response == "exit":
        return 1 / 0
    return replies[response]


@pytest.fixture
def path(monkeypatch) -> str:
    module = types.ModuleType("judges")
    module.judge = judge
    monkeypatch.setitem(sys.modules, "judges", module)
    return "judges:judge"


@pytest.mark.parametrize(
    ("response", "value", "parts"),
    [
        ("number", 1.5, {"score": 1.5}),
        ("whole", 2.0, {"score": 2.0}),
        ("flag", 1.0, {"score": 1.0}),
        ("array", 0.5, {"score": 0.5}),
        ("parts", 0.75, {"truth": 1.0, "style": -0.25}),
    ],
)
def test_function_scores_numbers_and_parts(path, response, value, parts):
    (outcome,) = FunctionScorer(path)([answer(response)]).values()
    assert outcome == Scored(value, parts) and type(outcome.value) is float


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        ("raise", "judges:judge: KeyError: 'no ground truth'"),
        ("exit", "ZeroDivisionError"),
        ("nan", "part 'score' is nan"),
        ("bad part", "part 'style' is inf"),
        ("nothing", "TypeError"),
        ("no parts", "no parts"),
        ("text", "ValueError"),
        ("a part without a number", "TypeError"),
    ],
)
def test_failures_are_masked_with_the_reason(path, response, reason):
    outcomes = FunctionScorer(path)([answer("number", index=0), answer(response, index=1), answer("whole", index=2)])
    masked = outcomes[("clip", 1)]
    assert isinstance(masked, Masked) and reason in masked.reason
    assert [outcomes[("clip", i)].value for i in (0, 2)] == [1.5, 2.0]


def test_one_outcome_per_answer_by_key(path):
    answers = [answer("number", video, index=i) for video, i in product(("b", "a"), (1, 0))]
    assert FunctionScorer(path)(answers).keys() == {a.key for a in answers}
    assert FunctionScorer(path)([]) == {}


@pytest.mark.parametrize("path", ["no_such_module:f", "json:no_such_name", "json", "", ":f"])
def test_missing_function_raises_config_error(path):
    with pytest.raises(ConfigError, match="package.module:name"):
        load_function(path)


def test_reward_actor_scores_with_a_function(path):
    actor = RewardActor({"path": path}, NoiseFrames, MODEL, 10**4, 2**28, threads=1)
    assert actor.ready() and actor.score([answer("number")]) == {("clip", 0): Scored(1.5, {"score": 1.5})}


def test_reward_outcome_is_the_sum_of_its_parts():
    assert reward_outcome({"a": 1, "b": 2.5}) == Scored(3.5, {"a": 1.0, "b": 2.5})


def test_finite_parts_with_an_infinite_sum_are_masked():
    """Mask the answer whether a function returns the parts or a reward model's weights scale them."""
    two = SimpleNamespace(dimensions=("a", "b"), weights=[1e308, 1e308])
    for outcome in (reward_outcome({"a": 1e308, "b": 1e308}), ModelScorer._outcome(two, [1.0, 1.0])):
        assert outcome == Masked("the sum of its parts is inf ('a' 1e+308, 'b' 1e+308)")
    assert ModelScorer._outcome(two, [1e9, 1.0]) == Masked("part 'a' is inf")


# -- models


@pytest.fixture(scope="module", params=["adapter", "full"])
def export(request, tmp_path_factory) -> str:
    """Return a random reward model as `rlaif reward` exports it."""
    base, folder = str(build_tiny(tmp_path_factory.mktemp("base"), WORDS, seed=3)), tmp_path_factory.mktemp("reward")
    lora = LORA if request.param == "adapter" else None
    torch.manual_seed(0)
    module = VideoLM(load_vlm(base, "float32"), ["reward"], {"reward": LORA} if lora else None)
    torch.nn.init.normal_(module.heads["reward"].weight, std=0.2)
    if lora:
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        module.model.save_pretrained(folder, selected_adapters=["reward"])
        for file in (folder / "reward").iterdir():
            file.rename(folder / file.name)
    else:
        build_tiny(folder, WORDS, seed=4)
    save_file(module.heads["reward"].state_dict(), folder / "head.safetensors")
    (folder / CARD).write_text(card_text(base, lora, RewardPrompt.of(Reward())))
    return str(folder)


@pytest.fixture(scope="module")
def scorer(export) -> ModelScorer:
    return ModelScorer(export, NoiseFrames(), MODEL, tokens_per_microbatch=10**4, cache_bytes=2**28)


ANSWERS = [answer("a red circle .", f"clip{i}", index=i) for i in range(3)] + [answer("", "clip0", index=9)]


def values(outcomes) -> dict:
    return {key: outcome.value for key, outcome in outcomes.items()}


def test_a_score_depends_on_its_answer_only(scorer, export):
    together = values(scorer(ANSWERS))
    assert together.keys() == {a.key for a in ANSWERS} and len({round(v, 3) for v in together.values()}) == 4
    alone = {}
    for single in ANSWERS:
        alone |= values(scorer([single]))
    assert alone == pytest.approx(together, abs=1e-5)
    small = ModelScorer(export, NoiseFrames(), MODEL, tokens_per_microbatch=1, cache_bytes=1)
    assert values(small(ANSWERS[::-1])) == pytest.approx(together, abs=1e-5)


def test_a_score_reads_video_captions_question_and_answer(scorer):
    plain = answer("a red circle .")
    changes = [
        {"prompt": replace(plain.prompt, captions=())},
        {"prompt": replace(plain.prompt, captions=("a blue square",))},
        {"response": "a blue circle ."},
        {"prompt": replace(plain.prompt, question="what ?")},
        {"prompt": replace(plain.prompt, video="other")},
    ]
    base = scorer([plain])[plain.key].value
    values_after = [scorer([replace(plain, **change)])[plain.key].value for change in changes]
    assert min(abs(value - base) for value in values_after) > 1e-4


def test_unreadable_inputs_are_masked(scorer):
    outcomes = scorer([answer("a", "broken"), ANSWERS[0], answer("a <|video_pad|> b", "clip1", index=5)])
    assert "garbage" in outcomes[("broken", 0)].reason
    assert "placeholder" in outcomes[("clip1", 5)].reason
    assert isinstance(outcomes[ANSWERS[0].key], Scored)


def test_nan_scores_are_masked(export, monkeypatch):
    scorer = ModelScorer(export, NoiseFrames(), MODEL, 10**4, 2**28)
    with torch.no_grad():
        scorer.model.heads["reward"].bias.fill_(torch.nan)
    outcomes = scorer(ANSWERS)
    assert all(outcome == Masked("part 'score' is nan") for outcome in outcomes.values()) and len(outcomes) == 4


def test_card_round_trip(export, tmp_path):
    card = read_card(export)
    assert RewardPrompt(**card["prompt"]) == RewardPrompt.of(Reward())
    assert card["lora"] is None or Lora(**card["lora"]) == LORA
    assert json.loads(Path(export, CARD).read_text()) == card
    with pytest.raises(ConfigError, match="reward.json"):
        read_card(str(tmp_path))


# -- several dimensions


TWO = ("helpfulness", "harmlessness")


@pytest.fixture(scope="module")
def two_heads(export, tmp_path_factory) -> str:
    """Return the same reward model with a second output: half of the first one, plus 1."""
    folder = tmp_path_factory.mktemp("two")
    shutil.copytree(export, folder, dirs_exist_ok=True)
    head = load_file(folder / "head.safetensors")
    weight, bias = torch.cat([head["weight"], head["weight"] / 2]), torch.cat([head["bias"], head["bias"] / 2 + 1])
    save_file({"weight": weight, "bias": bias}, folder / "head.safetensors")
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"dimensions": list(TWO)}))
    return str(folder)


def test_parts_by_dimension(scorer, two_heads):
    single = values(scorer(ANSWERS))
    outcomes = ModelScorer(two_heads, NoiseFrames(), MODEL, 10**4, 2**28)(ANSWERS)
    for key, outcome in outcomes.items():
        assert tuple(outcome.parts) == TWO
        assert outcome.parts["helpfulness"] == pytest.approx(single[key], abs=1e-5)
        assert outcome.parts["harmlessness"] == pytest.approx(single[key] / 2 + 1, abs=1e-5)
        assert outcome.value == sum(outcome.parts.values())


def test_reward_weights_scale_parts_and_total(export, two_heads):
    plain = ModelScorer(two_heads, NoiseFrames(), MODEL, 10**4, 2**28)(ANSWERS)
    weights = {"harmlessness": -2.0, "helpfulness": 0.5}
    weighted = ModelScorer(two_heads, NoiseFrames(), MODEL, 10**4, 2**28, weights=weights)(ANSWERS)
    for key, outcome in weighted.items():
        assert outcome.parts == {name: weights[name] * part for name, part in plain[key].parts.items()}
        assert outcome.value == sum(outcome.parts.values())
    alone = ModelScorer(export, NoiseFrames(), MODEL, 10**4, 2**28)(ANSWERS[:1])[ANSWERS[0].key]
    tripled = ModelScorer(export, NoiseFrames(), MODEL, 10**4, 2**28, weights={"overall": 3.0})(ANSWERS[:1])
    assert tripled[ANSWERS[0].key] == Scored(3 * alone.value, {"score": 3 * alone.value})


@pytest.mark.parametrize(
    ("weights", "terms", "named"),
    [
        ({"helpfulness": 1.0}, (), "helpfulness, harmlessness"),
        ({"helpfulness": 1.0, "harmlessness": 1.0, "style": 1.0}, (), "weights for helpfulness, harmlessness, style"),
        ({"information": 1.0}, (), "ppo.reward_weights"),
        ({}, ("harmlessness",), "ppo.terms.harmlessness"),
    ],
)
def test_unfit_reward_weights_raise_config_error(weights, terms, named):
    with pytest.raises(ConfigError, match=named):
        check_weights({"dimensions": list(TWO)}, weights, terms)


def test_fitting_reward_weights_pass():
    for weights in ({}, {"helpfulness": 0.0, "harmlessness": 1.0}):
        check_weights({"dimensions": list(TWO)}, weights, ("no_eos", "length"))
    check_weights({}, {"overall": 2.0}, ("overall",))  # a card from before there were dimensions: its part is `score`
    assert dimensions_of({}) == ("overall",) and dimensions_of({"dimensions": list(TWO)}) == TWO


def test_reward_fingerprint_follows_contents_not_paths(export, two_heads, tmp_path):
    shutil.copytree(export, tmp_path / "moved")
    assert reward_fingerprint(str(tmp_path / "moved")) == reward_fingerprint(export) != reward_fingerprint(two_heads)
    head = load_file(tmp_path / "moved" / "head.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in head.items()}, tmp_path / "moved" / "head.safetensors")
    assert reward_fingerprint(str(tmp_path / "moved")) != reward_fingerprint(export)


def test_a_reward_model_that_moved_with_its_base_scores_the_same_bits(export, tmp_path):
    storage, moved = tmp_path / "runs", tmp_path / "elsewhere" / "renamed"
    reward, base = storage / "run" / "reward" / "export", storage / "run" / "sft" / "export"
    shutil.copytree(export, reward)
    shutil.copytree(read_card(export)["base"], base)
    (reward / RECORD).write_text(ModelDir(str(base)).record_text(locate(storage) / "run/reward/export"))
    (reward / CARD).write_text(json.dumps(read_card(export) | {"base": str(base)}))
    before = ModelScorer(str(reward), NoiseFrames(), MODEL, 10**4, 2**28)(ANSWERS)
    print_before = reward_fingerprint(str(reward))
    moved.parent.mkdir()
    (storage / "run").rename(moved)
    there = str(moved / "reward" / "export")
    assert require_reward_model("ppo.reward", there)["base"] == str(moved / "sft" / "export")
    after = ModelScorer(there, NoiseFrames(), MODEL, 10**4, 2**28)(ANSWERS)
    assert after == before and len(set(values(after).values())) == 4
    assert reward_fingerprint(there) == print_before


MISSING = {
    "its base": ("base/config.json", r"ppo\.reward, its base: a Hugging Face model"),
    "its head": ("export/head.safetensors", r"head\.safetensors in "),
    "its adapter": ("export/adapter_model.safetensors", r"adapter_model\.safetensors in "),
}


@pytest.mark.parametrize("part", MISSING)
def test_a_reward_model_that_lacks_a_part_is_refused_before_it_is_loaded(export, tmp_path, part):
    if not read_card(export)["lora"]:
        return
    file, expected = MISSING[part]
    shutil.copytree(export, tmp_path / "export")
    shutil.copytree(read_card(export)["base"], tmp_path / "base")
    (tmp_path / "export" / CARD).write_text(json.dumps(read_card(export) | {"base": str(tmp_path / "base")}))
    require_reward_model("ppo.reward", str(tmp_path / "export"))
    (tmp_path / file).unlink()
    with pytest.raises(ConfigError, match=expected):
        require_reward_model("ppo.reward", str(tmp_path / "export"))


@pytest.mark.slow
def test_reward_pool_scores_on_ray_actors(ray_session, export):
    """Score on two actors that load the same model; answers are matched by key."""
    pool = start_reward_pool(
        [{"num_cpus": 0}] * 2,
        1,
        "cpu",
        timeout_s=600,
        loading_timeout_s=600,
        reward=export,
        make_frames=NoiseFrames,
        model=MODEL,
        tokens_per_microbatch=10**4,
        cache_bytes=2**28,
    )
    pool.wait_ready()
    first, second = (pool.collect([batch]) for batch in (pool.score(ANSWERS), pool.score(ANSWERS)))
    assert values(first) == pytest.approx(values(second), abs=1e-6) and first.keys() == {a.key for a in ANSWERS}
    pool.stop()
