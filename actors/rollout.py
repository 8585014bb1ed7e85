"""The rollout actor: prompts in, samples out. A thin shell over the engine that finds frames and derives seeds."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from actors.engine import Completion, Engine, EngineSpec, Refused, Request
from actors.features import FeatureClient
from actors.requests import over_limit
from actors.served import local
from actors.tower import FrozenTower
from actors.weights import Published
from cluster.env import actor_env
from cluster.publish import Manifest
from rlaif.config.schema import Sampling
from rlaif.errors import ContractError, DataError
from rlaif.models.encode import Encoder, Frames
from rlaif.objectives.truncation import truncated_length
from rlaif.records import Choice, Probe, Probed, Prompt, Sample
from rlaif.seeds import derive
from rlaif.video.spec import frames_digest

ARRIVAL_S = 3600.0
"""How long published weights may take to arrive if the driver does not say."""


@dataclass(frozen=True)
class Failure:
    """A prompt that could not be answered: its video cannot be used, or it does not fit into the model."""

    prompt_id: str
    reason: str


@dataclass(frozen=True)
class Answers:
    """What one call of `generate` produced: every prompt is in exactly one of the two."""

    samples: list[Sample] | list[Choice]
    failures: list[Failure]
    began: float = 0.0
    """Wall-clock time, seconds since the epoch; so is `ended`."""
    ended: float = 0.0


class RolloutActor:
    """The actor's body; `start_rollout` makes it an actor.

    Calls run one at a time, in the order in which they were made: a publish is applied when no answer is unfinished.
    """

    def __init__(
        self,
        spec: EngineSpec,
        make_frames: Callable[[], Frames],
        max_prompt_tokens: int | None = None,
        make_features: Callable[[], FeatureClient] | None = None,
    ):
        """`make_frames` builds the frames client inside the actor, e.g. `partial(FrameClient, store, root)`;
        `make_features` likewise the client of the feature store, where there is one.

        Without `spec.banned_ids` the model's own placeholder ids are banned. A prompt of more than `max_prompt_tokens`
        positions, visual tokens included, is a Failure: cutting it could cut the video.
        """
        spec = local(spec)
        self._limit = max_prompt_tokens
        self._frames = make_frames()
        self._encoder = Encoder(spec.model_path, self._frames, dtype=spec.dtype)
        self._engine = Engine(replace(spec, banned_ids=spec.banned_ids or tuple(self._encoder.banned_ids)))
        self._features = make_features() if make_features else None
        handed = spec.rollout.vision == "shared"
        self._tower = FrozenTower(spec.model_path, spec.dtype, self._features) if handed else None
        self._tokens, self._busy_s, self._reported = 0, 0.0, 0

    def generate(self, prompts: Sequence[Prompt], n: int, seed: int, sampling: Sampling, version: int) -> Answers:
        """Sample n answers per prompt from weights `version`; each depends on (seed, prompt, index) only.

        Raises:
            ContractError: another version is in place. A bad prompt is a Failure instead.
        """
        start, began = time.perf_counter(), time.time()
        stops = [id_ for token in sampling.truncate_at for id_ in self._encoder.ids_of(token)]
        failures: list[Failure] = []
        sent: list[tuple[Prompt, str]] = []
        requests = self._requests(prompts, n, seed, sent, failures)
        results = self._engine.generate(requests, sampling, version)
        self._report_passes([frames_hash for _, frames_hash in sent if frames_hash])
        samples: list[Sample] = []
        for (prompt, frames_hash), result in zip(sent, results, strict=True):
            if reason := self._why_not(result):
                failures.append(Failure(prompt.prompt_id, reason))
            else:
                answers = [cut(answer, stops, self._encoder) for answer in result]
                samples += [_sample(prompt, i, frames_hash, answer, version) for i, answer in enumerate(answers)]
        self._tokens += sum(len(sample.response_ids) for sample in samples)
        self._busy_s += time.perf_counter() - start
        return Answers(samples, failures, began, time.time())

    def choose(self, prompts: Sequence[Prompt], words: Sequence[str], version: int) -> Answers:
        """Which of some words the weights of `version` would begin their answer with: a Choice per prompt, its log-probs in
        the order of `words`, the spellings of each added up. Raises ConfigError for a word that is no single token.
        """
        tokens = [self._encoder.spellings(word) for word in words]
        began, failures, sent = time.time(), [], []
        requests = self._requests(prompts, 1, 0, sent, failures)
        results = self._engine.choices(requests, tokens, version, self._limit)
        self._report_passes([frames_hash for _, frames_hash in sent if frames_hash])
        found: list[Choice] = []
        for (prompt, _), result in zip(sent, results, strict=True):
            if isinstance(result, Refused):
                failures.append(Failure(prompt.prompt_id, result.reason))
            else:
                found.append(Choice(prompt, result))
        return Answers(found, failures, began, time.time())

    def _report_passes(self, specs: Sequence[str]) -> None:
        """Tell the feature store what went through vLLM's own tower since the last time."""
        passes, self._reported = self._engine.encoded - self._reported, self._engine.encoded
        if self._features is not None and self._tower is None:
            self._features.engine(passes, specs)

    def _why_not(self, result: list[Completion] | Refused) -> str | None:
        if isinstance(result, Refused):
            return result.reason
        return over_limit(len(result[0].prompt_ids), self._limit)

    def _requests(
        self, prompts: Sequence[Prompt], n: int, seed: int, sent: list, failures: list[Failure]
    ) -> Iterator[Request]:
        """Requests one by one, as the engine has room, so that few videos are in memory at a time."""
        for prompt in prompts:
            try:
                shown = self._shown(prompt.video, part=prompt.frames) if prompt.video else {}
            except DataError as error:
                failures.append(Failure(prompt.prompt_id, str(error)))
                continue
            ids = self._encoder.unexpanded(prompt.question, bool(prompt.video))
            if (found := len(self._encoder.marks(ids))) != bool(prompt.video):
                reason = f"{found} video placeholders; a question may hold no media token"
                failures.append(Failure(prompt.prompt_id, reason))
                continue
            seeds = tuple(derive(seed, prompt.prompt_id, index) for index in range(n))
            sent.append((prompt, shown.get("frames_hash", "")))
            yield Request(ids, seeds, **shown)

    def _shown(self, video: str, fresh: bool = False, part: Sequence[int] = ()) -> dict[str, Any]:
        """What a Request says of a video: its frames, or what the tower makes of them. Raises DataError for a bad video.

        fresh: under a name that nothing has seen yet, and computed again; part: only these native frames of it.
        """
        spec = self._frames.spec(video)
        spec = spec.part(part) if part else spec
        name = f"{spec.hash}-{uuid4().hex}" if fresh else spec.hash
        if self._tower is None:
            return {"frames": self._frames.get(video, spec), "metadata": spec.metadata(), "frames_hash": name}
        held = self._encoder.video(video, part)
        return {
            "features": self._tower.video(held, fresh),
            "visual_tokens": held.visual_tokens,
            "frames_hash": name,
        }

    def respond(self, probe: Probe, sampling: Sampling, seed: int, version: int) -> Probe:
        """The probe with a response sampled from weights `version`. Raises DataError for a bad video."""
        (result,) = self._engine.generate([self._probe_request(probe, (seed,))], sampling, version)
        if isinstance(result, Refused):
            raise DataError("a prompt that the engine takes", result.reason, "raise rollout.max_model_len")
        return replace(probe, response_ids=tuple(int(token) for token in result[0].response_ids))

    def probe(self, probes: Sequence[Probe], sampling: Sampling, version: int, fresh: bool = False) -> list[Probed]:
        """Log-probs of fixed responses: see `Engine.logprobs`. Raises DataError for a bad video.

        fresh: show each video under a new name, so that nothing the engine has cached of it is used.
        """
        requests = [self._probe_request(probe, fresh=fresh) for probe in probes]
        found = self._engine.logprobs(requests, [probe.response_ids for probe in probes], sampling, version)
        digests = [None if one.video is None else self._digest(one.video) for one in probes]
        return [Probed(logprobs, digest) for logprobs, digest in zip(found, digests, strict=True)]

    def _probe_request(self, probe: Probe, seeds: tuple[int, ...] = (0,), fresh: bool = False) -> Request:
        ids = self._encoder.unexpanded(probe.question, probe.video is not None)
        if probe.video is None:
            return Request(ids, seeds)
        return Request(ids, seeds, **self._shown(probe.video, fresh))

    def _digest(self, video: str) -> str:
        return frames_digest(self._frames.get(video, self._frames.spec(video)))

    def publish(self, manifest: Manifest, buckets: Sequence[Any], timeout: float = ARRIVAL_S) -> Published:
        """Fetch, verify and apply one version of the weights; `buckets` are references into the object store.

        Raises:
            ContractError: naming the bucket that did not arrive within `timeout` seconds, or the tensor that did not
                arrive as sent, or a tower that is not the one features are handed over from; the old version stays.
        """
        self._check_tower(manifest)
        return self._engine.weights.publish(
            manifest, [_fetched(i, bucket, timeout) for i, bucket in enumerate(buckets)]
        )

    def open_transfer(self, backend: str, info: dict) -> None:
        """Join a transport between GPUs: see `EngineWeights`, also for the three calls that follow."""
        self._engine.weights.open(backend, info)

    def begin_transfer(self) -> None:
        self._engine.weights.begin()

    def receive_transfer(self, info: Any) -> None:
        self._engine.weights.receive(info)

    def commit_transfer(self, manifest: Manifest) -> Published:
        self._check_tower(manifest)
        return self._engine.weights.commit(manifest)

    def _check_tower(self, manifest: Manifest) -> None:
        if self._tower is not None:
            self._tower.check_published(manifest)

    def sleep(self, level: int) -> None:
        """Leave the GPU to the learners until the next call: see `EngineWeights.sleep`."""
        self._engine.weights.sleep(level)

    def version(self) -> int | None:
        """The weights in place; None when a publish failed half-way."""
        return self._engine.weights.version

    def stats(self) -> dict[str, float]:
        """Since the start: sampled tokens, seconds in `generate`, tokens per such second, peak memory in bytes; prompt tokens,
        and those of them that were found in the prefix cache."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rate = self._tokens / self._busy_s if self._busy_s else 0.0
        found = {"tokens": self._tokens, "busy_s": self._busy_s, "tokens_per_s": rate, "peak_rss_bytes": peak}
        return found | {"prompt_tokens": self._engine.prompt_tokens, "cached_tokens": self._engine.cached_tokens}


def _fetched(number: int, bucket: Any, timeout: float) -> Any:
    import ray

    try:
        return ray.get(bucket, timeout=timeout)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.ObjectLostError) as error:
        raise ContractError(
            f"bucket {number} of the published weights",
            f"{type(error).__name__} after waiting at most {timeout:g} s",
            "Publish again; if it repeats, look at the learner's node and the network between the two",
        ) from error


def cut(answer: Completion, stops: Sequence[int], encoder: Encoder) -> Completion:
    """The answer up to the token of `sampling.truncate_at` that decides; an end of sequence behind it is lost."""
    kept = truncated_length(answer.response_ids, stops)
    if kept is None:
        return answer
    ids = answer.response_ids[:kept]
    text = encoder.text(ids)
    return replace(answer, response_ids=ids, logprobs=answer.logprobs[:kept], text=text, finish_reason="cut")


def _sample(prompt: Prompt, index: int, frames_hash: str, answer: Completion, version: int) -> Sample:
    return Sample(
        prompt=prompt,
        sample_index=index,
        frames_hash=frames_hash,
        visual_tokens=answer.visual_tokens,
        prompt_ids=answer.prompt_ids,
        response_ids=answer.response_ids,
        logprobs=answer.logprobs,
        response=answer.text,
        finish_reason=answer.finish_reason,
        policy_version=version,
    )


def start_rollout(
    spec: EngineSpec,
    make_frames: Callable[[], Frames],
    device: str = "cpu",
    threads: int = 1,
    options: dict[str, Any] | None = None,
    max_prompt_tokens: int | None = None,
    make_features: Callable[[], FeatureClient] | None = None,
):
    """Start a rollout actor; `options` are Ray's actor options (name, placement, num_gpus, ...)."""
    import ray

    options = dict(options or {})
    runtime_env = dict(options.pop("runtime_env", {}))
    env = actor_env(threads, device, spec.dtype)
    runtime_env["env_vars"] = env | runtime_env.get("env_vars", {})
    actor = ray.remote(RolloutActor).options(runtime_env=runtime_env, **options)
    return actor.remote(spec, make_frames, max_prompt_tokens, make_features)
