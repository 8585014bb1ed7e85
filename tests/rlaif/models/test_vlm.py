"""The backbone's outputs against plain forwards of the library, for each family."""

from __future__ import annotations

import re
from operator import attrgetter

import numpy as np
import pytest
import torch

from rlaif.config.schema import Lora
from rlaif.models import vlm
from rlaif.models.batch import collate
from rlaif.models.family import FAMILIES
from rlaif.models.vlm import VideoLM, freeze_for_full_training, load_vlm
from rlaif.objectives.slots import ResponseSlots

LORA = Lora(r=4, alpha=8)


@pytest.fixture(scope="module", params=["qwen", "llava"])
def family(request):
    """Return (encoder, path) of each family."""
    return request.getfixturevalue(request.param), request.getfixturevalue(f"{request.param}_path")


@pytest.fixture(scope="module")
def items(family):
    """Return sequences of different lengths, with different videos, one of them without a video."""
    encoder, _ = family
    rng = np.random.default_rng(0)

    def ids(count: int) -> list[int]:
        return [*rng.integers(10, 30, count), encoder.eos_id]

    return [
        encoder.prompt_and_response("what ?", ids(9), encoder.video("a")),
        encoder.prompt_and_response("describe the video . what do you see ?", ids(3), encoder.video("b")),
        encoder.prompt_and_response("what moves ?", ids(5), None),
    ]


@pytest.fixture(scope="module")
def critic(family) -> VideoLM:
    """Return a model with two adapters, of which one has random weights, and a random head."""
    torch.manual_seed(1)
    module = VideoLM(load_vlm(family[1], "float32"), ["critic"], {"policy": LORA, "critic": LORA}).eval()
    torch.nn.init.normal_(module.heads["critic"].weight, std=0.2)
    for name, parameter in module.named_parameters():
        if ".critic." in name and "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return module


@torch.no_grad()
def run(module, items, output, adapter="critic", side="right", **options) -> list[np.ndarray]:
    """Run one batch; return each item's part of the output, without padding."""
    module.activate(adapter)
    rows = module(collate(items, 0, side=side), output, head="critic", **options)[output].numpy()
    return [row[: len(item.mask)] if row.ndim else row for row, item in zip(rows, items, strict=True)]


@torch.no_grad()
def plain(family, item, temperature=1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return (log-probs, entropies) by the library's own forward, with every logit computed and media tokens excluded."""
    encoder, path = family
    batch = collate([item], 0)
    model = load_vlm(path, "float32").eval()
    logits = (
        model(input_ids=batch.ids, attention_mask=batch.attention, position_ids=batch.positions, **batch.video).logits[
            0
        ]
        / temperature
    )
    logits[:, list(encoder.banned_ids)] = -torch.inf
    logprobs = logits[item.start - 1 : -1].log_softmax(-1)
    entropy = torch.special.entr(logprobs.exp()).sum(-1)
    return logprobs.gather(1, batch.targets[0][:, None])[:, 0].numpy(), entropy.numpy()


def test_logprobs_equal_the_plain_model(family, items, critic):
    for item in items:
        logprobs, entropy = plain(family, item, temperature=0.7)
        assert np.abs(run(critic, [item], "logprobs", None, temperature=0.7)[0] - logprobs).max() < 1e-5
        with torch.no_grad():
            critic.activate(None)
            own_entropy = critic(collate([item], 0), "logprobs", temperature=0.7)["entropy"][0].numpy()
        assert np.abs(own_entropy - entropy).max() < 1e-5 and entropy.max() > 0.5


@pytest.mark.parametrize("output", ["logprobs", "values", "score"])
def test_outputs_depend_neither_on_padding_nor_on_other_rows_of_the_batch(items, critic, output):
    alone = [run(critic, [item], output)[0] for item in items]
    for side in ("right", "left"):
        for rows in (items, items[::-1], items[:2]):
            together = run(critic, rows, output, side=side)
            for item, value in zip(rows, together, strict=True):
                index = next(i for i, one in enumerate(items) if one is item)
                assert np.abs(value - alone[index]).max() < 1e-5
    assert np.ptp(np.concatenate([np.atleast_1d(value) for value in alone])) > 0.1  # they do differ from each other


def test_the_critic_sees_the_video(family, critic):
    encoder, path = family
    ids = [11, 12, 13, encoder.eos_id]
    one, other = (encoder.prompt_and_response("what ?", ids, encoder.video(name)) for name in ("a", "b"))
    assert np.array_equal(one.ids, other.ids)
    for output in ("values", "score", "logprobs"):
        assert np.abs(run(critic, [one], output)[0] - run(critic, [other], output)[0]).min() > 1e-4
    fresh = VideoLM(load_vlm(path, "float32"), ["critic"]).eval()
    assert not run(fresh, [one], "values")[0].any() and run(fresh, [one], "score")[0] == 0.0


@torch.no_grad()
def test_value_head_reads_before_each_token_and_score_head_the_last(items, critic):
    item, batch = items[0], collate([items[0]], 0)
    critic.activate("critic")
    hidden = critic.causal.model(
        input_ids=batch.ids, attention_mask=batch.attention, position_ids=batch.positions, **batch.video
    ).last_hidden_state[0]
    by_hand = critic.heads["critic"](hidden)[:, 0].numpy()
    assert np.abs(run(critic, [item], "values")[0] - by_hand[item.start - 1 : -1]).max() < 1e-5
    assert np.abs(run(critic, [item], "score")[0] - by_hand[-1]).max() < 1e-5


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("slots", [10, 11, 12, 20])
def test_two_padding_tokens_give_the_values_of_all_slots(items, critic, slots, side):
    """Compare with all of the padding written out, one answer alone, and its slots read one by one."""
    counted = ResponseSlots(slots)
    short = [item.padded(0, counted.padding_tokens(len(item.mask))) for item in items]
    slot_values = counted.repeat_last(*ragged(run(critic, short, "values", side=side))).numpy()
    for item, row in zip(items, slot_values, strict=True):
        count = slots - len(item.mask)
        long = item.padded(0, count)
        assert long.ids[len(item.ids) :].tolist() == [0] * count and len(long.positions.T) == len(long.ids)
        batch = collate([long], 0)
        assert batch.attention[0].tolist() == [1] * len(item.ids) + [0] * count
        assert np.abs(run(critic, [long], "values")[0] - row).max() < 1e-5
        assert np.abs(run(critic, [item], "values")[0] - row[: len(item.mask)]).max() < 1e-5
        if count > 1:  # what follows the last token is not what the last token says
            assert abs(row[len(item.mask)] - row[len(item.mask) + 1]) > 1e-3


def ragged(rows) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(row) for row in rows])
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True), lengths


def test_adapters_start_as_the_base_and_are_independent(items, critic):
    base = run(critic, items, "logprobs", None)
    assert all(np.array_equal(a, b) for a, b in zip(base, run(critic, items, "logprobs", "policy"), strict=True))
    trained = run(critic, items, "logprobs", "critic")
    assert min(np.abs(a - b).max() for a, b in zip(base, trained, strict=True)) > 0.01
    again = run(critic, items, "logprobs", None)
    assert all(np.array_equal(a, b) for a, b in zip(base, again, strict=True))


def test_adapters_sit_in_the_language_model_only(critic):
    adapted = {name.split(".lora_")[0] for name, _ in critic.named_parameters() if "lora_" in name}
    layers = critic.config.get_text_config().num_hidden_layers
    assert len(adapted) == 7 * layers and all("language_model" in name for name in adapted)
    assert any(name.endswith(("q_proj", "gate_proj")) for name in adapted)
    critic.activate("policy")
    trains = [name for name, parameter in critic.named_parameters() if parameter.requires_grad]
    assert all(".policy." in name or name.startswith("heads.") for name in trains) and len(trains) == 2 * 7 * layers + 2


def test_long_answers_are_scored_in_chunks_with_equal_results(monkeypatch, family, items):
    def gradients() -> tuple[np.ndarray, torch.Tensor]:
        module = VideoLM(load_vlm(family[1], "float32"))
        outputs = module(collate(items, 0), "logprobs")
        (outputs["logprobs"].sum() + 0.1 * outputs["entropy"].sum()).backward()
        weight = module.causal.model.language_model.layers[0].mlp.up_proj.weight
        return outputs["logprobs"].detach().numpy(), weight.grad

    whole, grad = gradients()
    monkeypatch.setattr(vlm, "LOGIT_CHUNK", 4)
    pieces, grad_of_pieces = gradients()
    assert np.abs(whole - pieces).max() < 1e-5 and np.abs(whole).min(where=whole != 0, initial=1.0) > 0
    assert (grad - grad_of_pieces).abs().max() < 1e-4 * grad.abs().max()


PARTS = {
    "projector": r"\.(merger|deepstack_merger_list|multi_modal_projector|image_newline)\b",
    "vision": r"\.(visual|vision_tower)\.",
}


@pytest.mark.parametrize(("vision", "projector"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("name", FAMILIES)
def test_full_training_freezes_tower_and_projector_unless_configured(name, path_of, vision, projector):
    model = load_vlm(path_of(name), "float32")
    freeze_for_full_training(model, vision, projector)
    kinds = {"language": set(), "vision": set(), "projector": set()}
    for name, parameter in model.named_parameters():
        kind = next((part for part, pattern in PARTS.items() if re.search(pattern, name)), "language")
        kinds[kind].add(parameter.requires_grad)
    assert kinds == {"language": {True}, "vision": {vision}, "projector": {projector}}


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_sit_on_every_linear_layer_of_the_language_model(name, path_of):
    model = load_vlm(path_of(name), "float32")
    path = FAMILIES[name].language
    layers = attrgetter(path)(model).named_modules()
    linear = {f"{path}.{layer}" for layer, module in layers if isinstance(module, torch.nn.Linear)}
    module = VideoLM(model, adapters={"policy": LORA})
    adapted = {layer.split(".lora_")[0] for layer, _ in module.causal.named_parameters() if "lora_" in layer}
    assert adapted == linear and len(adapted) == 7 * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_have_the_dtype_of_their_base(path_of, dtype):
    module = VideoLM(load_vlm(path_of("qwen2_5_vl"), dtype), {"reward": 2}, {"reward": LORA, "critic": LORA})
    names = {name: parameter.dtype for name, parameter in module.named_parameters() if "lora_" in name}
    for adapter in ("reward", "critic"):
        assert any(f".{adapter}." in name for name in names)
    assert set(names.values()) == {getattr(torch, dtype)}
