"""The rollout actor: prompts in, samples out. A thin shell over the engine that gets the frames and derives the seeds."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from actors.engine import Engine, EngineSpec
from actors.features import FeatureClient
from actors.requests import Completion, Refused, Request, over_limit
from actors.served import resolve_model
from actors.tower import FrozenTower
from actors.weights import Published
from cluster.env import actor_env
from cluster.publish import Manifest
from rlaif.config.schema import Sampling
from rlaif.errors import ContractError, DataError
from rlaif.models.encode import Encoder
from rlaif.models.video_features import Frames
from rlaif.models.vocabulary import spellings, token_ids
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
    """The results of one call of `generate` or `score_choices`: every prompt is in exactly one of the two."""

    samples: list[Sample] | list[Choice]
    failures: list[Failure]
    began: float = 0.0
    """Wall-clock time, seconds since the epoch; so is `ended`."""
    ended: float = 0.0


@dataclass
class _Pending:
    """The prompts of one call, as its requests are made."""

    sent: list[tuple[Prompt, str]] = field(default_factory=list)
    """Those that the engine has, with the hashes of their frames (empty: no video), in the order of its results."""
    failures: list[Failure] = field(default_factory=list)
    """Those that it never got."""

    def videos(self) -> list[str]:
        """Return the hashes of the frames of all videos that were sent."""
        return [frames_hash for _, frames_hash in self.sent if frames_hash]


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
        """Start the engine.

        `make_frames` builds the frames client inside the actor, e.g. `partial(FrameClient, store, root)`;
        `make_features` likewise the client of the feature store, if there is one.

        Without `spec.banned_ids` the model's own placeholder ids are banned. A prompt of more than `max_prompt_tokens`
        positions, visual tokens included, is a Failure: cutting it could cut the video.
        """
        spec = resolve_model(spec)
        self._limit = max_prompt_tokens
        self._frames = make_frames()
        self._encoder = Encoder(spec.model_path, self._frames, dtype=spec.dtype)
        # the tokenizer may know media tokens that no field of the configuration names, so the encoder's list is used
        self._engine = Engine(replace(spec, banned_ids=spec.banned_ids or tuple(self._encoder.banned_ids)))
        self._features = make_features() if make_features else None
        self._tower = None
        if spec.rollout.vision == "shared":
            self._tower = FrozenTower(spec.model_path, spec.dtype, self._features)
        self._tokens, self._busy_s, self._reported = 0, 0.0, 0

    def generate(self, prompts: Sequence[Prompt], n: int, seed: int, sampling: Sampling, version: int) -> Answers:
        """Sample n answers per prompt from weights `version`; each depends on (seed, prompt, index) only.

        Raises:
            ContractError: another version is in place. A bad prompt is a Failure instead.
        """
        start, began = time.perf_counter(), time.time()
        stops: list[int] = []
        for token in sampling.truncate_at:
            stops += token_ids(self._encoder.tokenizer, token)
        pending = _Pending()
        requests = self._requests(prompts, n, seed, pending)
        results = self._engine.generate(requests, sampling, version)
        self._report_passes(pending.videos())
        samples: list[Sample] = []
        for (prompt, frames_hash), result in zip(pending.sent, results, strict=True):
            reason = self._refusal(result)
            if reason:
                pending.failures.append(Failure(prompt.prompt_id, reason))
                continue
            for index, answer in enumerate(result):
                answer = cut(answer, stops, self._encoder)
                samples.append(_sample(prompt, index, frames_hash, answer, version))
        self._tokens += sum(len(sample.response_ids) for sample in samples)
        self._busy_s += time.perf_counter() - start
        return Answers(samples, pending.failures, began, time.time())

    def score_choices(self, prompts: Sequence[Prompt], words: Sequence[str], version: int) -> Answers:
        """Return a Choice per prompt: the log-probs of some words as the first of an answer by weights `version`.

        They are in the order of `words`; the spellings of each add up. Raises ConfigError for a word that is no single token.
        """
        tokens = [spellings(self._encoder.tokenizer, word) for word in words]
        began, pending = time.time(), _Pending()
        requests = self._requests(prompts, 1, 0, pending)
        results = self._engine.choices(requests, tokens, version, self._limit)
        self._report_passes(pending.videos())
        choices: list[Choice] = []
        for (prompt, _), result in zip(pending.sent, results, strict=True):
            if isinstance(result, Refused):
                pending.failures.append(Failure(prompt.prompt_id, result.reason))
            else:
                choices.append(Choice(prompt, result))
        return Answers(choices, pending.failures, began, time.time())

    def _report_passes(self, specs: Sequence[str]) -> None:
        """Report to the feature store what went through vLLM's own tower since the last time."""
        passes, self._reported = self._engine.encoded - self._reported, self._engine.encoded
        # with a tower of its own this actor has reported its passes when it computed the features
        if self._features is not None and self._tower is None:
            self._features.engine(passes, specs)

    def _refusal(self, result: list[Completion] | Refused) -> str | None:
        """Return why a prompt counts as a failure, if it does."""
        if isinstance(result, Refused):
            return result.reason
        return over_limit(len(result[0].prompt_ids), self._limit)

    def _requests(self, prompts: Sequence[Prompt], n: int, seed: int, pending: _Pending) -> Iterator[Request]:
        """Yield requests one by one, as the engine has room, so that few videos are in memory at a time."""
        for prompt in prompts:
            video: dict[str, Any] = {}
            if prompt.video:
                try:
                    video = self._video_input(prompt.video, part=prompt.frames)
                except DataError as error:
                    pending.failures.append(Failure(prompt.prompt_id, str(error)))
                    continue
            ids = self._encoder.unexpanded(prompt.question, bool(prompt.video))
            # a media token in the question would be expanded as well, without an error
            placeholders = len(self._encoder.marks(ids))
            if placeholders != bool(prompt.video):
                reason = f"{placeholders} video placeholders; a question may hold no media token"
                pending.failures.append(Failure(prompt.prompt_id, reason))
                continue
            # of the prompt alone, not of its place: a prompt that another actor answers again has the same seeds
            seeds = tuple(derive(seed, prompt.prompt_id, index) for index in range(n))
            pending.sent.append((prompt, video.get("frames_hash", "")))
            yield Request(ids, seeds, **video)

    def _video_input(self, video: str, fresh: bool = False, part: Sequence[int] = ()) -> dict[str, Any]:
        """Return the fields of a Request for a video: its frames, or the tower's output. Raises DataError for a bad video.

        fresh: under a name that is new to all caches, and computed again; part: only these native frames of it.
        """
        spec = self._frames.spec(video)
        if part:
            spec = spec.part(part)
        # vLLM caches processed videos and features by this name
        name = f"{spec.hash}-{uuid4().hex}" if fresh else spec.hash
        if self._tower is None:
            frames = self._frames.get(video, spec)
            return {"frames": frames, "metadata": spec.metadata(), "frames_hash": name}
        processed = self._encoder.video(video, part)
        return {
            "features": self._tower.video(processed, fresh),
            "visual_tokens": processed.visual_tokens,
            "frames_hash": name,
        }

    def respond(self, probe: Probe, sampling: Sampling, seed: int, version: int) -> Probe:
        """Return the probe with a response sampled from weights `version`. Raises DataError for a bad video."""
        request = self._probe_request(probe, (seed,))
        (result,) = self._engine.generate([request], sampling, version)
        if isinstance(result, Refused):
            raise DataError("a prompt that the engine takes", result.reason, "Raise rollout.max_model_len.")
        return replace(probe, response_ids=tuple(map(int, result[0].response_ids)))

    def probe(self, probes: Sequence[Probe], sampling: Sampling, version: int, fresh: bool = False) -> list[Probed]:
        """Return the log-probs of fixed responses: see `Engine.logprobs`. Raises DataError for a bad video.

        fresh: send each video under a new name, so that nothing the engine has cached of it is used.
        """
        requests, responses = [], []
        for probe in probes:
            requests.append(self._probe_request(probe, fresh=fresh))
            responses.append(probe.response_ids)
        rows = self._engine.logprobs(requests, responses, sampling, version)
        results = []
        for probe, logprobs in zip(probes, rows, strict=True):
            digest = None if probe.video is None else self._digest(probe.video)
            results.append(Probed(logprobs, digest))
        return results

    def _probe_request(self, probe: Probe, seeds: tuple[int, ...] = (0,), fresh: bool = False) -> Request:
        ids = self._encoder.unexpanded(probe.question, probe.video is not None)
        if probe.video is None:
            return Request(ids, seeds)
        return Request(ids, seeds, **self._video_input(probe.video, fresh))

    def _digest(self, video: str) -> str:
        return frames_digest(self._frames.get(video, self._frames.spec(video)))

    def publish(self, manifest: Manifest, buckets: Sequence[Any], timeout: float = ARRIVAL_S) -> Published:
        """Fetch, verify and apply one version of the weights; `buckets` are references into the object store.

        Raises:
            ContractError: naming the bucket that did not arrive within `timeout` seconds, or the tensor that did not
                arrive as sent, or a tower that is not the one features are handed over from; the old version stays.
        """
        self._check_tower(manifest)  # before gigabytes are fetched
        arrays = [_fetch_bucket(number, bucket, timeout) for number, bucket in enumerate(buckets)]
        return self._engine.weights.publish(manifest, arrays)

    def open_transfer(self, backend: str, info: dict) -> None:
        """Join a transport between GPUs: see `EngineWeights`, also for the three calls that follow."""
        self._engine.weights.open(backend, info)

    def begin_transfer(self) -> None:
        """Prepare for a version that comes in parts."""
        self._engine.weights.begin()

    def receive_transfer(self, info: Any) -> None:
        """Receive one part of the version."""
        self._engine.weights.receive(info)

    def commit_transfer(self, manifest: Manifest) -> Published:
        """Verify and apply the version that was received."""
        self._check_tower(manifest)
        return self._engine.weights.commit(manifest)

    def _check_tower(self, manifest: Manifest) -> None:
        if self._tower is not None:
            self._tower.check_published(manifest)

    def sleep(self, level: int) -> None:
        """Leave the GPU to the learners until the next call: see `EngineWeights.sleep`."""
        self._engine.weights.sleep(level)

    def version(self) -> int | None:
        """Return the version of the weights in place; None if a publish failed half-way."""
        return self._engine.weights.version

    def stats(self) -> dict[str, float]:
        """Return counts since the start.

        Sampled tokens, seconds in `generate`, tokens per such second, peak memory in bytes; prompt tokens, and those of them
        that were in the prefix cache.
        """
        return {
            "tokens": self._tokens,
            "busy_s": self._busy_s,
            "tokens_per_s": self._tokens / self._busy_s if self._busy_s else 0.0,
            "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux counts in KiB
            "prompt_tokens": self._engine.prompt_tokens,
            "cached_tokens": self._engine.cached_tokens,
        }


def _fetch_bucket(number: int, bucket: Any, timeout: float) -> Any:
    import ray

    try:
        return ray.get(bucket, timeout=timeout)
    except (ray.exceptions.GetTimeoutError, ray.exceptions.ObjectLostError) as error:
        raise ContractError(
            f"bucket {number} of the published weights",
            f"{type(error).__name__} after waiting at most {timeout:g} s",
            "Publish again; if it repeats, look at the learner's node and the network between the two.",
        ) from error


def cut(answer: Completion, stops: Sequence[int], encoder: Encoder) -> Completion:
    """Return the answer up to the token of `sampling.truncate_at` that decides; an end of sequence after it is lost."""
    length = truncated_length(answer.response_ids, stops)
    if length is None:
        return answer
    ids = answer.response_ids[:length]
    text = encoder.text(ids)
    return replace(answer, response_ids=ids, logprobs=answer.logprobs[:length], text=text, finish_reason="cut")


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
    # threads are bound by the environment: vLLM reads it when it is imported, before any of our code runs in the actor
    runtime_env["env_vars"] = env | runtime_env.get("env_vars", {})
    actor = ray.remote(RolloutActor).options(runtime_env=runtime_env, **options)
    return actor.remote(spec, make_frames, max_prompt_tokens, make_features)
