"""The seed system's PPO, slot by slot: what two ranks compute under `ppo.preset: vlm_rlaif` against plain loops.

The other side uses none of this project's objectives: one module per network, one sample at a time, every answer
padded to its full length with tokens that nothing attends to, numpy loops for rewards and advantages, torch only for
forwards, gradients and AdamW. Formulas: docs/presets.md.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import LORA, NoiseFrames, weights
from test_ppo import SCORES, SHARES, build, experience_by_config, samples_of

from learners import losses
from learners.ppo import train_on
from learners.ppo_state import PpoState
from rlaif.config.schema import Ppo
from rlaif.models.encode import Encoder
from rlaif.models.vlm import VideoLM, load_vlm
from rlaif.objectives.rewards import shaped_score
from rlaif.records import Experience

SLOTS, ITERATIONS, ITERATION = 8, 12, 3
RATES = {"policy": 0.3, "critic": 0.013}  # the critic's keeps part of its values within the clip for all four steps
SMALL = {"prompts_per_iteration": 3, "samples_per_prompt": 2, "minibatch_size": 3, "iterations": ITERATIONS}
PRESET = Ppo(
    preset="vlm_rlaif",
    **SMALL,
    sampling={"max_tokens": SLOTS},
    # a large eps, so that a step is about the rate times the gradient: a gradient that is wrong by a factor shows
    optim={"lr": RATES["policy"], "eps": 1.0},
    critic_optim={"lr": RATES["critic"], "eps": 1.0},
)
LENGTHS = [8, 3, 5, 7, 4, 6]
ENDS = ["length", "stop", "cut", "stop", "stop", "cut"]


def answers_of(encoder) -> list:
    """Return six answers that leave 0 to 5 slots empty; three of them did not end by themselves."""
    return [
        replace(sample, response_ids=sample.response_ids[:count], logprobs=sample.logprobs[:count], finish_reason=end)
        for sample, count, end in zip(samples_of(encoder), LENGTHS, ENDS, strict=True)
    ]


# -- on the ranks


def one_iteration(path, config):
    """Return the results of one iteration: by step and role the samples' extras and the metrics; weights before and after."""
    learner, state = build(path, config, ITERATIONS), PpoState.of(config)
    state.iteration = ITERATION
    start = {role: weights(learner.roles[role]) for role in ("policy", "critic")}
    everyone, share = answers_of(learner.encoder("policy")), SHARES[dist.get_world_size()][dist.get_rank()]
    scores = [
        shaped_score(
            SCORES[i],
            {"model": SCORES[i]},
            everyone[i].finish_reason,
            len(everyone[i].response_ids),
            SLOTS,
            config.terms,
        )
        for i in share
    ]
    numbers = {tuple(sample.response_ids.tolist()): i for i, sample in enumerate(everyone)}
    steps, usual = [], learner.step

    def step(role, units, *args):
        report = usual(role, units, *args)
        texts = [tuple(item.ids[item.start : len(item.ids) - item.padding].tolist()) for (item,) in units]
        extras = {numbers[text]: item.extras for text, (item,) in zip(texts, units, strict=True)}
        steps.append({"role": role, "extras": extras, "metrics": report.metrics})
        return report

    learner.step = step
    own = Experience(tuple(everyone[i] for i in share), tuple(score.value for score in scores))
    train_on(learner, state, own, config, seed=1)
    end = {role: weights(learner.roles[role]) for role in ("policy", "critic")}
    return {"start": start, "steps": steps, "end": end, "scale": state.returns.scale}


# -- the other side


def plain(path, role, start) -> VideoLM:
    module = VideoLM(load_vlm(path, "float32"), ["critic"] if role == "critic" else [], {role: LORA})
    module.load_state_dict({name: torch.from_numpy(value) for name, value in start.items()}, strict=False)
    return module.eval()


def hidden(module, encoder, sample):
    """Return [SLOTS, H]: the state from which each slot is predicted, one position before it, with all padding present."""
    features = encoder.video(sample.prompt.video)
    item = encoder.prompt_and_response(sample.prompt.question, sample.response_ids, features)
    rest = SLOTS - len(sample.response_ids)
    ids = [*item.ids.tolist(), *[encoder.tokenizer.pad_token_id] * rest]
    positions = np.concatenate([item.positions, np.repeat(item.positions[:, -1:], rest, axis=1)], axis=1)
    out = module.causal.model(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.tensor([[1] * len(item.ids) + [0] * rest]),
        position_ids=torch.from_numpy(positions)[:, None],
        use_cache=False,
        **{name: torch.from_numpy(x) for name, x in features.tensors.items()},
    )
    return out.last_hidden_state[0, item.start - 1 : item.start - 1 + SLOTS]


def logps(module, encoder, sample):
    """Return [SLOTS] log-probs, 0 after the answer."""
    logits = module.causal.lm_head(hidden(module, encoder, sample))
    logits[:, list(encoder.banned_ids)] = -math.inf
    every = logits.log_softmax(-1)
    token_logps = [every[t, int(token)] for t, token in enumerate(sample.response_ids)]
    return torch.stack(token_logps + [torch.zeros(())] * (SLOTS - len(token_logps)))


def values(module, encoder, sample):
    """Return [SLOTS] predictions, those after the answer's end included."""
    head = module.heads["critic"]
    return hidden(module, encoder, sample) @ head.weight[0] + head.bias


def rewards_by_loops(old, ref, score, length) -> list[float]:
    rewards = []
    for t in range(SLOTS):
        reward = -0.1 * max(0.0, old[t] - ref[t]) if t < length else 0.0
        reward += score if t == SLOTS - 1 else 0.0
        rewards.append(10.0 * reward)
    return rewards


def whitened_by_loops(rows, divisor) -> list[list[float]]:
    flat = list(chain.from_iterable(rows))
    mean = sum(flat) / len(flat)
    var = sum((x - mean) ** 2 for x in flat) / len(flat)
    whitened = []
    for row in rows:
        whitened.append([(x - mean) / divisor(var) for x in row])
    return whitened


def released(var: float) -> float:
    """Return the divisor of the released code."""
    return math.sqrt(var) + 1e-8


def modern(var: float) -> float:
    return math.sqrt(var + 1e-8)


def rate_by_hand(iteration: int) -> float:
    """Return the factor of transformers' cosine schedule with warm-up, stepped after each iteration."""
    if iteration < 5:
        return iteration / 5
    return 0.5 * (1 + math.cos(math.pi * (iteration - 5) / (ITERATIONS - 5)))


class Replica:
    """The whole iteration, recomputed with plain loops."""

    def __init__(self, path, start):
        self.encoder = Encoder(path, NoiseFrames())
        self.samples = answers_of(self.encoder)
        self.modules = {role: plain(path, role, start[role]) for role in ("policy", "critic")}
        self.trained, self.optimizers = {}, {}
        for role, module in self.modules.items():
            parameters = {name: p for name, p in module.named_parameters() if name in start[role]}
            self.trained[role] = parameters
            # eps is 1, so that a step is nearly proportional to the gradient and a wrong factor in it shows
            self.optimizers[role] = torch.optim.AdamW(parameters.values(), 1.0, (0.9, 0.999), 1.0, 0.0)
        base = VideoLM(load_vlm(path, "float32")).eval()
        with torch.no_grad():
            self.old = [logps(self.modules["policy"], self.encoder, s).tolist() for s in self.samples]
            ref = [logps(base, self.encoder, s).tolist() for s in self.samples]
            self.old_values = [values(self.modules["critic"], self.encoder, s).tolist() for s in self.samples]
        self.returns, advantages = [], []
        for i, sample in enumerate(self.samples):
            length = len(sample.response_ids)
            score = SCORES[i] + (0.0 if ENDS[i] == "stop" else -8.0) - 10.0 * length / SLOTS
            rewards = rewards_by_loops(self.old[i], ref[i], score, length)
            to_go = [sum(rewards[t:]) for t in range(SLOTS)]  # gamma and lambda 1
            self.returns.append(to_go)
            advantages.append([to_go[t] - self.old_values[i][t] for t in range(SLOTS)])
        self.advantages = whitened_by_loops(advantages, released)

    def loss(self, role, samples):
        """Return (the minimised loss, the reported loss): a mean over samples and all slots."""
        each = []
        for i in samples:
            forward = values if role == "critic" else logps
            now = forward(self.modules[role], self.encoder, self.samples[i])
            for t in range(SLOTS):
                if role == "critic":
                    old, goal = self.old_values[i][t], self.returns[i][t]
                    near = now[t].clamp(old - 0.2, old + 0.2)
                    each.append(0.5 * torch.maximum((now[t] - goal) ** 2, (near - goal) ** 2))
                else:
                    a, ratio = self.advantages[i][t], torch.exp(now[t] - self.old[i][t])
                    each.append(torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.2)))
        mean = sum(each) / (len(samples) * SLOTS)
        return (0.1 if role == "critic" else 1.0) * mean, mean.item()

    def step(self, role, samples) -> tuple[float, float]:
        """Take one optimizer step; return (reported loss, gradient norm before clipping)."""
        self.optimizers[role].zero_grad()
        loss, reported = self.loss(role, samples)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained[role].values(), 1.0)
        self.optimizers[role].param_groups[0]["lr"] = RATES[role] * rate_by_hand(ITERATION)
        self.optimizers[role].step()
        return reported, float(norm)


@pytest.fixture(scope="module")
def ranks(two_ranks, tiny):
    return two_ranks.run(one_iteration, path=tiny, config=PRESET)


@pytest.fixture(scope="module")
def replica(ranks, tiny):
    return Replica(tiny, ranks[0]["start"])


def test_returns_values_and_whitened_advantages_of_every_slot(ranks, replica):
    extras_by_sample = {}
    for rank in ranks:
        for step in rank["steps"]:
            extras_by_sample |= step["extras"]
    assert sorted(extras_by_sample) == list(range(6))
    beyond = 0
    for i, extras in extras_by_sample.items():
        assert len(extras["returns"]) == len(extras["advantages"]) == SLOTS
        assert np.allclose(extras["old_logprobs"], replica.old[i], atol=1e-4)
        assert np.allclose(extras["values"], replica.old_values[i], atol=1e-4)
        assert np.allclose(extras["returns"], replica.returns[i], atol=1e-3)
        assert np.allclose(extras["advantages"], replica.advantages[i], atol=1e-4)
        padding = extras["values"][len(replica.samples[i].response_ids) + 1 :]
        beyond += len(padding)
        assert np.ptp(padding) == 0 if len(padding) else True
        assert (np.abs(padding) > 1e-3).all()  # the critic predicts something there
    assert beyond == 4 + 2 + 3 + 1


def test_four_steps_train_what_the_formulas_say(ranks, replica):
    """Compare losses, gradient norms and weights of policy and critic over two epochs of two mini-batches."""
    assert [step["role"] for step in ranks[0]["steps"]] == ["critic", "policy"] * 4
    ratios_moved, gradients_cut, values_cut = 0, 0, 0
    for number, step in enumerate(ranks[0]["steps"]):
        role = step["role"]
        samples = sorted(chain.from_iterable(rank["steps"][number]["extras"] for rank in ranks))
        assert len(samples) == 3
        loss, norm = replica.step(role, samples)
        name = "value_loss" if role == "critic" else "policy_loss"
        parts = [rank["steps"][number]["metrics"][name] for rank in ranks]
        total, count = sum(part[0] for part in parts), sum(part[1] for part in parts)
        assert count == 3 * SLOTS
        assert total / count == pytest.approx(loss, rel=1e-4, abs=1e-4)
        assert step["metrics"]["grad_norm"][0] == pytest.approx(norm, rel=1e-3)
        assert step["metrics"]["lr"][0] == pytest.approx(RATES[role] * 3 / 5)
        ratios_moved += role == "policy" and step["metrics"]["ratio_max"][0] > 1.2
        gradients_cut += norm > 1.0
        values_cut += 0 < step["metrics"].get("value_clip_fraction", (0, 0))[0] < 2 * SLOTS
    assert ratios_moved and gradients_cut and values_cut  # every clip took part
    for role in ("policy", "critic"):
        for name, expected in replica.trained[role].items():
            result, began = ranks[0]["end"][role][name], ranks[0]["start"][role][name]
            moved, off = np.abs(result - began).max(), np.abs(result - expected.detach().numpy()).max()
            assert moved > 0 and off < 1e-7 + 1e-3 * moved, name


def test_running_scale_is_large_enough_to_show_in_the_value_losses(ranks):
    """Check that the running scale is so large that its use would show in the losses above."""
    assert ranks[0]["scale"] > 10


# -- each switch alone

SWITCHES = {
    "score in the last slot only": {"score_slot": "last_slot", "lam": 0.9},
    "means over slots only": {"loss_mean": "slots", "lam": 0.9},
    "both, discounted": {"score_slot": "last_slot", "loss_mean": "slots", "gamma": 0.9, "lam": 0.8},
    "whitened rewards over tokens": {"whiten_rewards": True, "reward_scale": 7.0},
    "whitened rewards over slots": {"whiten_rewards": True, "score_slot": "last_slot"},
    "scaled rewards and a clamped k1": {"reward_scale": 3.0, "kl": {"coef": 0.4, "clamp": True}},
    "k3": {"kl": {"coef": 0.4, "estimator": "k3", "clamp": True}, "score_slot": "last_slot"},
}
CONFIGS = {name: Ppo(**SMALL, sampling={"max_tokens": 11}, **change) for name, change in SWITCHES.items()}


@pytest.fixture(scope="module")
def switched(two_ranks, tiny):
    result = two_ranks.run(experience_by_config, path=tiny, configs=list(CONFIGS.values()))
    return {name: rows_of_ranks(result, number) for number, name in enumerate(CONFIGS)}


def rows_of_ranks(result, number: int = 0) -> list[dict]:
    """Return the rows of all ranks for one of the configurations given to `experience_by_config`."""
    rows = []
    for rank in result:
        rows += rank[number][0]
    return rows


def gae_by_loops(rewards, values, gamma, lam) -> list[float]:
    """Return sum over l of (gamma lam)^l delta_{t + l}, with nothing after the last slot."""
    count = len(rewards)
    ahead = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * ahead[t] - values[t] for t in range(count)]
    advantages = []
    for t in range(count):
        advantages.append(sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, count)))
    return advantages


def every_slot(row, config):
    """Return (rewards before whitening, values) of an answer over the slots in which rewards count."""
    length, slots = len(row["engine"]), 11
    span = slots if config.score_slot == "last_slot" else length
    rewards = []
    for t in range(span):
        gap = float(row["engine"][t]) - float(row["reference"][t]) if t < length else 0.0
        kl = math.exp(-gap) - 1 + gap if config.kl.estimator == "k3" else gap
        kl = max(0.0, kl) if config.kl.clamp else kl
        rewards.append(-config.kl.coef * kl + (row["score"] if t == span - 1 else 0.0))
    return rewards, [float(v) for v in row["critic"][:span]]


@pytest.mark.parametrize("name", list(SWITCHES))
def test_each_preset_switch_alone_matches_plain_loops(switched, name):
    config, rows = CONFIGS[name], switched[name]
    shaped = [every_slot(row, config) for row in rows]
    offset, scale = 0.0, config.reward_scale
    if config.whiten_rewards:
        flat = list(chain.from_iterable(rewards for rewards, _ in shaped))
        offset = sum(flat) / len(flat)
        scale = 1 / math.sqrt(sum((r - offset) ** 2 for r in flat) / len(flat) + 1e-8)
    advantages, returns = [], []
    for rewards, values in shaped:
        # whitening divides by the deviation around the mean, and keeps the mean
        rewards = [(r - offset) * scale + offset for r in rewards]
        advantages.append(gae_by_loops(rewards, values, config.gamma, config.lam))
        returns.append([a + b for a, b in zip(advantages[-1], values, strict=True)])
    widths = [11 if config.loss_mean == "slots" else len(row["engine"]) for row in rows]

    def resized(values):
        return [[*row, *[0.0] * 11][:width] for row, width in zip(values, widths, strict=True)]

    for row, a, r in zip(rows, whitened_by_loops(resized(advantages), modern), resized(returns), strict=True):
        assert np.allclose(row["advantages"], a, atol=2e-4) and np.allclose(row["returns"], r, atol=1e-3)
        assert len(row["advantages"]) == len(a)


# -- without a critic, and with weights

GROUPS = Ppo(
    **SMALL,
    sampling={"max_tokens": 11},
    advantage="leave_one_out",
    loss_mean="slots",
    reward_scale=3.0,
    kl={"coef": 0.4, "clamp": True},
)


def test_leave_one_out_with_scaled_rewards_and_means_over_slots(two_ranks, tiny):
    rows = rows_of_ranks(two_ranks.run(experience_by_config, path=tiny, configs=[GROUPS]))
    totals = {}
    for row in rows:
        gaps = [float(row["engine"][t]) - float(row["reference"][t]) for t in range(len(row["engine"]))]
        totals[row["key"]] = 3.0 * (row["score"] - 0.4 * sum(max(0.0, gap) for gap in gaps))
    expected = []
    for row in rows:
        (prompt, index), length = row["key"], len(row["engine"])
        expected.append([totals[row["key"]] - totals[(prompt, 1 - index)]] * length + [0.0] * (11 - length))
    for row, plain_row, advantages in zip(rows, expected, whitened_by_loops(expected, modern), strict=True):
        assert np.allclose(row["returns"], plain_row, atol=1e-3)  # whitening would hide a wrong scale
        assert np.allclose(row["advantages"], advantages, atol=1e-4)
        assert len(row["old_logprobs"]) == 11 and not row["old_logprobs"][len(row["engine"]) :].any()


SMALL_SPREAD = {"advantage": "leave_one_out", "score_slot": "last_token", "reward_scale": 1e-5, "kl": {"coef": 0.0}}


@pytest.mark.parametrize(("preset", "divisor"), [("vlm_rlaif", released), ("modern", modern)])
def test_a_small_spread_is_whitened_as_the_released_code_does(two_ranks, tiny, preset, divisor):
    """Use advantages of about 1e-5, which tell std + 1e-8 from sqrt(var + 1e-8); those above are far too large for that."""
    slots = {"loss_mean": "slots", "sampling": {"max_tokens": 11}}
    config = Ppo(**SMALL, preset=preset, **slots, **SMALL_SPREAD)
    rows = rows_of_ranks(two_ranks.run(experience_by_config, path=tiny, configs=[config]))
    for row, expected in zip(rows, whitened_by_loops([row["returns"].tolist() for row in rows], divisor), strict=True):
        assert np.allclose(row["advantages"], expected, rtol=1e-3, atol=1e-6)
    spread = float(np.std(np.concatenate([row["returns"] for row in rows])))
    assert 0 < spread < 1e-4 and modern(spread**2) > 1.2 * released(spread**2)


@pytest.mark.parametrize("cap", [2.0, 1.1])
def test_importance_weights_are_cut_at_the_cap(cap):
    ones, weight = torch.ones(1, 2), torch.tensor([[0.5, 1.5]])
    extras = {"old_logprobs": -ones, "advantages": ones, "importance": weight, "after_video": torch.ones(1)}
    batch = SimpleNamespace(mask=ones, extras=extras)
    loss = losses.policy_objective(Ppo(importance_cap=cap), truncated_importance=True).loss
    result = loss({"logprobs": -ones, "entropy": ones}, batch, 2.0)
    assert result.loss.item() == pytest.approx(-(0.5 + min(1.5, cap)) / 2)
