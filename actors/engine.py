"""The sampling engine: vLLM in this process, fixed to one weight version at a time. No Ray in here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.requests import (
    Completion,
    PendingRequest,
    Refused,
    Request,
    VisualTokens,
    completion_of,
    over_limit,
    vllm_prompt,
)
from actors.weight_check import WeightCheck
from actors.weights import EngineWeights
from rlaif.config.cluster import Rollout
from rlaif.config.schema import Sampling
from rlaif.errors import ContractError
from rlaif.io.tempdirs import Scratch

SCRATCH = "rlaif-engine-"
"""Prefix of the folders of engines' temporary files."""

ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM reserves adapter memory for; a smaller adapter fits into the next larger one."""

Job = tuple[dict, list]
"""A vLLM prompt, and the sampling parameters of each answer to it."""


@dataclass(frozen=True)
class EngineSpec:
    """The model that one engine serves, and how."""

    model_path: str
    dtype: str = "bfloat16"
    lora_rank: int | None = None
    """Rank of the adapter that will be published; None: full weights are published."""
    rollout: Rollout = field(default_factory=Rollout)
    seed: int = 0
    banned_ids: tuple[int, ...] = ()
    """Never sampled. A sampled visual placeholder would break every later forward over the text."""
    deterministic: bool = False
    """Answer one request at a time, so that an answer depends on nothing else in the batch (slow; for exact resume)."""
    adapter: str | None = None
    """Folder of an adapter of that rank to answer with from the start."""
    lora_targets: tuple[str, ...] | None = None
    """Linear layers that the adapter must have; None: any of the model's."""


class Engine:
    """vLLM with one current version of the weights.

    Every call is synchronous: while `generate` runs no weights change, so all tokens of an answer come from one version.
    """

    def __init__(self, spec: EngineSpec):
        """Start vLLM in this process."""
        self.spec = spec
        self._files = Scratch(SCRATCH)
        _keep_compiled()  # before the temporary folder changes
        with self._files.holding():  # vLLM leaves a file there that it never removes
            self.llm = _build_llm(spec)
        check = WeightCheck(spec.model_path, spec.dtype, spec.lora_rank, spec.lora_targets)
        self.weights = EngineWeights(self.llm, check)
        if spec.adapter is not None:
            self.weights.serve(spec.adapter)
        self._visual = VisualTokens.of(self.llm.model_config.hf_config, self.llm.get_tokenizer())
        self.encoded = 0
        """Videos that vLLM's own tower has encoded so far. It has no public counter: a video counts once until vLLM forgets
        its features, and one that its cache evicts earlier and encodes again is not seen."""
        self._cached_videos: set[str] = set()
        self._seen_resets = 0
        self.prompt_tokens = self.cached_tokens = 0
        """Tokens of all prompts so far, and how many of them were not computed because an earlier prompt began with the same."""

    def generate(
        self,
        requests: Iterable[Request],
        sampling: Sampling,
        version: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[list[Completion] | Refused]:
        """Sample one answer per seed of every request.

        Args:
            requests: taken one at a time as the engine has room, so a generator keeps few videos in memory.
            sampling: how tokens are drawn, and how many at most.
            version: the weights that must be in place.
            progress: called with the number of finished answers whenever it changes.

        Returns:
            One entry per request, in order: its completions in the order of its seeds, or why it was refused.

        Raises:
            ContractError: on another version, or when the engine expanded a prompt in an unexpected way.
        """
        self.weights.check_version(version)
        pending: list[PendingRequest] = []

        def jobs() -> Iterator[Job]:
            for request in requests:
                pending.append(PendingRequest.of(request))
                yield vllm_prompt(request), [self._params(sampling, seed) for seed in request.seeds]

        results = self._run(jobs(), progress)
        answers: list[list[Completion] | Refused] = []
        for request, result in zip(pending, results, strict=True):
            if not isinstance(result, Refused):
                result = [completion_of(request, output, self._visual) for output in result]
            answers.append(result)
        return answers

    def logprobs(
        self, requests: Sequence[Request], responses: Sequence[Sequence[int]], sampling: Sampling, version: int
    ) -> list[np.ndarray]:
        """Return [T] float32: what `generate` would have reported had it sampled these responses (seeds are ignored).

        Each token is the next token of a prompt of its own, so that bans, temperature, top-k and top-p apply as they do
        when sampling (prompt log-probs skip them). That costs one prefill per token: meant for the few fixed texts on
        which both sides of a publish are compared. Tokens outside top-k or top-p have minus infinity.

        Raises:
            ContractError: on another version, or a text that is too long for the engine.
        """
        self.weights.check_version(version)

        def jobs() -> Iterator[Job]:
            for request, response in zip(requests, responses, strict=True):
                for place, token in enumerate(response):
                    options = {"max_tokens": 1, "logprobs": None, "logprob_token_ids": [int(token)]}
                    yield vllm_prompt(request, response[:place]), [self._params(sampling, 0, **options)]

        results = iter(self._run(jobs()))
        rows = []
        for response in responses:
            row = [_given_logprob(next(results), token) for token in response]
            rows.append(np.array(row, np.float32))
        return rows

    def choices(
        self,
        requests: Iterable[Request],
        tokens: Sequence[Sequence[int]],
        version: int,
        max_prompt_tokens: int | None = None,
    ) -> list[np.ndarray | Refused]:
        """Return how the first token of an answer is chosen: [K] float32 log-probs per request, one per group in `tokens`.

        A group holds the spellings of one choice; their probabilities add up. One prefill per request, nothing is sampled.
        A prompt of more than `max_prompt_tokens` positions is Refused.
        """
        self.weights.check_version(version)
        token_ids = sorted(set().union(*tokens))
        params = self._params(Sampling(max_tokens=1), None, logprobs=None, logprob_token_ids=token_ids)
        results = self._run((vllm_prompt(request), [params]) for request in requests)
        rows: list[np.ndarray | Refused] = []
        for result in results:
            if not isinstance(result, Refused):
                (output,) = result
                result = _too_long(output, max_prompt_tokens) or _group_logprobs(output, tokens)
            rows.append(result)
        return rows

    def _params(self, sampling: Sampling, seed: int | None, **overrides: Any) -> Any:
        """Return vLLM's sampling parameters; media tokens are banned in all of them."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # A sampled placeholder has no features behind it: the learner's forward over the text would fail on it.
        options = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_tokens,
            "seed": seed,
            "logprobs": 0,  # only the sampled token's
            # -100 instead of minus infinity: the widest bias vLLM takes; what is left of the probability is e-100
            "logit_bias": dict.fromkeys(self.spec.banned_ids, -100.0) or None,
        }
        return SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **(options | overrides))

    def _run(self, jobs: Iterable[Job], progress: Callable[[int], None] | None = None) -> list[list[Any] | Refused]:
        """Return the outputs of every job, in order; jobs are taken while fewer answers than the engine's batch are open."""
        engine = self.llm.llm_engine
        # vLLM has no batch-invariant mode on a CPU: an answer that depends on nothing else is computed alone
        room = 1 if self.spec.deterministic else self.spec.rollout.max_num_seqs
        results: list[list[Any] | Refused] = []
        numbered = enumerate(jobs)
        finished = 0
        try:
            while True:
                while engine.get_num_unfinished_requests() < room:
                    # not before there is room: a job holds the frames of its video
                    job = next(numbered, None)
                    if job is None:
                        break
                    index, (prompt, params) = job
                    results.append(self._enqueue(index, prompt, params))
                if not engine.has_unfinished_requests():
                    return results
                for output in engine.step():
                    if output.finished:
                        index, place = map(int, output.request_id.split(":"))
                        results[index][place] = output
                        self.prompt_tokens += len(output.prompt_token_ids)
                        self.cached_tokens += output.num_cached_tokens or 0
                        finished += 1
                        if progress:
                            progress(finished)
        finally:  # after an error nothing may be left running: a publish needs an idle engine
            engine.abort_request(_unanswered(results))

    def _enqueue(self, index: int, prompt: dict, params: list) -> list[None] | Refused:
        """Queue one prompt once per sampling parameters, as requests `index:0`, `index:1`, ...

        Returns places for the outputs, or why vLLM finds the prompt invalid.
        """
        from vllm.exceptions import VLLMValidationError
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        renderer = self.llm.renderer
        parsed = parse_model_prompt(self.llm.model_config, prompt)
        try:
            # The video is processed once for all answers. Each answer is a request with a seed of its own; that samples the
            # same tokens as one request for several answers whose seeds count up.
            (rendered,) = renderer.render_cmpl([parsed], renderer.default_cmpl_tok_params)
            for place, sampling in enumerate(params):
                self.llm.llm_engine.add_request(
                    f"{index}:{place}", rendered, sampling, lora_request=self.weights.adapter
                )
        except VLLMValidationError as error:
            return Refused(str(error))
        self._count_encoded(prompt)
        return [None] * len(params)

    def _count_encoded(self, prompt: dict) -> None:
        """Count the video of a prompt unless vLLM has its features."""
        if "multi_modal_data" not in prompt or self.spec.rollout.vision != "engine":
            return
        if self.weights.encoder_resets != self._seen_resets:
            self._seen_resets = self.weights.encoder_resets
            self._cached_videos.clear()
        (name,) = prompt.get("multi_modal_uuids", {}).get("video", [None])
        # vLLM hashes the frames of a video without a name; here it counts as a new one each time
        self.encoded += name is None or name not in self._cached_videos
        if name is not None:
            self._cached_videos.add(name)


def _unanswered(results: list[list[Any] | Refused]) -> list[str]:
    """Return the ids of the requests whose place is still empty."""
    ids = []
    for index, entry in enumerate(results):
        if isinstance(entry, Refused):
            continue
        for place, output in enumerate(entry):
            if output is None:
                ids.append(f"{index}:{place}")
    return ids


def _given_logprob(entry: list[Any] | Refused, token: int) -> float:
    """Return the log-prob of `token` as the one next token of a prompt."""
    if isinstance(entry, Refused):
        raise ContractError(
            "prompt and response within the engine's limits", entry.reason, "Raise rollout.max_model_len."
        )
    return entry[0].outputs[0].logprobs[0][int(token)].logprob


def _too_long(output: Any, limit: int | None) -> Refused | None:
    reason = over_limit(len(output.prompt_token_ids), limit)
    return Refused(reason) if reason else None


def _group_logprobs(output: Any, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Return [K] float32: the log of the probability of each group of tokens; a token that is twice in a group counts once."""
    by_token = output.outputs[0].logprobs[0]
    sums = []
    for group in groups:
        logprobs = [by_token[token].logprob for token in dict.fromkeys(group)]
        sums.append(np.logaddexp.reduce(logprobs))
    return np.array(sums, np.float32)


def runs_eagerly(rollout: Rollout, cuda: bool) -> bool:
    """Return whether vLLM runs the model without CUDA graphs; `cuda`: whether this process sees a GPU."""
    return not cuda if rollout.enforce_eager == "auto" else rollout.enforce_eager


def _keep_compiled() -> None:
    """Let torch's compiler keep its results in a folder that all engines of the node share.

    It takes the temporary folder of the moment, headers when it is imported and the rest at its first use. In the engine's
    own folder every engine would compile for 20 s.
    """
    # Both come before the engine's own folder becomes the temporary one: the import fixes the place of the headers, the call
    # that of everything else.
    import torch._inductor.codecache  # noqa: F401
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    cache_dir()  # writes the folder into the environment, where it stays


def _build_llm(spec: EngineSpec) -> Any:
    """Return a vLLM instance for video prompts, whose log-probs are those of the distribution sampled from."""
    import torch
    from vllm import LLM

    rollout = spec.rollout
    return LLM(
        model=spec.model_path,
        dtype=spec.dtype,
        seed=spec.seed,
        max_model_len=rollout.max_model_len,
        max_num_seqs=rollout.max_num_seqs,
        tensor_parallel_size=rollout.tensor_parallel_size,
        enforce_eager=runs_eagerly(rollout, torch.cuda.is_available()),
        # vLLM reserves memory for the largest prompt that these allow
        limit_mm_per_prompt={"image": 0, "video": 1},
        load_format="safetensors",  # "auto" would take files that have to be unpickled
        enable_mm_embeds=rollout.vision == "shared",
        # on the device vLLM would take mean and deviation from the image processor, for videos too
        mm_device_do_normalize=False,
        # of the distribution sampled from: after bans, temperature, top-k and top-p
        logprobs_mode="processed_logprobs",
        worker_extension_cls="actors.receiver.WeightReceiver",
        disable_log_stats=True,
        # a prompt whose beginning is cached is computed in other parts, with other last bits
        enable_prefix_caching=not spec.deterministic,
        **_memory_options(rollout, torch.cuda.is_available()),
        **_optional_options(spec),
    )


def _memory_options(rollout: Rollout, cuda: bool) -> dict[str, Any]:
    if not cuda:
        return {
            "kv_cache_memory_bytes": int(rollout.cpu_kv_cache_gib * 2**30),
            # a prompt that is computed in two steps takes back one draw of its seed, which CPU generators cannot do
            # ("CPU Generator does not use offset")
            "enable_chunked_prefill": False,
        }
    options: dict[str, Any] = {
        # a share of the whole device, whatever else is on it; kv_cache_gib replaces it by a size
        "gpu_memory_utilization": rollout.gpu_memory_utilization,
        "enable_sleep_mode": rollout.sleep_level > 0,
    }
    if rollout.kv_cache_gib is not None:
        options["kv_cache_memory_bytes"] = int(rollout.kv_cache_gib * 2**30)
    return options


def _optional_options(spec: EngineSpec) -> dict[str, Any]:
    """Return the options of vLLM that are left at its defaults unless ours ask for something."""
    options: dict[str, Any] = {}
    if spec.lora_rank is not None:
        rank = min(rank for rank in ADAPTER_RANKS if rank >= spec.lora_rank)
        # on a CPU the adapter kernels cost in proportion to the rank: not simply the largest
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
    # vLLM's blocks have 128 positions on a CPU: shorter prompts share no prefix
    if spec.rollout.block_size is not None:
        options["block_size"] = spec.rollout.block_size
    if spec.rollout.tensor_parallel_size > 1:
        # Inside a placement group vLLM would choose Ray and wait for bundles that this actor already holds.
        options["distributed_executor_backend"] = "mp"
    return options
