"""Exports of a learner, loaded by plain transformers, PEFT, the reward actor and another learner."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from peft import PeftModel
from ranks import LORA, NoiseFrames, cluster, full, model, plain_optim, responses, shard_above
from safetensors.numpy import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from actors.frames import LocalFrames
from learners import losses
from learners.export import export_role
from learners.learner import Learner
from learners.spec import LearnerSpec, RoleSpec
from rlaif.config.schema import Reward, Video
from rlaif.models.batch import collate
from rlaif.models.check import require_model
from rlaif.models.encode import Encoder
from rlaif.models.merged import whole_model
from rlaif.models.model_dir import ModelDir
from rlaif.models.reward import CARD, ModelScorer, card_text
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.records import Prompt, RewardInput, Scored
from rlaif.video.recipe import read_recipe, recipe_of
from rlaif.worlds.shapes.render import write_mp4

BUDGET = 10**6
EXAMPLES = Path(__file__).parents[2] / "docs" / "export.md"
PROMPT, TWO = RewardPrompt.of(Reward()), ("helpful", "harmless")
ANSWERS = [
    RewardInput((f"p{number}", 0), Prompt(f"p{number}", f"clip{number}", question, captions=captions), response)
    for number, (question, captions, response) in enumerate(
        [
            ("what do you see ?", ("a red circle moves left", "a blue square"), "a red circle moves left and down ."),
            ("describe the video .", (), "a green triangle ."),
            ("what moves ?", ("a green triangle moves up",), ""),
        ]
    )
]


def encoded(encoder) -> list:
    """Encode the answers as a reward model reads them."""
    return [
        PROMPT.encode(encoder, a.prompt.question, a.prompt.captions, a.response, encoder.video(a.prompt.video))
        for a in ANSWERS
    ]


def train_and_export(path, folder, lora, zero_stage, dtype="float32"):
    """Train a little and export; return the outputs of the learner itself afterwards."""
    shard_above(0)
    roles = (
        RoleSpec("policy", path, lora, plain_optim(lr=0.1), 10),
        RoleSpec("reward", path, lora, plain_optim(lr=0.1), 10, "reward", outputs=2),
    )
    spec = LearnerSpec(roles, model(dtype=dtype), cluster(zero_stage), 512, 2**28, BUDGET, seed=5)
    learner = Learner(spec, NoiseFrames(), torch.device("cpu"))
    items, folder = responses(learner.encoder("policy"), 4), Path(folder)
    mine = items[dist.get_rank() :: 2]
    for _ in range(2):
        learner.step("policy", [(item,) for item in mine], losses.SUPERVISED)
        learner.step("reward", [tuple(mine)], losses.preference_objective(Reward(dimensions=TWO)))

    def export(role: str, name: str, merge: bool = False) -> None:
        export_role(learner, role, folder / name if dist.get_rank() == 0 else None, merge)

    export("policy", "policy")
    if lora:
        export("policy", "merged", merge=True)
    export("reward", "reward")
    if dist.get_rank() == 0:
        (folder / "reward" / CARD).write_text(card_text(path, lora, PROMPT, TWO))
    dist.barrier()
    return {
        "logprobs": np.concatenate(learner.infer("policy", items, "logprobs")),
        "scores": np.array(learner.infer("reward", encoded(learner.encoder("reward")), "score")),
    }


def start_critic(path, export, lora):
    """Return values and head of a critic that starts from a reward model, and the last hidden state of each item."""
    roles = (RoleSpec("critic", path, lora, plain_optim(), 10, "value", start=export),)
    learner = Learner(
        LearnerSpec(roles, model(), cluster(), 512, 2**28, 10**6, seed=9), NoiseFrames(), torch.device("cpu")
    )
    role, items = learner.roles["critic"], encoded(learner.encoder("critic"))
    head = {name: full(parameter) for name, parameter in role.module.heads["critic"].named_parameters()}
    return {
        "head": head,
        "values": np.concatenate(learner.infer("critic", items, "values")),
        "hidden": last_hidden(learner, items),
    }


@torch.no_grad()
def last_hidden(learner, items) -> list[np.ndarray]:
    role = learner.roles["critic"]
    role.module.activate(role.adapter)
    states = []
    handle = role.module.causal.model.register_forward_hook(
        lambda _, __, output: states.append(output.last_hidden_state[0, -1].numpy())
    )
    for item in items:
        learner.infer("critic", [item], "values")
    handle.remove()
    return states


@pytest.fixture(
    scope="module",
    params=[(True, 2), (True, 3), (False, 2), (False, 3)],
    ids=["adapter-2", "adapter-3", "full-2", "full-3"],
)
def exported(request, two_ranks, tiny, tmp_path_factory):
    adapter, zero_stage = request.param
    folder = tmp_path_factory.mktemp("export")
    lora = LORA if adapter else None
    result = two_ranks.run(train_and_export, path=tiny, folder=str(folder), lora=lora, zero_stage=zero_stage)[0]
    return folder, lora, result


def plain(path) -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()


@torch.no_grad()
def plain_logprobs(module, encoder) -> np.ndarray:
    """Compute log-probs of the same responses by the library's own forward, one sequence at a time."""
    result = []
    for item in responses(encoder, 4):
        batch = collate([item], 0)
        logits = module(
            input_ids=batch.ids, attention_mask=batch.attention, position_ids=batch.positions, **batch.video
        ).logits[0]
        logits[:, list(encoder.banned_ids)] = -torch.inf
        logprobs = logits[item.start - 1 : -1].log_softmax(-1)
        result.append(logprobs.gather(1, batch.targets[0][:, None])[:, 0].numpy())
    return np.concatenate(result)


def test_exported_policy_gives_the_same_logprobs_in_other_libraries(exported, tiny, tmp_path, monkeypatch):
    folder, lora, result = exported
    encoder = Encoder(tiny, NoiseFrames())
    assert np.abs(plain_logprobs(plain(tiny), encoder) - result["logprobs"]).max() > 0.05  # it has learned something
    loaded = PeftModel.from_pretrained(plain(tiny), str(folder / "policy")) if lora else plain(folder / "policy")
    assert np.abs(plain_logprobs(loaded, encoder) - result["logprobs"]).max() < 1e-5
    if lora:
        assert np.abs(plain_logprobs(plain(folder / "merged"), encoder) - result["logprobs"]).max() < 1e-5
        assert not (folder / "merged" / "adapter_config.json").exists()
        assert json.loads((folder / "policy" / "adapter_config.json").read_text())["base_model_name_or_path"] == tiny
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        require_model("candidates.models", str(folder / "policy"), or_adapter=True)
        served = plain(whole_model(ModelDir(str(folder / "policy")), "float32"))
        assert np.abs(plain_logprobs(served, encoder) - result["logprobs"]).max() < 1e-5
    standalone = folder / ("merged" if lora else "policy")
    template = AutoProcessor.from_pretrained(standalone).chat_template
    assert template == encoder.processor.chat_template
    assert np.array_equal(responses(Encoder(str(standalone), NoiseFrames()), 1)[0].ids, responses(encoder, 1)[0].ids)


def parts_of(outcomes) -> np.ndarray:
    """Return [answers, dimensions]: the parts of each score, in the order of ANSWERS."""
    rows = []
    for answer in ANSWERS:
        parts = outcomes[answer.key].parts
        rows.append([parts[name] for name in TWO])
    return np.array(rows)


def test_the_reward_actor_scores_like_the_learner(exported):
    """Scores are equal to the last bit in batches of the same answers, and to 1e-5 in other batches."""
    folder, _, result = exported
    for budget, limit in ((BUDGET, 0.0), (200, 1e-5)):
        outcomes = ModelScorer(str(folder / "reward"), NoiseFrames(), model(), budget, 2**28)(ANSWERS)
        assert all(isinstance(outcome, Scored) for outcome in outcomes.values())
        scores = parts_of(outcomes)
        assert np.abs(scores - result["scores"]).max() <= limit
    assert np.ptp(scores, axis=0).min() > 1e-3 and np.abs(scores).min() > 1e-4
    assert np.abs(scores[:, 0] - scores[:, 1]).min() > 1e-4


def test_the_reward_actor_scores_like_the_learner_in_bfloat16(two_ranks, tiny, tmp_path):
    """Scores are equal to the last bit: the adapter is in bfloat16 on both sides."""
    result = two_ranks.run(
        train_and_export, path=tiny, folder=str(tmp_path), lora=LORA, zero_stage=2, dtype="bfloat16"
    )[0]
    scorer = ModelScorer(str(tmp_path / "reward"), NoiseFrames(), model(dtype="bfloat16"), BUDGET, 2**28)
    assert {parameter.dtype for parameter in scorer.model.parameters()} == {torch.bfloat16}
    outcomes = scorer(ANSWERS)
    scores = parts_of(outcomes)
    assert np.array_equal(scores, result["scores"]) and np.ptp(scores, axis=0).min() > 1e-3


def test_critic_started_from_a_reward_model_predicts_zero(exported, two_ranks, tiny):
    folder, lora, result = exported
    critic = two_ranks.run(start_critic, path=tiny, export=str(folder / "reward"), lora=lora)[0]
    assert not any(value.any() for value in critic["head"].values()) and not critic["values"].any()
    head = load_file(folder / "reward" / "head.safetensors")
    assert critic["head"]["weight"].shape == (1, 128) and head["weight"].shape == (2, 128)
    scores = [head["weight"] @ hidden + head["bias"] for hidden in critic["hidden"]]
    assert np.abs(np.array(scores) - result["scores"]).max() < 1e-5  # the body is the reward model's


def test_every_export_carries_its_frame_recipe(exported):
    folder, lora, _ = exported
    for name in ("policy", "reward", *(["merged"] if lora else [])):
        assert read_recipe(folder / name) == recipe_of(Video())


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    file = tmp_path_factory.mktemp("clip") / "a.mp4"
    write_mp4(file, np.random.default_rng(0).integers(0, 255, (21, 40, 64, 3), dtype=np.uint8))
    return str(file)


ONE_ADAPTER = pytest.mark.parametrize("exported", [(True, 2)], ids=["adapter-2"], indirect=True)


@ONE_ADAPTER
def test_examples_in_the_documentation_run_on_an_export(exported, tiny, clip, tmp_path):
    """Run the code blocks of docs/export.md in order: frames twice, transformers with PEFT, vLLM, a merge."""
    _, with_rlaif, without, peft, vllm, merge = re.findall(r"```python\n(.*?)```", EXAMPLES.read_text(), re.S)
    assert max(block.strip().count("\n") for block in (peft, vllm)) < 18
    names = {"EXPORT": str(exported[0] / "policy"), "BASE": tiny, "VIDEO": clip, "QUESTION": "describe the video ."}
    exec(without, names)
    frames, metadata = names["frames"], names["metadata"]
    exec(with_rlaif, names)
    assert np.array_equal(names["frames"], frames) and metadata.items() <= names["metadata"].items()
    exec(peft, names)
    assert names["answer"]
    small = "max_model_len=512, enforce_eager=True, kv_cache_memory_bytes=2**27, enable_chunked_prefill=False"
    assert "max_model_len=4096" in vllm
    exec(vllm.replace("max_model_len=4096", small), names)
    exec(merge.replace("runs/mine/merged", str(tmp_path / "merged")), names)
    assert read_recipe(tmp_path / "merged") == read_recipe(names["EXPORT"])
    answer_ids = np.array(names["output"].token_ids[:12])
    assert np.array_equal(most_likely(tmp_path / "merged", names, answer_ids), answer_ids)


@torch.no_grad()
def most_likely(path: Path, names: dict, response: np.ndarray) -> np.ndarray:
    """Return the most likely token at each place of a response by the model at `path`, with the learner's positions."""
    recipe = read_recipe(names["EXPORT"])
    frames = LocalFrames("/", recipe["num_frames"], recipe["height"], recipe["width"])
    encoder = Encoder(str(path), frames)
    batch = collate([encoder.prompt_and_response(names["QUESTION"], response, encoder.video(names["VIDEO"]))], 0)
    inputs = {"input_ids": batch.ids, "attention_mask": batch.attention, "position_ids": batch.positions, **batch.video}
    return plain(path)(**inputs).logits[0, -len(response) - 1 : -1].argmax(-1).numpy()
