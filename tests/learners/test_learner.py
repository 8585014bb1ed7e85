"""Learner steps on two ranks against plain torch in one process on the whole batch."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain

import deepspeed
import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import LORA, NoiseFrames, cluster, full, model, plain_optim, responses, shard_above, weights

from learners import losses
from learners.collectives import RankCollectives
from learners.learner import Learner
from learners.roles import init_reward_head
from learners.schedule import learning_rate
from learners.spec import LearnerSpec, RoleSpec
from rlaif.config.schema import Lora, Optim, Ppo, Reward
from rlaif.errors import ContractError
from rlaif.models.batch import collate
from rlaif.models.encode import Encoder
from rlaif.models.vlm import VideoLM, load_vlm

PLAN = [([2, 3], []), ([0], [1, 2, 3, 4, 5]), ([0, 1, 2], [3, 4])]
"""Items of each rank in each step: uneven shares, and at once a rank without any."""
OPTIM = plain_optim(warmup_steps=2)


def spec_of(path, roles, zero_stage=2, budget=10**6, **changes) -> LearnerSpec:
    return LearnerSpec(tuple(roles), model(**changes), cluster(zero_stage), 512, 2**28, budget, seed=5)


def train_shared(path, zero_stage, checkpointing, budget):
    """Train policy and critic as adapters on one base, in turn through PLAN."""
    shard_above(0)
    roles = [
        RoleSpec("policy", path, LORA, OPTIM, 10),
        RoleSpec("critic", path, LORA, OPTIM, 10, "value"),
        RoleSpec("reference", path),
    ]
    learner = Learner(
        spec_of(path, roles, zero_stage, budget, gradient_checkpointing=checkpointing),
        NoiseFrames(),
        torch.device("cpu"),
    )
    policy, critic = learner.roles["policy"], learner.roles["critic"]
    items = responses(learner.encoder("policy"), 6)
    start = weights(policy) | weights(critic)
    reference, norms, idle_moved = [learner.infer("reference", items, "logprobs")], [], []
    for shares in PLAN:
        units = [(items[i],) for i in shares[dist.get_rank()]]
        idle = local(policy)
        norms.append(learner.step("critic", units, losses.critic_objective(Ppo(), None)).metrics["grad_norm"][0])
        idle_moved += [not torch.equal(a, b) for a, b in zip(idle, local(policy), strict=True)]
        idle = local(critic)
        norms.append(learner.step("policy", units, losses.SUPERVISED).metrics["grad_norm"][0])
        idle_moved += [not torch.equal(a, b) for a, b in zip(idle, local(critic), strict=True)]
    reference.append(learner.infer("reference", items, "logprobs"))
    return {
        "start": start,
        "end": weights(policy) | weights(critic),
        "norms": norms,
        "idle_moved": any(idle_moved),
        "reference": reference,
        "shared": policy.module is critic.module is learner.roles["reference"].module,
        "sharded": all(parameter.numel() == 0 for parameter in policy.trainable().values()),
    }


def local(role) -> list[torch.Tensor]:
    """Return the own rank's part of a role's trained weights."""
    return [getattr(parameter, "ds_tensor", parameter).detach().clone() for parameter in role.trainable().values()]


def plain_steps(path, start, role, loss, optim=OPTIM, head=(), plan=PLAN, build=None) -> tuple[dict, list]:
    """Take the same steps with a separate module in one process, with one forward over all of a step's items."""
    module = build() if build else VideoLM(load_vlm(path, "float32"), head, {role: LORA})
    module.load_state_dict({name: torch.from_numpy(value) for name, value in start.items()}, strict=False)
    trained = {name: parameter for name, parameter in module.named_parameters() if name in start}
    optimizer = torch.optim.AdamW(trained.values(), optim.lr, optim.betas, optim.eps, optim.weight_decay)
    encoder, norms = Encoder(path, NoiseFrames()), []
    items = responses(encoder, 6)
    for number, shares in enumerate(plan):
        batch = collate([items[i] for i in chain.from_iterable(shares)], 0)
        optimizer.param_groups[0]["lr"] = optim.lr * min(1.0, (number + 1) / max(1, optim.warmup_steps))
        optimizer.zero_grad()
        loss(module, batch).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), optim.max_grad_norm)))
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in trained.items()}, norms


def mean_nll(module, batch):
    return -(module(batch, "logprobs")["logprobs"] * batch.mask).sum() / batch.mask.sum()


def half_squared_error(module, batch):
    error = (module(batch, "values", head="critic")["values"] - batch.extras["returns"]) * batch.mask
    return 0.5 * (error**2).sum() / batch.mask.sum()


def differences(result, expected) -> dict[str, float]:
    assert result.keys() == expected.keys()
    return {name: float(np.abs(result[name] - expected[name]).max()) for name in result}


@pytest.fixture(scope="module")
def shared(two_ranks, tiny):
    """Return results of `train_shared` by its settings, each run at its first use."""
    results = {}

    def get(**settings):
        key = tuple(settings.values())
        if key not in results:
            results[key] = two_ranks.run(train_shared, path=tiny, **settings)
        return results[key]

    return get


SETTINGS = [(2, False, 10**6), (2, True, 60), pytest.param(3, True, 150, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("zero_stage", "checkpointing", "budget"), SETTINGS)
def test_adapters_on_one_base_train_like_separate_modules(shared, tiny, zero_stage, checkpointing, budget):
    ranks = shared(zero_stage=zero_stage, checkpointing=checkpointing, budget=budget)
    start, end = ranks[0]["start"], ranks[0]["end"]
    assert ranks[0]["shared"] and ranks[0]["sharded"] == (zero_stage == 3)
    assert differences(end, ranks[1]["end"]) == dict.fromkeys(end, 0.0)

    def own(values, role):
        return {name: value for name, value in values.items() if f".{role}." in name}

    for role, loss, head, place in (("critic", half_squared_error, ["critic"], 0), ("policy", mean_nll, [], 1)):
        expected, norms = plain_steps(tiny, own(start, role), role, loss, head=head)
        assert min(differences(own(start, role), expected).values()) > 1e-4  # otherwise the test could not fail
        assert max(differences(own(end, role), expected).values()) < 1e-5
        assert np.allclose(ranks[0]["norms"][place::2], norms, rtol=1e-4)


@pytest.mark.parametrize(("zero_stage", "checkpointing", "budget"), SETTINGS)
def test_a_step_moves_its_own_adapter_only(shared, zero_stage, checkpointing, budget):
    for rank in shared(zero_stage=zero_stage, checkpointing=checkpointing, budget=budget):
        assert not rank["idle_moved"]
        before, after = rank["reference"]
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def train_full(path, zero_stage):
    """Train all weights of the policy but tower and projector; the reference is a separate module."""
    shard_above(0)
    roles = [RoleSpec("policy", path, None, FULL_OPTIM, 10), RoleSpec("reference", path)]
    learner = Learner(spec_of(path, roles, zero_stage, 150), NoiseFrames(), torch.device("cpu"))
    policy, reference = learner.roles["policy"], learner.roles["reference"]
    items = responses(learner.encoder("policy"), 6)

    def everything():
        return {name: full(parameter) for name, parameter in policy.module.named_parameters()}

    start, first = everything(), learner.infer("reference", items, "logprobs")
    norms = []
    for shares in PLAN:
        units = [(items[i],) for i in shares[dist.get_rank()]]
        norms.append(learner.step("policy", units, losses.SUPERVISED).metrics["grad_norm"][0])
    end, last = everything(), learner.infer("reference", items, "logprobs")
    return {
        "start": start,
        "end": end,
        "trained": list(policy.trainable()),
        "norms": norms,
        "reference_moved": not all(np.array_equal(a, b) for a, b in zip(first, last, strict=True)),
        "shared": policy.module is reference.module,
    }


FULL_OPTIM = plain_optim(lr=0.1, weight_decay=0.01, max_grad_norm=0.5)


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_full_weights_train_and_the_frozen_parts_stay(two_ranks, tiny, zero_stage):
    first, second = two_ranks.run(train_full, path=tiny, zero_stage=zero_stage)
    assert not first["shared"] and not first["reference_moved"]
    assert differences(first["end"], second["end"]) == dict.fromkeys(first["end"], 0.0)
    moved = {name for name, change in differences(first["start"], first["end"]).items() if change}
    assert moved == set(first["trained"]) and not any(".visual." in name for name in moved)
    assert len([name for name in first["end"] if ".visual." in name]) > 20

    start = {name: first["start"][name] for name in first["trained"]}
    expected, norms = plain_steps(
        tiny, start, "policy", mean_nll, FULL_OPTIM, build=lambda: VideoLM(load_vlm(tiny, "float32"))
    )
    assert min(norms) > FULL_OPTIM.max_grad_norm  # clipping took part
    assert max(differences({name: first["end"][name] for name in expected}, expected).values()) < 1e-5
    assert np.allclose(first["norms"], norms, rtol=1e-4)


def train_pairs(path):
    """Take a preference step in which rank 1 has no pair, then one in which no rank has any."""
    roles = [RoleSpec("reward", path, LORA, plain_optim(), 10, "reward")]
    learner = Learner(spec_of(path, roles, budget=60), NoiseFrames(), torch.device("cpu"))
    items = responses(learner.encoder("reward"), 4)
    start = weights(learner.roles["reward"])
    units = [(items[0], items[1]), (items[2], items[3])] if dist.get_rank() == 0 else []
    metrics = learner.collectives.gather_metrics(
        learner.step("reward", units, losses.preference_objective(Reward(centering="squared"))).metrics
    )
    scores = learner.infer("reward", items if dist.get_rank() else [], "score")
    with pytest.raises(ContractError, match="nothing on any rank"):
        learner.step("reward", [], losses.preference_objective(Reward()))
    nothing = learner.infer("reward", [], "score")
    return {
        "start": start,
        "end": weights(learner.roles["reward"]),
        "metrics": metrics,
        "scores": scores,
        "nothing": nothing,
    }


def test_a_rank_without_pairs_takes_part(two_ranks, tiny):
    first, second = two_ranks.run(train_pairs, path=tiny)

    def loss(module, batch):
        scores = module(batch, "score", head="reward")["score"]
        chosen, rejected = scores[0::2], scores[1::2]
        return (-torch.nn.functional.logsigmoid(chosen - rejected) + 1e-3 * (chosen**2 + rejected**2) / 2).mean()

    expected, _ = plain_steps(tiny, first["start"], "reward", loss, plain_optim(), ["reward"], plan=[([0, 1, 2, 3],)])
    assert max(differences(first["start"], expected).values()) > 1e-2
    assert max(differences(first["end"], expected).values()) < 1e-5
    assert first["metrics"]["accuracy"][1] == 2.0  # two pairs in all, the lent one not counted
    assert first["scores"] == [] and len(second["scores"]) == 4 and first["nothing"] == second["nothing"] == []


TWO = Reward(dimensions=("helpful", "harmless"), centering="none")
SIGNED = ({"sign/helpful": 1.0, "sign/harmless": -1.0}, {"sign/helpful": 0.0, "sign/harmless": 1.0})


def train_two_heads(path):
    """Take a step of two pairs, one per rank, of which the second was compared in one dimension only; then score."""
    roles = [RoleSpec("reward", path, LORA, plain_optim(), 10, "reward", outputs=2)]
    learner = Learner(spec_of(path, roles), NoiseFrames(), torch.device("cpu"))
    rank, items = dist.get_rank(), responses(learner.encoder("reward"), 4)
    start = weights(learner.roles["reward"])
    unit = tuple(replace(item, extras=SIGNED[rank]) for item in items[2 * rank :][:2])
    metrics = learner.collectives.gather_metrics(
        learner.step("reward", [unit], losses.preference_objective(TWO)).metrics
    )
    scores = learner.infer("reward", items, "score")
    return {"start": start, "end": weights(learner.roles["reward"]), "metrics": metrics, "scores": scores}


def test_two_heads_learn_from_their_own_comparisons(two_ranks, tiny):
    first, second = two_ranks.run(train_two_heads, path=tiny)

    def loss(module, batch):
        scores = module(batch, "score", head="reward")["score"]
        gaps = [scores[0, 0] - scores[1, 0], scores[1, 1] - scores[0, 1], scores[2, 1] - scores[3, 1]]
        return -sum(torch.nn.functional.logsigmoid(gap) for gap in gaps) / 2

    expected, _ = plain_steps(
        tiny, first["start"], "reward", loss, plain_optim(), {"reward": 2}, plan=[([0, 1, 2, 3],)]
    )
    assert max(differences(first["start"], expected).values()) > 1e-2
    assert max(differences(first["end"], expected).values()) < 1e-5
    assert first["metrics"]["helpful_share"] == (1.0, 2.0) and first["metrics"]["harmless_accuracy"][1] == 2.0
    assert all(score.shape == (2,) for score in first["scores"]) and len(second["scores"]) == 4


def batches_beside_more(path):
    """Return how the rank's five items are batched: alone, and beside a rank that has three times as many batches."""
    learner = Learner(spec_of(path, [RoleSpec("policy", path)], budget=100), NoiseFrames(), torch.device("cpu"))
    units = [(item,) for item in responses(learner.encoder("policy"), 15)]
    lengths = [len(item.ids) for (item,) in units]
    mine = units if dist.get_rank() else units[:5]
    alone, _ = learner._microbatches(units[:5], divide=False)
    scored, _ = learner._microbatches(mine, divide=False)
    stepped, _ = learner._microbatches(mine)
    return alone, scored, stepped, max(lengths)


def test_scoring_batches_depend_on_the_own_rank_only(two_ranks, tiny):
    (alone, scored, stepped, longest), (_, beside, _, _) = two_ranks.run(batches_beside_more, path=tiny)
    assert longest <= 50 and len(beside) == len(scored) == len(stepped) > len(alone)
    assert scored == alone + [[]] * (len(beside) - len(alone))
    assert stepped[: len(alone)] != alone  # a step divides the work among the ranks


def gather_uneven(counts):
    """Gather rows that hold the rank's number; `counts` are how many each rank has."""
    rank = dist.get_rank()
    rows = torch.full((counts[rank], 2), float(rank), dtype=torch.float64)
    return RankCollectives(torch.device("cpu")).gather_rows(rows).tolist()


@pytest.mark.parametrize("counts", [(3, 1), (0, 2), (2, 0), (0, 0)])
def test_gather_rows_joins_uneven_ranks_in_their_order(two_ranks, counts):
    expected = [[0.0, 0.0]] * counts[0] + [[1.0, 1.0]] * counts[1]
    assert two_ranks.run(gather_uneven, counts=counts) == [expected, expected]


PROJECTOR_OPTIM = plain_optim(lr=0.1, projector_lr=0.4, weight_decay=0.01, warmup_steps=2)


def train_projector(path, zero_stage):
    """Train all weights but the tower's, the projector at its own rate."""
    shard_above(0)
    roles = [RoleSpec("policy", path, None, PROJECTOR_OPTIM, 10, train_projector=True)]
    learner = Learner(spec_of(path, roles, zero_stage), NoiseFrames(), torch.device("cpu"))
    policy, items = learner.roles["policy"], responses(learner.encoder("policy"), 6)
    start, rates = weights(policy), []
    for shares in PLAN:
        units = [(items[i],) for i in shares[dist.get_rank()]]
        rate = learner.step("policy", units, losses.SUPERVISED).metrics["lr"][0]
        rates.append((rate, [group["lr"] for group in policy.engine.optimizer.param_groups]))
    return {"start": start, "end": weights(policy), "rates": rates}


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_the_projector_has_a_rate_of_its_own_on_the_same_schedule(two_ranks, tiny, zero_stage):
    result = two_ranks.run(train_projector, path=tiny, zero_stage=zero_stage)[0]
    assert [rate for rate, _ in result["rates"]] == pytest.approx([0.05, 0.1, 0.1])
    assert [groups for _, groups in result["rates"]] == [pytest.approx([r, 4 * r]) for r in (0.05, 0.1, 0.1)]
    projector = {name for name in result["start"] if ".visual.merger." in name}
    assert projector and projector != result["start"].keys()
    expected = plain_groups(tiny, result["start"], projector)
    alike = plain_groups(tiny, result["start"], ())
    assert max(differences(result["end"], expected).values()) < 1e-5
    assert max(differences({n: alike[n] for n in projector}, {n: expected[n] for n in projector}).values()) > 1e-3


def plain_groups(path, start, projector) -> dict:
    """Take the steps of PLAN in plain torch, with the named parameters at four times the rate."""
    module = VideoLM(load_vlm(path, "float32"))
    named = {name: parameter for name, parameter in module.named_parameters() if name in start}
    optim = PROJECTOR_OPTIM
    groups = [{"params": [p]} for p in named.values()]
    optimizer = torch.optim.AdamW(groups, 1.0, optim.betas, optim.eps, optim.weight_decay)
    items = responses(Encoder(path, NoiseFrames()), 6)
    for number, shares in enumerate(PLAN):
        batch = collate([items[i] for i in chain.from_iterable(shares)], 0)
        for name, group in zip(named, optimizer.param_groups, strict=True):
            group["lr"] = optim.lr * min(1.0, (number + 1) / 2) * (4.0 if name in projector else 1.0)
        optimizer.zero_grad()
        mean_nll(module, batch).backward()
        optimizer.step()
    return {name: parameter.detach().numpy() for name, parameter in named.items()}


def measure_dropout(path):
    lora = LORA.model_copy(update={"dropout": 0.5})
    roles = [
        RoleSpec("policy", path, lora, plain_optim(), 10),
        RoleSpec("critic", path, Lora(r=2, alpha=1), plain_optim(), 10, "value"),
    ]
    learner = Learner(spec_of(path, roles), NoiseFrames(), torch.device("cpu"))
    items = responses(learner.encoder("policy"), 2)
    learner.step("policy", [(items[0],)], losses.SUPERVISED)
    looks = [np.concatenate(learner.infer("policy", items, "logprobs")) for _ in range(2)]
    layer = learner.roles["critic"].module.causal.model.language_model.layers[0].mlp.up_proj
    forms = {name: (tuple(layer.lora_A[name].weight.shape), layer.scaling[name]) for name in layer.lora_A}
    return {"looks": looks, "forms": forms}


def test_dropout_acts_in_steps_only_and_each_adapter_has_its_own_form(two_ranks, tiny):
    result = two_ranks.run(measure_dropout, path=tiny)[0]
    assert np.array_equal(*result["looks"])
    assert result["forms"] == {"policy": ((4, 128), 2.0), "critic": ((2, 128), 0.5)}


def train_bfloat16(path):
    """Train two adapters on one base in bfloat16; return the metrics of each step, policy and critic in turn."""
    optim = Optim(lr=1e-2, max_grad_norm=1.0)
    roles = [
        RoleSpec("policy", path, LORA, optim, 10),
        RoleSpec("critic", path, LORA, optim, 10, "value"),
        RoleSpec("reference", path),
    ]
    learner = Learner(spec_of(path, roles, dtype="bfloat16"), NoiseFrames(), torch.device("cpu"))
    items = responses(learner.encoder("policy"), 4)
    units = [(items[i],) for i in ([0, 1], [2, 3])[dist.get_rank()]]
    reports = []
    for _ in range(4):
        critic = learner.step("critic", units, losses.critic_objective(Ppo(), None))
        policy = learner.step("policy", units, losses.SUPERVISED)
        reports.append(
            (learner.collectives.gather_metrics(policy.metrics), learner.collectives.gather_metrics(critic.metrics))
        )
    means = []
    for metrics in chain.from_iterable(reports):
        means.append({name: total / count for name, (total, count) in metrics.items()})
    return means


def test_bfloat16_training_lowers_the_loss(two_ranks, tiny):
    metrics = two_ranks.run(train_bfloat16, path=tiny)[0]
    assert metrics[-2]["nll"] < metrics[0]["nll"] - 0.3
    assert metrics[-1]["value_loss"] < metrics[1]["value_loss"] - 0.05


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1]),
        ("cosine", [0.5, 1.0, 1.0, 0.1 + 0.45 * (1 + 0.5**0.5), 0.55, 0.1 + 0.45 * (1 - 0.5**0.5), 0.1, 0.1]),
    ],
)
def test_learning_rate(schedule, rates):
    optim = Optim(lr=2.0, warmup_steps=2, schedule=schedule, min_lr_ratio=0.1)
    result = [learning_rate(optim, step, 6) for step in range(len(rates))]
    assert result == pytest.approx([2.0 * rate for rate in rates])


def seed_rate(step, total, warmup, cosine):
    """Return the rate of transformers' schedules: 0 at first, whole after `warmup` steps, then half a cosine or constant."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) if cosine else 1.0


def test_learning_rates_of_the_seed_system():
    optim = Ppo(preset="vlm_rlaif").optim
    for iterations in (20, 386):
        result = [learning_rate(optim, i, iterations) for i in range(iterations + 1)]
        assert result == pytest.approx([3e-5 * seed_rate(i, iterations, 5, True) for i in range(iterations + 1)])
        assert result[0] == 0 and result[5] == 3e-5 and result[-1] == pytest.approx(0, abs=1e-12)
    optim = Reward(preset="vlm_rlaif").optim
    for steps, warmup in ((2438, 74), (100, 3), (10, 1)):
        result = [learning_rate(optim, i, steps) for i in range(steps)]
        assert result == pytest.approx([2e-5 * seed_rate(i, steps, warmup, False) for i in range(steps)])


def test_init_reward_head_draws_uniform_or_normal_weights():
    weight = torch.empty(1, 400)
    torch.manual_seed(0)
    init_reward_head(weight, "uniform")
    assert weight.abs().max() <= 1 / 20 and weight.abs().max() > 0.9 / 20
    assert float(weight.std()) == pytest.approx(1 / 20 / 3**0.5, rel=0.1)
    init_reward_head(weight, "normal")
    assert float(weight.std()) == pytest.approx(1 / 401, rel=0.1)


def reward_head(path, init):
    learner = Learner(
        spec_of(path, [RoleSpec("reward", path, LORA, plain_optim(), 10, "reward", init)]),
        NoiseFrames(),
        torch.device("cpu"),
    )
    head = learner.roles["reward"].module.heads["reward"]
    return head.weight.detach().clone().numpy(), float(head.bias)


def test_reward_head_starts_as_its_spec_says_on_every_rank(two_ranks, tiny):
    result = {init: two_ranks.run(reward_head, path=tiny, init=init) for init in ("normal", "uniform")}
    for (weight, bias), (other, _) in result.values():
        assert np.array_equal(weight, other) and bias == 0
    assert np.abs(result["uniform"][0][0]).max() > 3 * np.abs(result["normal"][0][0]).max()
    assert np.abs(result["uniform"][0][0]).max() <= 128**-0.5


def test_learning_rate_without_warmup_or_with_nothing_but_warmup():
    assert learning_rate(Optim(lr=1.0, schedule="linear"), 0, 4) == 1.0
    assert learning_rate(Optim(lr=1.0, schedule="cosine", warmup_steps=4), 3, 4) == 1.0


def collective_built() -> bool:
    return deepspeed.comm.comm.cdb.shm_comm_op is not None


def test_deepspeed_does_not_build_its_inference_collective(two_ranks):
    assert two_ranks.run(collective_built) == [False, False]
