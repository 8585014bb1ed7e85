"""Test a PPO iteration on two ranks: rejected samples, computed values, and the conditions that stop it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import LORA, WORDS, NoiseFrames, answer, cluster, model, plain_optim, weights

from learners.experience import compute_advantages, encode_sample, prepare_experience
from learners.learner import Learner
from learners.ppo import critic_report, train_on
from learners.ppo_state import PpoState
from learners.spec import LearnerSpec, RoleSpec
from rlaif.config.schema import Kl, Ppo
from rlaif.errors import ContractError
from rlaif.models.encode import Encoder
from rlaif.objectives.metrics import mean_metrics
from rlaif.records import Experience, Sample

OPTIM = plain_optim()
PPO = Ppo(
    prompts_per_iteration=3,
    samples_per_prompt=2,
    minibatch_size=6,
    gamma=0.9,
    lam=0.8,
    kl=Kl(coef=0.3, estimator="k3"),
    optim=OPTIM,
    critic_optim=OPTIM,
)
SHARES = {2: ([0, 2, 3, 5], [1, 4]), 1: ([0, 1, 2, 3, 4, 5],)}
"""Samples of each rank; the samples of a prompt are apart."""


def samples_of(encoder) -> list[Sample]:
    """Return two answers each to three prompts, with random log-probs of the engine."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(6):
        ids = [*rng.integers(11, 11 + len(WORDS), rng.integers(2, 9)), encoder.eos_id]
        samples.append(answer(encoder, number, ids, rng.normal(-3.5, 0.2, len(ids))))
    return samples


SCORES = [1.0, -0.5, 2.0, 0.25, -1.0, 0.5]


def build(path, config, total=10) -> Learner:
    roles = [RoleSpec("policy", path, LORA, config.optim, total), RoleSpec("reference", path)]
    if config.advantage == "gae":
        roles.insert(1, RoleSpec("critic", path, LORA, config.critic_optim, total, "value"))
    spec = LearnerSpec(tuple(roles), model(), cluster(), 512, 2**28, 150, seed=5)
    learner = Learner(spec, NoiseFrames(), torch.device("cpu"))
    torch.manual_seed(2)  # the same on every rank
    for name, parameter in learner.roles["policy"].trainable().items():
        if "lora_B" in name:  # away from the reference, so that there is a KL
            parameter.data.normal_(std=0.05)
            parameter._hp_mapping.update_hp() if parameter._hp_mapping else None
    if config.advantage == "gae":
        head = learner.roles["critic"].module.heads["critic"].weight
        head.data.normal_(std=0.05)
        head._hp_mapping.update_hp() if head._hp_mapping else None
    return learner


def mine(learner) -> Experience:
    """Return the own rank's part of the experience."""
    share = SHARES[dist.get_world_size()][dist.get_rank()]
    samples = samples_of(learner.encoder("policy"))
    return Experience(tuple(samples), tuple(SCORES)).part(share)


# -- what the learner refuses


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("frames", {"frames_hash": "0123456789abcdef"}),
        ("visual tokens", {"visual_tokens": 17}),
        ("prompt tokens", {"prompt_ids": np.array([1, 2, 3], np.int32)}),
    ],
)
def test_encode_sample_rejects_samples_of_other_inputs(tiny, what, change):
    encoder = Encoder(tiny, NoiseFrames())
    sample = samples_of(encoder)[3]
    encoded = encode_sample(encoder, sample)
    assert encoded.ids[: encoded.start].tolist() == sample.prompt_ids.tolist()
    assert encoded.ids[encoded.start :].tolist() == sample.response_ids.tolist()
    with pytest.raises(ContractError) as error:
        encode_sample(encoder, replace(sample, **change))
    assert what in error.value.expected and "('p1', 1)" in error.value.expected
    (value,) = change.values()
    engine, learner = error.value.found.split(", learner ")
    assert str(value.tolist() if isinstance(value, np.ndarray) else value) in engine and learner not in engine


# -- advantages and returns


def experience_by_config(path, configs):
    """Return, for each configuration, the outputs of the forwards, the values computed from them, and the report."""
    learner, results = build(path, configs[0]), []
    experience = mine(learner)
    for config in configs:
        state = PpoState.of(config)
        tensors = prepare_experience(learner, experience, config)
        items, report = compute_advantages(learner, state, tensors, config)
        rows = [
            {
                "key": sample.key,
                "engine": sample.logprobs,
                "score": score,
                "reference": tensors.reference[i].numpy(),
                "critic": tensors.values[i].numpy(),
                "report": report[i],
                **item.extras,
            }
            for i, (sample, score, item) in enumerate(zip(experience.samples, experience.scores, items, strict=True))
        ]
        results.append((rows, state.state_dict(), learner.infer("policy", tensors.encoded, "logprobs")))
    return results


CONFIGS = {
    "gae": PPO,
    "gae from the learner's log-probs, k1, not whitened": PPO.model_copy(
        update={"old_logprobs": "learner", "kl": Kl(coef=0.3, estimator="k1"), "whiten_advantages": False}
    ),
    "leave one out": PPO.model_copy(update={"advantage": "leave_one_out", "whiten_advantages": False}),
}


@pytest.fixture(scope="module")
def experienced(two_ranks, tiny):
    """Return by configuration (all rows of both ranks, states, log-probs of the learner by key)."""
    ranks = two_ranks.run(experience_by_config, path=tiny, configs=list(CONFIGS.values()))
    results = {}
    for number, name in enumerate(CONFIGS):
        rows, own = [], []
        for rank in ranks:
            rows += rank[number][0]
            own += rank[number][2]
        results[name] = (
            rows,
            [rank[number][1] for rank in ranks],
            dict(zip((row["key"] for row in rows), own, strict=True)),
        )
    return results


def by_hand(row, old, config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (advantages before whitening, returns, per-token KL) of one answer, in float64."""
    count = len(row["engine"])
    old, reference, values = (np.asarray(x[:count], np.float64) for x in (old, row["reference"], row["critic"]))
    gap = reference - old
    kl = np.exp(gap) - 1 - gap if config.kl.estimator == "k3" else -gap
    rewards = -config.kl.coef * kl
    rewards[-1] += row["score"]
    advantages, ahead = np.zeros(count), 0.0
    for t in reversed(range(count)):
        following = values[t + 1] if t + 1 < count else 0.0
        ahead = rewards[t] + config.gamma * following - values[t] + config.gamma * config.lam * ahead
        advantages[t] = ahead
    return advantages, advantages + values, kl


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("gae")])
def test_advantages_and_returns_match_a_loop_in_float64(experienced, name):
    config, (rows, states, own) = CONFIGS[name], experienced[name]
    assert sorted(row["key"] for row in rows) == [(f"p{i}", j) for i, j in product(range(3), range(2))]
    from_learner = config.old_logprobs == "learner"
    old = {row["key"]: own[row["key"]] if from_learner else row["engine"] for row in rows}
    expected = {row["key"]: by_hand(row, old[row["key"]], config) for row in rows}
    flat = np.concatenate([advantages for advantages, _, _ in expected.values()])
    for row in rows:
        advantages, returns, _ = expected[row["key"]]
        if config.whiten_advantages:
            advantages = (advantages - flat.mean()) / np.sqrt(flat.var() + 1e-8)
        assert np.abs(row["advantages"] - advantages).max() < 1e-4
        assert np.abs(row["returns"] - returns).max() < 1e-4
        assert np.abs(row["old_logprobs"] - old[row["key"]]).max() < 1e-6
        ratio = np.exp(own[row["key"]] - row["engine"]) if from_learner else np.ones(len(advantages))
        assert np.abs(row["importance"] / ratio - 1).max() < 1e-4
        drift = (old[row["key"]] - row["reference"][: len(advantages)]).sum()
        assert row["report"]["kl"] == pytest.approx(drift, abs=1e-4) and abs(drift) > 0.01
        assert row["report"]["advantage_mean"] == pytest.approx(advantages.mean(), abs=1e-4)
    returns = np.concatenate([returns for _, returns, _ in expected.values()])
    for state in states:  # the running scale has seen every rank's returns
        assert state["returns"]["count"] == len(returns)
        assert state["returns"]["mean"] == pytest.approx(returns.mean(), abs=1e-5)


def test_leave_one_out_uses_samples_of_all_ranks(experienced):
    rows, _, _ = experienced["leave one out"]
    config = CONFIGS["leave one out"]
    totals = {row["key"]: row["score"] - config.kl.coef * by_hand(row, row["engine"], config)[2].sum() for row in rows}
    for row in rows:
        prompt, index = row["key"]
        expected = totals[row["key"]] - totals[(prompt, 1 - index)]
        assert np.abs(row["advantages"] - expected).max() < 1e-4 and len(row["advantages"]) == len(row["engine"])
        assert np.array_equal(row["advantages"], row["returns"])


# -- the update


def iterate(path, config, iterations=1):
    """Run iterations; return weights before and after each, metrics over the ranks, reports and state."""
    learner, state = build(path, config), PpoState.of(config)
    names = [name for name in ("policy", "critic") if name in learner.roles]
    results = [{"weights": {name: weights(learner.roles[name]) for name in names}}]
    for _ in range(iterations):
        metrics, report = train_on(learner, state, mine(learner), config, seed=1)
        gathered = learner.collectives.gather_metrics(metrics)
        results.append(
            {
                "weights": {name: weights(learner.roles[name]) for name in names},
                "steps": {name: learner.roles[name].steps for name in names},
                "metrics": mean_metrics(gathered) | critic_report(gathered),
                "report": report,
                "state": state.state_dict(),
            }
        )
    return results


def moved(before, after, role) -> float:
    return max(
        float(np.abs(after["weights"][role][name] - value).max()) for name, value in before["weights"][role].items()
    )


@pytest.fixture(scope="module")
def plain_iteration(two_ranks, tiny):
    return two_ranks.run(iterate, path=tiny, config=PPO)[0]


def test_two_ranks_train_like_one(plain_iteration, one_rank, tiny):
    before, two = plain_iteration
    _, one = one_rank.run(iterate, path=tiny, config=PPO)[0]
    for role in ("policy", "critic"):
        assert moved(before, two, role) > 1e-2
        assert moved(one, two, role) < 1e-5
    untimed = [name for name in two["metrics"] if not name.startswith(("time/", "waste/"))]
    expected = {name: one["metrics"][name] for name in untimed}
    assert {name: two["metrics"][name] for name in untimed} == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert two["state"]["returns"] == pytest.approx(one["state"]["returns"])


def test_iteration_reports_metrics_of_policy_critic_and_time(plain_iteration):
    _, after = plain_iteration
    assert after["steps"] == {"policy": 1, "critic": 1}
    metrics = after["metrics"]
    expected = (
        "policy_loss",
        "approx_kl",
        "clip_fraction",
        "entropy",
        "ratio",
        "ratio_min",
        "ratio_max",
        "grad_norm",
        "lr",
    )
    assert {f"policy/{name}" for name in expected} <= metrics.keys()
    assert {
        "critic/value_loss",
        "critic/explained_variance",
        "critic/error_rms",
        "critic/mean_baseline_rms",
        "kl/coef",
        "time/policy",
        "time/experience",
    } <= metrics.keys()
    assert metrics["policy/lr"] == OPTIM.lr and metrics["kl/coef"] == 0.3
    assert len(after["report"]) == len(SHARES[2][0])


def test_an_iteration_stops_when_the_policy_has_moved_enough(two_ranks, tiny):
    config = PPO.model_copy(update={"epochs": 3, "minibatch_size": 2})
    _, after = two_ranks.run(iterate, path=tiny, config=config)[0]
    assert after["steps"] == {"policy": 9, "critic": 9} and "policy/early_stop" not in after["metrics"]
    for rank in two_ranks.run(iterate, path=tiny, config=config.model_copy(update={"target_kl": 1e-6})):
        assert rank[1]["steps"] == {"policy": 1, "critic": 1} and rank[1]["metrics"]["policy/early_stop"] == 1.0


def test_critic_warmup_leaves_the_policy_unchanged(two_ranks, tiny):
    config = PPO.model_copy(
        update={"critic_warmup": 1, "kl": Kl(coef=0.3, controller="adaptive", target=0.1, horizon=60)}
    )
    start, first, second = two_ranks.run(iterate, path=tiny, config=config, iterations=2)[0]
    assert moved(start, first, "policy") == 0.0 and moved(start, first, "critic") > 1e-2
    assert moved(first, second, "policy") > 1e-3 and moved(first, second, "critic") > 1e-2
    assert [first["state"]["iteration"], second["state"]["iteration"]] == [1, 2]
    # six samples of a horizon of sixty, far off the target: each iteration changes it by a tenth of a fifth
    assert abs(first["state"]["kl"]["value"] / 0.3 - 1) == pytest.approx(0.02)


def test_ppo_state_survives_json():
    config = PPO.model_copy(update={"kl": Kl(coef=0.3, controller="adaptive")})
    state = PpoState.of(config)
    state.iteration, state.kl.value, state.returns.count, state.returns.m2 = 7, 0.123456789, 3.0, 2.5
    again = PpoState.of(config)
    again.load_state_dict(json.loads(json.dumps(state.state_dict())))
    assert again.state_dict() == state.state_dict() != PpoState.of(config).state_dict()
    assert (again.iteration, again.kl.value, again.returns.scale) == (7, 0.123456789, (2.5 / 3) ** 0.5)
