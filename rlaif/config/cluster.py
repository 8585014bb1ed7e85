"""Options of what runs where: the engine of a rollout actor, the actors of each role, the cluster they are on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlaif.config.section import Section


class Rollout(Section):
    """The vLLM engine of each rollout actor."""

    vision: Literal["engine", "shared"] = "engine"
    """engine: vLLM gets frames and runs its own vision tower. shared: it gets what tower and projector make of a video,
    computed once for all roles with the same ones. Both must stay frozen, and vLLM must take features for the family."""
    max_model_len: int = Field(8192, ge=1)
    """Longest prompt with its answer, in tokens; at most the model's positions."""
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    """Share of a GPU's memory that an engine takes."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """KV cache of a GPU engine; None: what `gpu_memory_utilization` leaves. Set it where learners share the GPU."""
    cpu_kv_cache_gib: float = Field(1.0, gt=0)
    """KV cache of a CPU engine."""
    block_size: int | None = Field(None, ge=1)
    """Tokens per block of the KV cache; None: vLLM's choice (128 on a CPU). Prompts share whole blocks only."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that share one engine's weights."""
    enforce_eager: Literal["auto", True, False] = "auto"
    """Run the model without CUDA graphs, which costs two to three times the decoding time on a GPU. auto: on a CPU only."""
    max_num_seqs: int = Field(256, ge=1)
    """Answers that an engine generates at a time."""
    transport: Literal["object_store", "nccl", "ipc"] = "object_store"
    """How full weights reach the engines: through Ray's object store (anywhere; adapters always), or from GPU to GPU:
    nccl where learners and engines have GPUs of their own, ipc where each engine shares a learner rank's. Both hold the new
    weights beside the old ones until they are checked; an actor they do not reach gets the version through the object store."""
    sleep_level: Literal[0, 1, 2] = 0
    """What engines that share their GPU with learners give up during the update: 0 nothing, 1 their cache and (to host
    memory) weights, 2 both without a copy (full weights only: the next publish brings them)."""


class RoleResources(Section):
    """The actors of one role."""

    actors: int = Field(1, ge=1)
    """How many there are."""
    gpus: float = Field(0.0, ge=0)
    """GPUs per actor; fractions share one."""
    cpus: float = Field(1.0, ge=0)
    """CPUs that Ray reserves per actor."""
    accelerator: str | None = None
    """Ray accelerator type (label ray.io/accelerator-type), e.g. A100."""
    threads: int = Field(1, ge=1)
    """OpenMP and torch threads per actor."""


class Cluster(Section):
    """What runs where."""

    address: str | None = None
    """None: the cluster of the surrounding Ray job or RAY_ADDRESS, else a private local one that ends with the run."""
    rollout: RoleResources = RoleResources()
    """Engines that sample answers."""
    reward: RoleResources = RoleResources()
    """Actors that score answers."""
    learner: RoleResources = RoleResources(actors=2)
    """Ranks that train."""
    deadline_s: float = Field(600.0, gt=0)
    """How long to wait for placement before the run stops and says which role waits for what."""
    collective_timeout_s: float = Field(1800.0, gt=0)
    """How long learner ranks wait for each other, and the run for a rollout actor's answers or its receipt of weights."""
    learner_timeout_s: float = Field(14400.0, gt=0)
    """How long one call to the learner ranks may take: loading, an update on all samples, a checkpoint, an export."""
    grace_s: float | None = Field(None, ge=0)
    """How long a run that is asked to end (SIGTERM, Ctrl-C) may take to end its iteration and save a checkpoint; a second
    signal does not wait. None: 20 seconds, 1 inside a Ray job, which `ray job stop` kills after 3."""
    zero_stage: Literal[1, 2, 3] = 2
    """What DeepSpeed shares out among the ranks: 1 optimizer state, 2 gradients too, 3 weights too."""
    offload_optimizer: bool = False
    """Keep optimizer state in host memory (GPU learners)."""
    object_store_gib: float = Field(1.0, gt=0)
    """Object store of a private local cluster."""
