"""The sampling engine: vLLM in this process, fixed to one weight version at a time. No Ray in here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from actors.contents import Contents
from actors.requests import Completion, Refused, Request, Sent, Visual, completion, over_limit, vllm_prompt
from actors.weights import EngineWeights
from rlaif.config.cluster import Rollout
from rlaif.config.schema import Sampling
from rlaif.errors import ContractError
from rlaif.io.tempdirs import Scratch

SCRATCH = "rlaif-engine-"
"""How the folders of engines' temporary files are called."""

ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM reserves adapter memory for; a smaller adapter fits into the next larger one."""

Job = tuple[dict, list]
"""A vLLM prompt, and the sampling parameters of each answer wanted for it."""


@dataclass(frozen=True)
class EngineSpec:
    """What one engine serves."""

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
        self.spec = spec
        self._files = Scratch(SCRATCH)
        _keep_compiled()
        with self._files.holding():  # vLLM leaves a file there that it never removes
            self.llm = _build_llm(spec)
        self.weights = EngineWeights(self.llm, Contents(spec.model_path, spec.dtype, spec.lora_rank, spec.lora_targets))
        if spec.adapter is not None:
            self.weights.serve(spec.adapter)
        self._visual = Visual.of(self.llm.model_config.hf_config, self.llm.get_tokenizer())
        self.encoded = 0
        """Videos that went through the engine's own encoder so far; features that were handed over do not."""
        self.prompt_tokens = self.cached_tokens = 0
        """Of the prompts so far, and how many of them were not computed, because a prompt before began with the same."""
        self._count_encoded()

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
            version: the weights that must be in place.
            progress: called with the number of finished answers whenever it changes.

        Returns:
            One entry per request, in order: its completions in the order of its seeds, or why it was refused.

        Raises:
            ContractError: on another version, or when the engine expanded a prompt in an unexpected way.
        """
        self.weights.check_version(version)
        sent: list[Sent] = []

        def jobs() -> Iterator[Job]:
            for request in requests:
                sent.append(Sent.of(request))
                yield vllm_prompt(request), [self._params(sampling, seed) for seed in request.seeds]

        results = self._run(jobs(), progress)
        return [
            entry if isinstance(entry, Refused) else [completion(request, out, self._visual) for out in entry]
            for request, entry in zip(sent, results, strict=True)
        ]

    def logprobs(
        self, requests: Sequence[Request], responses: Sequence[Sequence[int]], sampling: Sampling, version: int
    ) -> list[np.ndarray]:
        """[T] float32: what `generate` would have reported had it sampled these responses (seeds are ignored).

        Each token is the next token of a prompt of its own, so that bans, temperature, top-k and top-p apply as they do
        when sampling (prompt log-probs skip them). That costs one prefill per token: meant for the few fixed texts on
        which both sides of a publish are compared. Tokens outside top-k or top-p have minus infinity.

        Raises:
            ContractError: on another version, or a text that is too long for the engine.
        """
        self.weights.check_version(version)
        pairs = [(q, r, t) for q, r in zip(requests, responses, strict=True) for t in range(len(r))]
        options = {"max_tokens": 1, "logprobs": None}
        results = iter(
            self._run(
                (vllm_prompt(q, r[:t]), [self._params(sampling, 0, logprob_token_ids=[int(r[t])], **options)])
                for q, r, t in pairs
            )
        )
        return [np.array([_given_logprob(next(results), token) for token in r], np.float32) for r in responses]

    def choices(
        self,
        requests: Iterable[Request],
        tokens: Sequence[Sequence[int]],
        version: int,
        max_prompt_tokens: int | None = None,
    ) -> list[np.ndarray | Refused]:
        """How the first token of an answer is chosen: [K] float32 log-probs per request, one for each group in `tokens`.

        A group holds the spellings of one choice; their probabilities add up. One prefill per request, nothing is sampled.
        A prompt of more than `max_prompt_tokens` positions is Refused.
        """
        self.weights.check_version(version)
        wanted = sorted({token for group in tokens for token in group})
        params = self._params(Sampling(max_tokens=1), None, logprobs=None, logprob_token_ids=wanted)
        results = self._run((vllm_prompt(request), [params]) for request in requests)
        return [
            entry
            if isinstance(entry, Refused)
            else _within(entry[0], max_prompt_tokens) or _group_logprobs(entry[0], tokens)
            for entry in results
        ]

    def _params(self, sampling: Sampling, seed: int | None, **overrides: Any) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        options = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_tokens,
            "seed": seed,
            "logprobs": 0,  # only the sampled token's
            # -100 instead of minus infinity: the widest bias vLLM takes; what is left of the probability is e-100
            "logit_bias": {token: -100.0 for token in self.spec.banned_ids} or None,
        }
        return SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **(options | overrides))

    def _run(self, jobs: Iterable[Job], progress: Callable[[int], None] | None = None) -> list[list[Any] | Refused]:
        """Outputs of every job, in order; jobs are taken while fewer answers than the engine's batch are open."""
        engine = self.llm.llm_engine
        room = 1 if self.spec.deterministic else self.spec.rollout.max_num_seqs
        results: list[list[Any] | Refused] = []
        numbered, finished = enumerate(jobs), 0
        try:
            while True:
                while engine.get_num_unfinished_requests() < room and (job := next(numbered, None)) is not None:
                    results.append(self._enqueue(job[0], *job[1]))
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

        Places for the outputs, or why vLLM finds the prompt invalid.
        """
        from vllm.exceptions import VLLMValidationError
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        renderer = self.llm.renderer
        parsed = parse_model_prompt(self.llm.model_config, prompt)
        try:
            # the video is processed once for all answers
            (rendered,) = renderer.render_cmpl([parsed], renderer.default_cmpl_tok_params)
            for place, sampling in enumerate(params):
                self.llm.llm_engine.add_request(
                    f"{index}:{place}", rendered, sampling, lora_request=self.weights.adapter
                )
        except VLLMValidationError as error:
            return Refused(str(error))
        return [None] * len(params)

    def _count_encoded(self) -> None:
        """Count whenever vLLM's scheduler makes room for the encoder's output of a video that is not cached."""
        manager = self.llm.llm_engine.engine_core.engine_core.scheduler.encoder_cache_manager
        allocate = manager.allocate

        def counted(request: Any, input_id: int) -> None:
            self.encoded += self.spec.rollout.vision == "engine"
            allocate(request, input_id)

        manager.allocate = counted


def _unanswered(results: list[list[Any] | Refused]) -> list[str]:
    """Ids of the requests whose place is still empty."""
    entries = [(index, entry) for index, entry in enumerate(results) if isinstance(entry, list)]
    return [f"{index}:{place}" for index, entry in entries for place, output in enumerate(entry) if output is None]


def _given_logprob(entry: list[Any] | Refused, token: int) -> float:
    """The log-prob of `token` as the one next token of a prompt."""
    if isinstance(entry, Refused):
        raise ContractError(
            "prompt and response within the engine's limits", entry.reason, "raise rollout.max_model_len"
        )
    return entry[0].outputs[0].logprobs[0][int(token)].logprob


def _within(output: Any, limit: int | None) -> Refused | None:
    reason = over_limit(len(output.prompt_token_ids), limit)
    return Refused(reason) if reason else None


def _group_logprobs(output: Any, tokens: Sequence[Sequence[int]]) -> np.ndarray:
    found = output.outputs[0].logprobs[0]
    groups = [[found[token].logprob for token in dict.fromkeys(group)] for group in tokens]
    return np.array([np.logaddexp.reduce(group) for group in groups], np.float32)


def runs_eagerly(rollout: Rollout, cuda: bool) -> bool:
    """Return whether vLLM runs the model without CUDA graphs; `cuda`: whether this process sees a GPU."""
    return not cuda if rollout.enforce_eager == "auto" else rollout.enforce_eager


def _keep_compiled() -> None:
    """Let torch's compiler keep its results where all engines of the node find them.

    It takes the temporary folder of the moment, headers when it is imported and the rest at its first use. In the engine's
    own folder every engine would compile for 20 s.
    """
    import torch._inductor.codecache  # noqa: F401
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    cache_dir()  # writes the folder into the environment, where it stays


def _build_llm(spec: EngineSpec) -> Any:
    """A vLLM instance for video prompts, whose log-probs are those of the distribution sampled from."""
    import torch
    from vllm import LLM

    rollout = spec.rollout
    options: dict[str, Any] = {}
    if spec.lora_rank is not None:
        rank = min(rank for rank in ADAPTER_RANKS if rank >= spec.lora_rank)
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
    if torch.cuda.is_available():
        options |= {"gpu_memory_utilization": rollout.gpu_memory_utilization}
        if rollout.kv_cache_gib is not None:
            options |= {"kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30)}
        options |= {"enable_sleep_mode": rollout.sleep_level > 0}
    else:
        options |= {"kv_cache_memory_bytes": int(rollout.cpu_kv_cache_gib * 2**30)}
        # a prompt that is computed in two steps takes back one draw of its seed, which CPU generators cannot do
        options |= {"enable_chunked_prefill": False}
    if rollout.block_size is not None:
        options |= {"block_size": rollout.block_size}
    if rollout.tensor_parallel_size > 1:
        # Inside a placement group vLLM would choose Ray and wait for bundles that this actor already holds.
        options |= {"distributed_executor_backend": "mp"}
    return LLM(
        model=spec.model_path,
        dtype=spec.dtype,
        seed=spec.seed,
        max_model_len=rollout.max_model_len,
        max_num_seqs=rollout.max_num_seqs,
        tensor_parallel_size=rollout.tensor_parallel_size,
        enforce_eager=runs_eagerly(rollout, torch.cuda.is_available()),
        limit_mm_per_prompt={"image": 0, "video": 1},
        load_format="safetensors",  # "auto" would take files that have to be unpickled
        enable_mm_embeds=rollout.vision == "shared",
        mm_device_do_normalize=False,  # it would take mean and deviation from the image processor, for videos too
        logprobs_mode="processed_logprobs",
        worker_extension_cls="actors.receiver.WeightReceiver",
        disable_log_stats=True,
        enable_prefix_caching=not spec.deterministic,  # a prompt that finds its beginning cached is computed in other parts
        **options,
    )
