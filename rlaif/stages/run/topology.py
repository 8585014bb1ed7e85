"""The actors of a run: placed once, started when a stage first needs them, kept for the stages after it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import ray
import transformers

from actors.engine import EngineSpec
from actors.feature_store import start_feature_store
from actors.features import FeatureClient
from actors.frames import FrameClient, start_frame_store
from actors.pool import RolloutPool
from actors.reward_pool import RewardPool, start_reward_pool
from actors.rollout import start_rollout
from cluster.placement import Placement, place, remove
from cluster.remote import ask
from cluster.session import Session
from learners.group import LearnerGroup
from learners.spec import LearnerSpec
from rlaif.config.schema import Config, Ppo
from rlaif.config.section import Function
from rlaif.io.storage import locate
from rlaif.io.terminal import phase
from rlaif.models.model_dir import ModelDir, same_model


class Topology:
    """What runs where. Every stage asks for the actors it needs; what already runs with the same settings is reused."""

    def __init__(self, config: Config, session: Session):
        self.config, self.session = config, session
        self._placements: dict[str, Placement] = {}
        self._store: Any = None
        self._client: FrameClient | None = None
        self._features: Any = None
        self._rollouts: dict[tuple, RolloutPool] = {}
        self._group: LearnerGroup | None = None
        self._rewards: RewardPool | None = None

    @property
    def _timeout_s(self) -> float:
        return self.config.cluster.collective_timeout_s

    def device(self, role: str) -> str:
        """What a role computes on: a role that reserves no GPU does not touch one."""
        gpus = getattr(self.config.cluster, role).gpus
        return "cuda" if gpus > 0 and self.config.model.device != "cpu" else "cpu"

    def place(self, *roles: str) -> None:
        """Reserve what the roles need, all together, before anything is started."""
        missing = [role for role in roles if role not in self._placements]
        if missing:
            requests = {role: getattr(self.config.cluster, role) for role in missing}
            self._placements |= place(
                requests, self.config.cluster.deadline_s, can_grow=False if self.session.owned else None
            )

    def frames(self) -> partial:
        """A function that builds a frames client, inside any actor or here."""
        if self._store is None:
            video = self.config.video
            self._store = start_frame_store(
                num_frames=video.num_frames,
                height=video.height,
                width=video.width,
                processor=f"transformers-{transformers.__version__}",
                store_bytes=video.store_bytes,
                threads=video.decode_threads,
                decode_timeout_s=video.decode_timeout_s,
                known=known_videos(self.config),
                options={"name": "frames", "get_if_exists": True},
            )
        # a request may wait for others before its own decode begins
        timeout_s = max(600.0, 2 * self.config.video.decode_timeout_s)
        return partial(FrameClient, self._store, self.config.data.root, timeout_s=timeout_s)

    def features(self) -> partial:
        """A function that builds a client of the feature store, inside any actor."""
        if self._features is None:
            options = {"name": "features", "get_if_exists": True}
            self._features = start_feature_store(self.config.video.feature_store_bytes, options)
        return partial(FeatureClient, self._features, share=not self.config.deterministic)

    def client(self) -> FrameClient:
        """A frames client for the driver."""
        if self._client is None:
            self._client = self.frames()()
        return self._client

    def learners(self, spec: LearnerSpec, ppo: Ppo | None = None) -> LearnerGroup:
        """A new learner group; the one before it is stopped."""
        self.stop_learners()
        self.place("learner")
        features = self.features()
        ask(self._features.begin.remote(), self._timeout_s, "the feature store")
        options, device = self._options("learner"), self.device("learner")
        with phase(f"starting {_counted(len(options), 'learner rank')}"):
            self._group = LearnerGroup(spec, self.frames(), options, device, ppo, features)
        return self._group

    def stop_learners(self) -> None:
        if self._group is not None:
            self._group.stop()
            self._group = None

    def rollouts(self, model_path: str, lora_rank: int | None) -> RolloutPool:
        """The rollout pool that serves `model_path`; adapters of rank `lora_rank` or full weights can be published to it."""
        key = (model_path, lora_rank)
        if key not in self._rollouts:
            self.stop_rollouts()
            self.place("rollout")
            role, limit = self.config.cluster.rollout, self.config.data.max_prompt_tokens
            spec = EngineSpec(
                model_path,
                self.config.model.dtype,
                lora_rank,
                self.config.rollout,
                lora_targets=self.config.ppo.lora.targets if lora_rank is not None and self.config.ppo.lora else None,
                deterministic=self.config.deterministic,
            )
            device, features = self.device("rollout"), self.features()
            with phase(f"starting {_counted(role.actors, 'rollout actor')}"):
                actors = {
                    f"rollout-{i}": start_rollout(spec, self.frames(), device, role.threads, options, limit, features)
                    for i, options in enumerate(self._options("rollout"))
                }
                ask([actor.version.remote() for actor in actors.values()], self._timeout_s, "the rollout actors")
            self._rollouts[key] = RolloutPool(actors)
        return self._rollouts[key]

    def engines(self, model_path: str) -> RolloutPool:
        """The pool that serves a model as it stands, for answers that nobody learns from: the policy's own, which PPO goes on
        with, where it is the policy. Room for adapters only where the family has any: PPO refuses `ppo.lora` for others.
        """
        lora, policy = self.config.ppo.lora, self.config.ppo.policy
        if lora and same_model(model_path, policy) and ModelDir(model_path).family.adapters:
            return self.rollouts(policy, lora.r)
        return self.rollouts(model_path, None)

    def stop_rollouts(self) -> None:
        for pool in self._rollouts.values():
            for name in pool.fleet.names:
                ray.kill(pool.fleet.remove(name))
        self._rollouts.clear()

    def rewards(
        self,
        reward: str | Function,
        tokens_per_microbatch: int,
        weights: Mapping[str, float] | None = None,
        *,
        timeout_s: float,
    ) -> RewardPool:
        """A new reward pool; the one before it is stopped.

        Args:
            weights: of a reward model's dimensions.
            timeout_s: how long an actor may take for one batch.
        """
        self.stop_rewards()
        self.place("reward")
        self._rewards = start_reward_pool(
            self._options("reward"),
            self.config.cluster.reward.threads,
            self.device("reward"),
            timeout_s=timeout_s,
            loading_timeout_s=self._timeout_s,
            reward=reward if isinstance(reward, str) else reward.model_dump(),
            make_frames=self.frames(),
            model=self.config.model,
            tokens_per_microbatch=tokens_per_microbatch,
            weights=weights,
            cache_bytes=self.config.video.feature_cache_bytes,
            make_features=self.features(),
        )
        return self._rewards

    def stop_rewards(self) -> None:
        if self._rewards is not None:
            self._rewards.stop()
            self._rewards = None

    def frame_counters(self) -> dict[str, float]:
        """Decodes, re-decodes, hits and bytes of the frame store."""
        return {f"frames/{name}": float(value) for name, value in self.client().counters().items()}

    def feature_counters(self) -> dict[str, float]:
        """Passes through vision towers in all processes, since the learners were started."""
        counters = ask(self._features.counters.remote(), self._timeout_s, "the feature store")
        return {f"vision/{name}": float(value) for name, value in counters.items()}

    def peak_memory(self) -> dict[str, float]:
        """Largest resident bytes that a process of each role has had so far."""
        groups = {"frames": [self._store] if self._store is not None else []}
        groups["learner"] = self._group.ranks if self._group else []
        groups["reward"] = self._rewards.handles if self._rewards else []
        groups["rollout"] = [actor for pool in self._rollouts.values() for actor in pool.fleet.handles.values()]
        peaks = {
            role: ask([actor.__ray_call__.remote(_peak_rss) for actor in actors], self._timeout_s, role)
            for role, actors in groups.items()
        }
        return {role: max(found) for role, found in peaks.items() if found}

    def stop(self) -> None:
        """Stop every actor and give back all room."""
        self.stop_learners()
        self.stop_rewards()
        self.stop_rollouts()
        if self._store is not None:
            ray.kill(self._store)
            self._store = self._client = None
        if self._features is not None:
            ray.kill(self._features)
            self._features = None
        remove(self._placements)
        self._placements = {}

    def _options(self, role: str) -> list[dict]:
        placement = self._placements[role]
        return [placement.options(i) for i in range(getattr(self.config.cluster, role).actors)]


def known_videos(config: Config) -> str:
    """Return the folder in which what is learned about videos is kept: one for all runs, or per node beside a bucket."""
    storage = locate(config.storage).local
    return str(storage / ".cache" / "videos") if storage else "~/.cache/rlaif/videos"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def _peak_rss(actor: Any) -> float:
    """Runs inside an actor."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
