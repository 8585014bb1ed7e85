"""The engine against a plain transformers forward with the same weights: at start, after full and adapter publishes."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adapters import write_adapter
from peft import PeftModel

from actors.engine import Engine, EngineSpec, Refused, Request
from actors.rollout import RolloutActor
from actors.served import resolve_model
from actors.weight_check import WeightCheck
from cluster.publish import pack_weights
from rlaif.config.cluster import Rollout
from rlaif.config.schema import Sampling
from rlaif.errors import ContractError
from rlaif.models.encode import Encoder
from rlaif.models.model_dir import ModelDir
from rlaif.models.tiny import build_tiny
from rlaif.records import Probe

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
    "and",
    "what",
    "do",
    "you",
    "see",
    "?",
    ".",
    "video",
]
PLACEHOLDERS = ("<|video_pad|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>")
ROLLOUT = Rollout(max_model_len=512, cpu_kv_cache_gib=0.1, max_num_seqs=64)
SAMPLING = Sampling(max_tokens=12)
METADATA = {
    "fps": 2.0,
    "duration": 12.0,
    "total_num_frames": 24,
    "frames_indices": list(range(24)),
    "video_backend": "decord",
}


class World:
    """A tiny model on disk, its transformers twin, and one video prompt."""

    def __init__(self, path):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.path = str(path)
        self.processor = AutoProcessor.from_pretrained(path)
        self.fresh = lambda: AutoModelForImageTextToText.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.banned = tuple(self.processor.tokenizer.convert_tokens_to_ids(list(PLACEHOLDERS)))
        self.frames = np.random.default_rng(0).integers(0, 255, (24, 56, 56, 3), dtype=np.uint8)
        content = [{"type": "video"}, {"type": "text", "text": "what do you see ?"}]
        self.text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        ids = self.processor.tokenizer(self.text)["input_ids"]
        self.request = Request(ids, (1, 2), self.frames, METADATA, frames_hash="noise")
        self.plain = Request([token for token in ids if token not in self.banned[:4]], (3,))

    def forward(self, model, response_ids, temperature=1.0) -> np.ndarray:
        """Return log-probs of a response to the video prompt, with the bans, by the checkpoints' own position rule."""
        from transformers.video_utils import VideoMetadata

        inputs = self.processor(
            text=[self.text],
            videos=[self.frames],
            video_metadata=[VideoMetadata(**METADATA)],
            do_sample_frames=False,
            return_tensors="pt",
        )
        prompt = inputs["input_ids"][0]
        ids = torch.cat([prompt, torch.as_tensor(np.asarray(response_ids), dtype=torch.long)])[None]
        seconds = float(np.asarray(inputs["second_per_grid_ts"])[0])
        with torch.no_grad():
            logits = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                position_ids=positions(ids[0], inputs["video_grid_thw"][0].tolist(), seconds, self.banned[0]),
                pixel_values_videos=inputs["pixel_values_videos"],
                video_grid_thw=inputs["video_grid_thw"],
                second_per_grid_ts=inputs["second_per_grid_ts"],
            ).logits[0, len(prompt) - 1 : -1]
        logits[:, list(self.banned)] -= 100
        logprobs = (logits / temperature).log_softmax(-1)
        return logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()


def positions(ids, grid, seconds, video_id) -> torch.Tensor:
    """Return positions [3, 1, L]: text counts up on all axes, a video spans (time, row, column), text resumes after the largest."""
    t, h, w = grid[0], grid[1] // 2, grid[2] // 2
    video = (ids == video_id).nonzero()[:, 0]
    start, end = int(video[0]), int(video[-1]) + 1
    cells = (
        torch.stack(
            torch.meshgrid((torch.arange(t) * seconds).long(), torch.arange(h), torch.arange(w), indexing="ij")
        ).reshape(3, -1)
        + start
    )
    tail = torch.arange(len(ids) - end) + cells.max() + 1
    return torch.cat([torch.arange(start).expand(3, -1), cells, tail.expand(3, -1)], dim=1)[:, None]


def perturbed(model, parts, scale=0.05, seed=1):
    """Return the model with noise on every parameter whose name contains one of `parts`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in parts):
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


def deviation(world, engine, model) -> float:
    """Return the largest difference between the engine's log-probs of fresh samples and the model's."""
    answers = engine.generate([world.request], SAMPLING, engine.weights.version)[0]
    return max(float(np.abs(world.forward(model, answer.response_ids) - answer.logprobs).max()) for answer in answers)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(build_tiny(tmp_path_factory.mktemp("tiny"), WORDS, seed=0))


@pytest.fixture(scope="module")
def full(world):
    return Engine(EngineSpec(world.path, "float32", None, ROLLOUT, banned_ids=world.banned))


@pytest.fixture(scope="module")
def adapted(world):
    return Engine(EngineSpec(world.path, "float32", 4, ROLLOUT, banned_ids=world.banned))


def test_temporary_files_of_vllm_are_in_a_folder_that_goes_with_the_engine(full):
    folder = full._files.path
    assert folder.parent == Path(tempfile.gettempdir()) and [path.name[:10] for path in folder.iterdir()] == [
        "vllm_dist_"
    ]


def test_compiled_code_is_stored_outside_the_engines_folder(full):
    from torch._inductor import codecache

    for folder in (os.environ["TORCHINDUCTOR_CACHE_DIR"], codecache._HEADER_DIR):
        assert not Path(folder).is_relative_to(full._files.path)


def send(engine, model, version, keep=lambda name: True):
    tensors = [(name, tensor) for name, tensor in model.state_dict().items() if keep(name)]
    return engine.weights.publish(*pack_weights(tensors, 1 << 20, version=version))


def test_engine_logprobs_equal_the_model(world, full):
    answers = full.generate([world.request, world.plain], SAMPLING, full.weights.version)
    assert [len(entry) for entry in answers] == [2, 1]
    assert answers[0][0].visual_tokens == 48 and answers[1][0].visual_tokens == 0
    assert (answers[0][0].prompt_ids == world.banned[0]).sum() == 48
    assert deviation(world, full, world.fresh()) < 1e-4


def test_logprobs_of_fixed_responses_equal_those_at_sampling(world, full):
    sampling = Sampling(max_tokens=8, temperature=0.7)
    answers = full.generate([world.request], sampling, full.weights.version)[0]
    logprobs = full.logprobs([world.request], [answers[0].response_ids], sampling, full.weights.version)[0]
    np.testing.assert_allclose(logprobs, answers[0].logprobs, atol=1e-5)
    np.testing.assert_allclose(
        logprobs, world.forward(world.fresh(), answers[0].response_ids, temperature=0.7), atol=1e-4
    )


def test_equal_seeds_give_equal_answers(world, full):
    def ids(request):
        return [
            answer.response_ids.tolist()
            for answer in full.generate([world.plain, request], SAMPLING, full.weights.version)[1]
        ]

    first = ids(replace(world.request, seeds=(7, 8)))
    assert first[0] != first[1]
    assert ids(replace(world.request, seeds=(8, 7, 9)))[:2] == first[::-1]


def test_greedy_answers_ignore_seeds(world, full):
    answers = full.generate(
        [replace(world.request, seeds=(1, 2))], Sampling(max_tokens=4, temperature=0.0), full.weights.version
    )[0]
    assert answers[0].response_ids.tolist() == answers[1].response_ids.tolist()
    np.testing.assert_allclose(answers[0].logprobs, world.forward(world.fresh(), answers[0].response_ids), atol=1e-4)


def test_banned_ids_are_never_sampled_and_finish_reasons_are_distinguished(world, full):
    request = replace(world.request, seeds=tuple(range(60)))
    answers = full.generate([request], Sampling(max_tokens=24, temperature=2.0), full.weights.version)[0]
    eos = world.processor.tokenizer.eos_token_id
    assert not np.isin(np.concatenate([answer.response_ids for answer in answers]), world.banned).any()
    assert {answer.finish_reason for answer in answers} == {"stop", "length"}
    for answer in answers:
        assert (answer.finish_reason == "stop") == (answer.response_ids[-1] == eos)
        assert len(answer.response_ids) == len(answer.logprobs) <= 24


def test_a_prompt_beyond_the_limit_is_refused_and_the_rest_is_answered(world, full):
    long = Request([*world.plain.prompt_ids] * 60, (1, 2))
    entries = full.generate([long, world.plain], SAMPLING, full.weights.version)
    assert isinstance(entries[0], Refused) and "512" in entries[0].reason
    assert len(entries[1]) == 1


def test_unexpected_prompts_and_versions_raise_contract_errors(world, full):
    with pytest.raises(ContractError, match="version 41"):
        full.generate([world.plain], SAMPLING, 41)
    with pytest.raises(ContractError, match="20 visual tokens"):
        full.generate([replace(world.request, visual_tokens=20)], SAMPLING, full.weights.version)


def test_a_full_publish_replaces_every_weight(world, full):
    changed = perturbed(world.fresh(), [""])
    assert deviation(world, full, changed) > 1e-2
    receipt = send(full, changed, version=1)
    assert (receipt.version, full.weights.version) == (1, 1)
    assert deviation(world, full, changed) < 1e-4
    with pytest.raises(ContractError, match="version 0"):
        full.generate([world.plain], SAMPLING, 0)


@pytest.fixture
def unchecked(monkeypatch):
    """Disable the comparison of manifest and model, to test the later checks alone."""
    monkeypatch.setattr(WeightCheck, "check", lambda *_: None)


@pytest.mark.parametrize("left_out", ["layers.1.input_layernorm", "visual.merger.mlp.0", "layers.0.self_attn.o_proj"])
def test_engine_has_no_usable_version_after_a_publish_without_one_of_its_tensors(world, full, unchecked, left_out):
    with pytest.raises(ContractError, match=left_out.split(".")[-1]):
        send(full, perturbed(world.fresh(), [""]), 2, keep=lambda name: left_out not in name)
    assert full.weights.version is None
    with pytest.raises(ContractError, match="no usable weights"):
        full.generate([world.plain], SAMPLING, 2)
    send(full, world.fresh(), version=3)
    assert deviation(world, full, world.fresh()) < 1e-4


UP = "model.language_model.layers.2.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state | {UP.replace("2", "9"): state[UP]}, "layers.9.*does not know"),
        (lambda state: {n: t for n, t in state.items() if "layers.1.input_layernorm" not in n}, "layers.1.input_lay"),
        (lambda state: state | {UP: state[UP].bfloat16()}, "as bfloat16 instead of float32"),
        (lambda state: state | {UP: state[UP][:-1]}, r"\(255, 128\) instead of \(256, 128\)"),
    ],
    ids=["unknown", "missing", "dtype", "shape"],
)
def test_undamaged_weights_of_another_model_are_refused_and_the_version_stays(world, full, change, named):
    send(full, world.fresh(), version=40)
    state = change(perturbed(world.fresh(), [""]).state_dict())
    with pytest.raises(ContractError, match=named):
        full.weights.publish(*pack_weights(state.items(), 1 << 20, version=41))
    assert full.weights.version == 40 and deviation(world, full, world.fresh()) < 1e-4


@pytest.mark.parametrize("left_out", ["layers.1.self_attn.k_proj", "mlp.gate_proj", "lm_head"])
def test_weights_that_would_load_wrongly_are_refused_before_anything_changes(world, full, left_out):
    send(full, world.fresh(), version=4)
    with pytest.raises(ContractError, match=left_out):
        send(full, perturbed(world.fresh(), [""]), 5, keep=lambda name: left_out not in name)
    assert full.weights.version == 4
    assert deviation(world, full, world.fresh()) < 1e-4


def test_stale_head_or_encoder_cache_changes_logprobs(world, full, unchecked, monkeypatch):
    """Show the reason for two precautions: without either one, the log-probs are visibly those of a mixture of two versions."""
    send(full, world.fresh(), version=6)
    deviation(world, full, world.fresh())  # the video's features are now cached
    changed = perturbed(world.fresh(), [""])
    with monkeypatch.context() as patch:
        patch.setattr(full.weights, "reset_encoder_cache", lambda: None)
        send(full, changed, version=7)
        assert deviation(world, full, changed) > 1e-3
    with monkeypatch.context() as patch:
        patch.setattr(WeightCheck, "check", lambda *_: None)
        send(full, world.fresh(), 8, keep=lambda name: name != "lm_head.weight")
        assert deviation(world, full, world.fresh()) > 1e-3
    send(full, changed, version=9)
    assert deviation(world, full, changed) < 1e-4


def test_stale_prefix_cache_changes_logprobs_of_long_prompts(world, full, monkeypatch):
    """Prefixes are shared in blocks of 128 tokens on the CPU."""
    send(full, world.fresh(), version=20)
    long = Request([*world.plain.prompt_ids] * 20, (3,))
    assert len(long.prompt_ids) > 128
    full.generate([long], SAMPLING, 20)
    changed = perturbed(world.fresh(), [""])
    with monkeypatch.context() as patch:
        patch.setattr(full.weights, "reset_prefix_cache", lambda: None)
        send(full, changed, version=21)
        stale = full.logprobs([long], [[9, 10]], SAMPLING, 21)[0]
    send(full, changed, version=22)
    assert np.abs(full.logprobs([long], [[9, 10]], SAMPLING, 22)[0] - stale).max() > 1e-3


def test_deterministic_engine_gives_the_same_answers(world, full, monkeypatch):
    monkeypatch.setattr(full, "spec", replace(full.spec, deterministic=True))
    alone = full.generate([world.plain, world.request], SAMPLING, full.weights.version)
    monkeypatch.undo()
    together = full.generate([world.plain, world.request], SAMPLING, full.weights.version)
    for one, other in zip(alone[0] + alone[1], together[0] + together[1], strict=True):
        assert one.response_ids.tolist() == other.response_ids.tolist()
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_prompts_longer_than_one_step_are_answered(world, full):
    """On a CPU vLLM cannot compute part of a seeded prompt: those beyond the step's tokens wait for the next one."""
    rng = np.random.default_rng(0)
    words = world.processor.tokenizer.convert_tokens_to_ids(WORDS)
    requests = [Request([*rng.choice(words, 400).tolist(), *world.plain.prompt_ids], (index,)) for index in range(16)]
    assert sum(len(request.prompt_ids) for request in requests) > 4096
    together = full.generate(requests, SAMPLING, full.weights.version)
    alone = full.generate(requests[11:12], SAMPLING, full.weights.version)
    assert np.array_equal(together[11][0].response_ids, alone[0][0].response_ids)
    tokens = [[int(words[0])], [int(words[1])]]
    first, again = (full.choices(requests, tokens, full.weights.version) for _ in range(2))
    np.testing.assert_allclose(np.stack(first), np.stack(again), atol=1e-5)


def test_common_prefix_of_prompts_is_computed_once(world, full):
    """Count the cached tokens; the log-probs equal those of the whole prompt."""
    words = world.processor.tokenizer.convert_tokens_to_ids(WORDS)
    beginning = np.random.default_rng(1).choice(words, 256).tolist()
    requests = [Request([*beginning, word, *world.plain.prompt_ids]) for word in words[:8]]
    before, prompt_tokens = full.cached_tokens, full.prompt_tokens
    logprobs = full.choices(requests, [[int(words[0])]], full.weights.version)
    assert full.prompt_tokens - prompt_tokens == sum(len(request.prompt_ids) for request in requests)
    assert full.cached_tokens - before == 7 * 256  # two whole blocks of 128
    full.weights.reset_prefix_cache()
    alone = [full.choices([request], [[int(words[0])]], full.weights.version)[0] for request in requests[-1:]]
    np.testing.assert_allclose(alone[0], logprobs[-1], atol=1e-5)


def test_error_while_requests_are_made_leaves_the_engine_idle(world, full):
    def broken():
        yield world.request
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        full.generate(broken(), SAMPLING, full.weights.version)
    send(full, world.fresh(), version=30)
    assert len(full.generate([world.plain], SAMPLING, 30)[0]) == 1


def test_a_damaged_byte_is_refused_by_name_and_the_old_version_stays(world, full):
    send(full, world.fresh(), version=10)
    manifest, buckets = pack_weights(perturbed(world.fresh(), [""]).state_dict().items(), 1 << 20, version=11)
    name = "model.language_model.layers.2.mlp.up_proj.weight"
    bucket = next(bucket for bucket in buckets if name in bucket)
    bucket[name] = bucket[name].copy()
    bucket[name].view(np.uint8)[3, 5] ^= 1
    with pytest.raises(ContractError, match=name):
        full.weights.publish(manifest, buckets)
    assert full.weights.version == 10
    assert deviation(world, full, world.fresh()) < 1e-4


def test_weights_of_another_base_are_refused(world, full):
    state = dict(world.fresh().state_dict())
    send(full, world.fresh(), version=11)
    with pytest.raises(ContractError, match="another base"):
        full.weights.publish(*pack_weights(state.items(), 1 << 20, version=12, base="0123456789abcdef"))
    assert full.weights.version == 11
    full.weights.publish(*pack_weights(state.items(), 1 << 20, version=12, base=ModelDir(world.path).fingerprint))
    assert full.weights.version == 12


def test_failed_load_blocks_sampling_until_the_next_publish(world, full, unchecked):
    state = dict(
        world.fresh().state_dict(), **{"model.language_model.layers.9.input_layernorm.weight": torch.zeros(128)}
    )
    with pytest.raises(ContractError, match=r"layers\.9"):
        full.weights.publish(*pack_weights(state.items(), 1 << 20, version=13))
    with pytest.raises(ContractError, match="half-way"):
        full.generate([world.plain], SAMPLING, 13)
    send(full, world.fresh(), version=14)
    assert deviation(world, full, world.fresh()) < 1e-4


def test_a_sleeping_engine_wakes_for_its_next_use(world, full):
    """On a CPU vLLM frees no memory, but it drops its caches, and level 2 forgets the version as on a GPU."""
    send(full, world.fresh(), version=15)
    full.weights.sleep(1)
    assert full.llm.llm_engine.is_sleeping()
    assert deviation(world, full, world.fresh()) < 1e-4 and not full.llm.llm_engine.is_sleeping()
    full.weights.sleep(2)
    with pytest.raises(ContractError, match="no usable weights"):
        full.generate([world.plain], SAMPLING, 15)
    full.weights.sleep(2)
    changed = perturbed(world.fresh(), [""])
    send(full, changed, version=16)
    assert not full.llm.llm_engine.is_sleeping() and deviation(world, full, changed) < 1e-4


def test_an_adapter_publish_equals_the_adapted_model(world, adapted):
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    assert deviation(world, adapted, world.fresh()) < 1e-4
    targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    model = get_peft_model(world.fresh(), LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    config = {
        name: value
        for name, value in model.peft_config["default"].to_dict().items()
        if isinstance(value, (str, int, float, list, dict))
    }
    for version in (1, 2):
        perturbed(model, ["lora_"], scale=0.1, seed=version)
        assert deviation(world, adapted, model) > 1e-2
        tensors = get_peft_model_state_dict(model).items()
        receipt = adapted.weights.publish(*pack_weights(tensors, 1 << 20, version=version, kind="adapter", lora=config))
        assert adapted.weights.version == version and receipt.nbytes < 200_000
        assert deviation(world, adapted, model) < 1e-4
    for rank in (2, 16):
        with pytest.raises(ContractError, match=f"rank {rank}"):
            other = config | {"r": rank}
            adapted.weights.publish(*pack_weights(tensors, 1 << 20, version=3, kind="adapter", lora=other))
    with pytest.raises(ContractError, match="another base"):
        adapted.weights.publish(
            *pack_weights(tensors, 1 << 20, version=3, kind="adapter", lora=config, base="0123456789abcdef")
        )
    with pytest.raises(ContractError, match="adapter weights"):
        send(adapted, world.fresh(), version=3)
    assert adapted.weights.version == 2 and deviation(world, adapted, model) < 1e-4


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}])
def test_engine_answers_with_the_adapter_of_a_folder(world, adapted, tmp_path, options):
    """Compare with PEFT itself; a later publish leaves the folder unchanged."""
    base = str(world.path)
    first, second = (write_adapter(tmp_path / str(seed), base, seed, **options) for seed in (1, 2))
    for folder in (first, second):
        adapted.weights.serve(folder)
        assert deviation(world, adapted, PeftModel.from_pretrained(world.fresh(), folder).eval()) < 1e-4
    assert deviation(world, adapted, PeftModel.from_pretrained(world.fresh(), first).eval()) > 1e-2
    for folder in (first, second):
        assert (Path(folder) / "adapter_model.safetensors").is_file()


def test_resolve_model_serves_plain_adapters_in_16_bits_and_merges_others(world, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    base, folder = str(world.path), write_adapter(tmp_path / "plain", str(world.path))
    spec = EngineSpec(folder, "bfloat16")
    assert resolve_model(spec) == replace(spec, model_path=base, lora_rank=4, adapter=folder)
    merged = resolve_model(replace(spec, dtype="float32"))
    assert merged.model_path.startswith(str(tmp_path / "cache")) and merged.adapter is merged.lora_rank is None
    assert resolve_model(replace(spec, lora_rank=4)).adapter is None
    assert resolve_model(replace(spec, model_path=base)) == replace(spec, model_path=base)
    for number, options in enumerate(
        ({"use_dora": True}, {"rank_pattern": {"v_proj": 2}}, {"target_modules": ["qkv"]})
    ):
        odd = write_adapter(tmp_path / str(number), base, **options)
        assert resolve_model(replace(spec, model_path=odd)).adapter is None


def test_a_rollout_actor_serves_an_adapter_in_16_bits(world, tmp_path):
    """Check that log-probs are far nearer to PEFT's in float32 than to those of the adapter's base."""
    folder = write_adapter(tmp_path / "adapter", str(world.path))
    actor = RolloutActor(EngineSpec(folder, "bfloat16", rollout=ROLLOUT), lambda: None)
    probe = Probe("what do you see ?", response_ids=tuple(range(20, 31)))
    (served,) = actor.probe([probe], SAMPLING, 0)
    encoder = Encoder(str(world.path))
    item = encoder.prompt_and_response(probe.question, probe.response_ids, None)
    ids = torch.as_tensor(item.ids)[None]

    def logprobs(model) -> np.ndarray:
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, item.start - 1 : -1]
        logits[:, list(encoder.banned_ids)] -= 100
        return logits.log_softmax(-1).gather(1, ids[0, item.start :, None])[:, 0].numpy()

    near = np.abs(served.logprobs - logprobs(PeftModel.from_pretrained(world.fresh(), folder).eval())).max()
    assert near < 0.1 < 1.0 < np.abs(served.logprobs - logprobs(world.fresh())).max()
