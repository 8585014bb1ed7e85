"""The workers of a PPO run: the actors, and what they are built from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import transformers

from actors.frames import FrameClient
from actors.pool import RolloutPool
from actors.reward_pool import RewardPool
from learners.group import LearnerGroup
from learners.spec import LearnerSpec, RoleSpec
from rlaif.config.schema import Config, Lora
from rlaif.config.section import Function
from rlaif.errors import ConfigError
from rlaif.functions import load_function
from rlaif.io.terminal import phase, say
from rlaif.models.check import require_model
from rlaif.models.family import engine_video_of
from rlaif.models.model_dir import ModelDir, same_model
from rlaif.models.reward import check_weights, read_card, require_reward_model
from rlaif.records import Prompt
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.train.parity import Gate
from rlaif.stages.train.weight_sync import WeightSync


@dataclass(frozen=True)
class Workers:
    """The actors that a PPO iteration works with; none of them changes while the run goes on."""

    learners: LearnerGroup
    rollouts: RolloutPool
    rewards: RewardPool
    weight_sync: WeightSync
    frames: FrameClient
    deadline_s: float
    """Seconds that the driver waits for a part of the answers."""

    def with_learners(self, learners: LearnerGroup) -> Workers:
        """Return the same workers with another learner group, whose weights are published from now on."""
        return replace(self, learners=learners, weight_sync=replace(self.weight_sync, learners=learners))


def require_inputs(config: Config) -> None:
    """Raise ConfigError naming the option unless policy, reward, checker and evaluation file exist and load."""
    policy = require_model("ppo.policy", config.ppo.policy, "ppo.lora" if config.ppo.lora else None)
    if config.rollout.vision == "shared":
        engine_video_of(policy.config)
    if isinstance(config.ppo.reward, Function):
        load_function(config.ppo.reward.path)
    else:
        terms = [name for name, value in config.ppo.terms if value]
        check_weights(read_card(config.ppo.reward), config.ppo.reward_weights, terms)
        require_reward_model("ppo.reward", config.ppo.reward)
    if config.eval.checker is not None:
        load_function(config.eval.checker)
    if config.ppo.eval_every and not datasets.data_path(config, config.data.eval).is_file():
        raise ConfigError(
            "data.eval, for ppo.eval_every",
            f"no file {config.data.eval}",
            "Set data.eval to a file, or `ppo.eval_every=0`.",
        )


def enough_prompts(config: Config, prompts: list[Prompt]) -> list[Prompt]:
    """Return the prompts. Raises ConfigError if they do not fill one iteration without repetition."""
    if len(prompts) < config.ppo.prompts_per_iteration:
        raise ConfigError(
            f"ppo.prompts_per_iteration of at most the {len(prompts)} usable prompts",
            f"{config.ppo.prompts_per_iteration}",
            "Lower ppo.prompts_per_iteration, or give more prompts.",
        )
    return prompts


def start_workers(config: Config, run: Run, spec: LearnerSpec) -> Workers:
    """Reserve room for all actors together, then start them.

    Raises PlacementError before anything is loaded if the cluster has no room for all of them.
    """
    topology, ppo = run.topology, config.ppo
    if any(role.name == "critic" for role in spec.roles):
        say(describe_critic_start(config))
    topology.place("learner", "rollout", "reward")
    rollouts = topology.rollouts(ppo.policy, ppo.lora.r if ppo.lora else None)
    rewards = topology.rewards(
        ppo.reward, ppo.tokens_per_microbatch, ppo.reward_weights, timeout_s=ppo.reward_timeout_s
    )
    learners = topology.learners(spec, ppo)
    with phase("waiting for the reward actors"):
        rewards.wait_ready()
    deadline_s = config.cluster.collective_timeout_s
    weight_sync = WeightSync(learners, rollouts, config.rollout, deadline_s)
    return Workers(learners, rollouts, rewards, weight_sync, topology.client(), deadline_s)


def parity_gate(
    config: Config, workers: Workers, prompts: Sequence[Prompt], state: Mapping[str, Any] | None = None
) -> Gate:
    """Return the gate, on the first prompt that both sides can use. `state`: that of the run that is resumed."""
    workers.weight_sync.wait()
    return Gate(
        config.ppo.parity,
        config.model.dtype,
        config.ppo.sampling,
        workers.rollouts,
        workers.learners,
        prompts,
        config.seed,
        workers.deadline_s,
        state,
    )


def learner_spec(config: Config) -> LearnerSpec:
    """Return the roles to train: policy, reference and (for GAE) critic.

    The reference is the policy's start: the bare base if adapters are trained.
    """
    ppo, model = config.ppo, config.model
    steps = ppo.iterations
    if ppo.schedule_per == "step":
        per_epoch = ppo.prompts_per_iteration * ppo.samples_per_prompt // ppo.minibatch_size
        steps *= ppo.epochs * per_epoch
    vision = model.train_vision if ppo.train_vision is None else ppo.train_vision
    projector = model.train_projector if ppo.train_projector is None else ppo.train_projector
    full = {"train_vision": vision, "train_projector": projector}
    roles = [RoleSpec("policy", ppo.policy, ppo.lora, ppo.optim, steps, **full)]
    if ppo.advantage == "gae":
        base, lora, start = critic_start(config)
        roles.append(RoleSpec("critic", base, lora, ppo.critic_optim, steps, "value", start=start, **full))
    roles.append(RoleSpec("reference", ppo.policy))
    return LearnerSpec(
        tuple(roles),
        model,
        config.cluster,
        config.data.max_prompt_tokens,
        config.video.feature_cache_bytes,
        ppo.tokens_per_microbatch,
        ppo.sampling.temperature,
        config.seed,
        config.deterministic,
        config.video,
    )


def critic_start(config: Config) -> tuple[str, Lora | None, str | None]:
    """Return (base, adapter, export to start from) of the critic: the reward model if it fits, else the policy.

    It fits if its base is the policy, by fingerprint: paths differ in spelling, and models are moved and copied.
    """
    ppo = config.ppo
    if ppo.critic_init == "policy" or isinstance(ppo.reward, Function):
        return ppo.policy, ppo.lora, None
    card = read_card(ppo.reward)
    lora = Lora(**card["lora"]) if card["lora"] else None
    # Both adapters or both whole models: adapters of any ranks can share a base, an adapter and a whole model cannot.
    if bool(lora) == bool(ppo.lora) and same_model(card["base"], ppo.policy):
        return ppo.policy, lora, ppo.reward
    if ppo.critic_init == "auto":
        return ppo.policy, ppo.lora, None
    if vocabulary(card["base"]) != vocabulary(ppo.policy):
        raise ConfigError(
            "a critic that reads the policy's tokens",
            f"another vocabulary in {card['base']}",
            "Set ppo.critic_init=policy, or ppo.reward to a reward model of the same family.",
        )
    return card["base"], lora, ppo.reward


def vocabulary(path: str) -> dict[str, int]:
    """Return the token ids of a model's tokenizer, by token."""
    return transformers.AutoTokenizer.from_pretrained(path).get_vocab()


def describe_critic_start(config: Config) -> str:
    """Return one line that says which weights the critic starts from, and why if `ppo.critic_init` leaves that open."""
    base, _, start = critic_start(config)
    if start is not None:
        return f"critic starts from the reward model {start} (base {base})"
    reward = config.ppo.reward
    reason = ""
    if config.ppo.critic_init == "auto":
        reason = ": the reward is a function" if isinstance(reward, Function) else f": {reward} does not fit on it"
    return f"critic starts from the policy {base}{reason}"


def identity(config: Config) -> dict:
    """Return what a checkpoint of this run belongs to."""
    ppo = config.ppo
    critic = None
    if ppo.advantage == "gae":
        base, lora, _ = critic_start(config)
        critic = {"base": ModelDir(base).fingerprint, "lora": lora and lora.model_dump(mode="json")}
    lora = ppo.lora and ppo.lora.model_dump(mode="json")
    found = {"stage": "ppo", "policy": ModelDir(ppo.policy).fingerprint, "lora": lora, "advantage": ppo.advantage}
    return found | {"critic": critic}
