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
    """The actors of a run. Every stage requests those it needs; actors that run with the same settings are reused."""

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
        """Return the device that a role computes on; a role that reserves no GPU does not use one."""
        gpus = getattr(self.config.cluster, role).gpus
        return "cuda" if gpus > 0 and self.config.model.device != "cpu" else "cpu"

    def place(self, *roles: str) -> None:
        """Reserve what the roles need, all together, before anything is started."""
        missing = [role for role in roles if role not in self._placements]
        if missing:
            requests = {role: getattr(self.config.cluster, role) for role in missing}
            # A cluster that this run started never grows; whether another one does, `place` finds out.
            can_grow = False if self.session.owned else None
            self._placements |= place(requests, self.config.cluster.deadline_s, can_grow=can_grow)

    def frames(self) -> partial:
        """Return a function that builds a frames client, in any actor or in this process."""
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
                known=video_index_folder(self.config),
                options={"name": "frames", "get_if_exists": True},
            )
        # A request may wait for others before its own decode begins.
        timeout_s = max(600.0, 2 * self.config.video.decode_timeout_s)
        return partial(FrameClient, self._store, self.config.data.root, timeout_s=timeout_s)

    def features(self) -> partial:
        """Return a function that builds a client of the feature store, in any actor."""
        if self._features is None:
            options = {"name": "features", "get_if_exists": True}
            self._features = start_feature_store(self.config.video.feature_store_bytes, options)
        return partial(FeatureClient, self._features, share=not self.config.deterministic)

    def client(self) -> FrameClient:
        """Return the frames client of this process."""
        if self._client is None:
            self._client = self.frames()()
        return self._client

    def learners(self, spec: LearnerSpec, ppo: Ppo | None = None) -> LearnerGroup:
        """Start a new learner group and return it; the one before it is stopped."""
        self.stop_learners()
        self.place("learner")
        features = self.features()
        ask(self._features.begin.remote(), self._timeout_s, "the feature store")
        options, device = self._options("learner"), self.device("learner")
        with phase(f"starting {_counted(len(options), 'learner rank')}"):
            self._group = LearnerGroup(spec, self.frames(), options, device, ppo, features)
        return self._group

    def stop_learners(self) -> None:
        """Stop the learner group, if there is one."""
        if self._group is not None:
            self._group.stop()
            self._group = None

    def rollouts(self, model_path: str, lora_rank: int | None) -> RolloutPool:
        """Return the rollout pool that serves `model_path`; another one is stopped first.

        Weights can be published to it: adapters of rank `lora_rank`, or full weights if that is None.
        """
        key = (model_path, lora_rank)
        if key not in self._rollouts:
            self.stop_rollouts()
            self._rollouts[key] = self._start_rollouts(model_path, lora_rank)
        return self._rollouts[key]

    def _start_rollouts(self, model_path: str, lora_rank: int | None) -> RolloutPool:
        self.place("rollout")
        config, lora = self.config, self.config.ppo.lora
        spec = EngineSpec(
            model_path,
            config.model.dtype,
            lora_rank,
            config.rollout,
            lora_targets=lora.targets if lora_rank is not None and lora else None,
            deterministic=config.deterministic,
        )
        role, limit = config.cluster.rollout, config.data.max_prompt_tokens
        device, features = self.device("rollout"), self.features()
        actors: dict[str, Any] = {}
        with phase(f"starting {_counted(role.actors, 'rollout actor')}"):
            for number, options in enumerate(self._options("rollout")):
                actor = start_rollout(spec, self.frames(), device, role.threads, options, limit, features)
                actors[f"rollout-{number}"] = actor
            # The first answer of an actor shows that its engine has loaded the model.
            ready = [actor.version.remote() for actor in actors.values()]
            ask(ready, self._timeout_s, "the rollout actors")
        return RolloutPool(actors)

    def engines(self, model_path: str) -> RolloutPool:
        """Return the pool that serves a model unchanged, for answers that are not trained on.

        For the policy it is PPO's own pool, which PPO goes on with. It has room for adapters only if the model's family
        supports them: PPO rejects `ppo.lora` for the others.
        """
        lora, policy = self.config.ppo.lora, self.config.ppo.policy
        if lora and same_model(model_path, policy) and ModelDir(model_path).family.adapters:
            return self.rollouts(policy, lora.r)
        return self.rollouts(model_path, None)

    def stop_rollouts(self) -> None:
        """Stop all rollout actors."""
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
        """Start a new reward pool and return it; the one before it is stopped.

        Args:
            reward: the path of a reward model, or a function.
            tokens_per_microbatch: the most tokens of one forward of a reward model.
            weights: factors by dimension of a reward model.
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
        """Stop the reward actors, if there are any."""
        if self._rewards is not None:
            self._rewards.stop()
            self._rewards = None

    def frame_counters(self) -> dict[str, float]:
        """Return decodes, re-decodes, hits and bytes of the frame store."""
        return {f"frames/{name}": float(value) for name, value in self.client().counters().items()}

    def feature_counters(self) -> dict[str, float]:
        """Return the passes through vision towers in all processes since the learners were started."""
        counters = ask(self._features.counters.remote(), self._timeout_s, "the feature store")
        return {f"vision/{name}": float(value) for name, value in counters.items()}

    def peak_memory(self) -> dict[str, float]:
        """Return the largest resident bytes that a process of each role has had so far."""
        groups: dict[str, list[Any]] = {"frames": [self._store] if self._store is not None else []}
        groups["learner"] = self._group.ranks if self._group else []
        groups["reward"] = self._rewards.handles if self._rewards else []
        groups["rollout"] = []
        for pool in self._rollouts.values():
            groups["rollout"] += pool.fleet.handles.values()
        peaks = {}
        for role, actors in groups.items():
            if actors:
                calls = [actor.__ray_call__.remote(_peak_rss) for actor in actors]
                peaks[role] = max(ask(calls, self._timeout_s, role))
        return peaks

    def stop(self) -> None:
        """Stop every actor and release all reservations."""
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
        count = getattr(self.config.cluster, role).actors
        return [placement.options(number) for number in range(count)]


def video_index_folder(config: Config) -> str:
    """Return the folder of the index of videos: one for all runs, or one per node if the storage is a bucket."""
    storage = locate(config.storage).local
    return str(storage / ".cache" / "videos") if storage else "~/.cache/rlaif/videos"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def _peak_rss(actor: Any) -> float:
    """Return the largest resident bytes of the process; runs inside an actor."""
    import resource

    # Linux reports kibibytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
