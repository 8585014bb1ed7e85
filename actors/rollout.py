"""The rollout actor: prompts in, samples out. A thin shell over the engine that finds frames and derives seeds."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.engine import Completion, Engine, EngineSpec, Published, Refused, Request
from cluster.env import actor_env
from cluster.publish import Manifest
from rlaif.config.schema import Sampling
from rlaif.errors import DataError
from rlaif.models.encode import Encoder, Frames
from rlaif.records import Prompt, Sample
from rlaif.seeds import derive
from rlaif.storage import fetch


@dataclass(frozen=True)
class Failure:
    """A prompt that could not be answered: its video cannot be used, or it does not fit into the model."""

    prompt_id: str
    reason: str


@dataclass(frozen=True)
class Answers:
    """What one call of `generate` produced: every prompt is in exactly one of the two."""

    samples: list[Sample]
    failures: list[Failure]
    began: float = 0.0
    """Wall-clock time, seconds since the epoch; so is `ended`."""
    ended: float = 0.0


class RolloutActor:
    """The actor's body; `start_rollout` makes it an actor.

    Calls run one at a time, in the order in which they were made: a publish is applied when no answer is unfinished.
    """

    def __init__(self, spec: EngineSpec, make_frames: Callable[[], Frames], max_prompt_tokens: int | None = None):
        """`make_frames` builds the frames client inside the actor, e.g. `partial(FrameClient, store, root)`.

        Without `spec.banned_ids` the model's own placeholder ids are banned. A prompt of more than `max_prompt_tokens`
        positions, visual tokens included, is a Failure: cutting it could cut the video.
        """
        spec = replace(spec, model_path=fetch(spec.model_path))
        self._limit = max_prompt_tokens
        self._encoder = Encoder(spec.model_path)
        self._engine = Engine(replace(spec, banned_ids=spec.banned_ids or tuple(self._encoder.banned_ids)))
        self._frames = make_frames()
        self._tokens, self._busy_s = 0, 0.0

    def generate(self, prompts: Sequence[Prompt], n: int, seed: int, sampling: Sampling, version: int) -> Answers:
        """Sample n answers per prompt from weights `version`; each depends on (seed, prompt, index) only.

        Raises:
            ContractError: another version is in place. A bad prompt is a Failure instead.
        """
        start, began = time.perf_counter(), time.time()
        failures: list[Failure] = []
        sent: list[tuple[Prompt, str]] = []
        requests = self._requests(prompts, n, seed, sent, failures)
        results = self._engine.generate(requests, sampling, version)
        samples: list[Sample] = []
        for (prompt, frames_hash), result in zip(sent, results, strict=True):
            if reason := self._why_not(result):
                failures.append(Failure(prompt.prompt_id, reason))
            else:
                samples += [_sample(prompt, i, frames_hash, answer, version) for i, answer in enumerate(result)]
        self._tokens += sum(len(sample.response_ids) for sample in samples)
        self._busy_s += time.perf_counter() - start
        return Answers(samples, failures, began, time.time())

    def _why_not(self, result: list[Completion] | Refused) -> str | None:
        if isinstance(result, Refused):
            return result.reason
        length = len(result[0].prompt_ids)
        if self._limit is not None and length > self._limit:
            return f"{length} prompt positions, over data.max_prompt_tokens ({self._limit})"
        return None

    def _requests(
        self, prompts: Sequence[Prompt], n: int, seed: int, sent: list, failures: list[Failure]
    ) -> Iterator[Request]:
        """Requests one by one, as the engine has room, so that few videos are in memory at a time."""
        for prompt in prompts:
            try:
                spec = self._frames.spec(prompt.video)
                frames = self._frames.get(prompt.video, spec)
            except DataError as error:
                failures.append(Failure(prompt.prompt_id, str(error)))
                continue
            ids = self._encoder.unexpanded(prompt.question)
            if (found := len(self._encoder.marks(ids))) != 1:
                reason = f"{found} video placeholders; a question may hold no media token"
                failures.append(Failure(prompt.prompt_id, reason))
                continue
            seeds = tuple(derive(seed, prompt.prompt_id, index) for index in range(n))
            sent.append((prompt, spec.hash))
            yield Request(ids, seeds, frames, spec.metadata(), frames_hash=spec.hash)

    def logprobs(
        self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]], sampling: Sampling, version: int
    ) -> list[Any]:
        """[T] float32 per prompt: see `Engine.logprobs`. Raises DataError for a bad video."""
        failures: list[Failure] = []
        requests = list(self._requests(prompts, 1, 0, [], failures))
        if failures:
            raise DataError(
                "videos that decode", f"{failures[0].prompt_id}: {failures[0].reason}", "choose other prompts"
            )
        return self._engine.logprobs(requests, responses, sampling, version)

    def publish(self, manifest: Manifest, buckets: Sequence[Any]) -> Published:
        """Fetch, verify and apply one version of the weights; `buckets` are references into the object store.

        Raises:
            ContractError: naming the tensor that did not arrive as sent; the old version stays in place.
        """
        import ray

        return self._engine.publish(manifest, ray.get(list(buckets)))

    def version(self) -> int | None:
        """The weights in place; None when a publish failed half-way."""
        return self._engine.version

    def stats(self) -> dict[str, float]:
        """Since the start: sampled tokens, seconds in `generate`, tokens per such second, peak memory in bytes."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rate = self._tokens / self._busy_s if self._busy_s else 0.0
        return {"tokens": self._tokens, "busy_s": self._busy_s, "tokens_per_s": rate, "peak_rss_bytes": peak}


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
):
    """Start a rollout actor; `options` are Ray's actor options (name, placement, num_gpus, ...)."""
    import ray

    options = dict(options or {})
    runtime_env = dict(options.pop("runtime_env", {}))
    env = actor_env(threads, device)
    runtime_env["env_vars"] = env | runtime_env.get("env_vars", {})
    actor = ray.remote(RolloutActor).options(runtime_env=runtime_env, **options)
    return actor.remote(spec, make_frames, max_prompt_tokens)
