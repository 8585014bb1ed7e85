"""Options of the hardware side: the engine of a rollout actor, the actors of each role, and the cluster they run on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlaif.config.section import Section


class Rollout(Section):
    """The vLLM engine of each rollout actor."""

    vision: Literal["engine", "shared"] = "engine"
    """engine: vLLM gets frames and runs its own vision tower. shared: it gets the output of tower and projector,
    computed once per video for all roles that have the same ones. Both must then stay frozen, and vLLM must accept
    features for the model family (docs/families.md)."""
    max_model_len: int = Field(8192, ge=1)
    """Longest prompt with its answer, in tokens; at most the positions that the model has."""
    gpu_memory_utilization: float = Field(0.85, gt=0, le=1)
    """Share of a GPU's memory that an engine uses."""
    kv_cache_gib: float | None = Field(None, gt=0)
    """Size of the KV cache of a GPU engine, in GiB; null: what `gpu_memory_utilization` leaves. Set it if learners share
    the GPU."""
    cpu_kv_cache_gib: float = Field(1.0, gt=0)
    """Size of the KV cache of a CPU engine, in GiB."""
    # A prefix shorter than a block is never shared, so vLLM's 128 on a CPU shares little between short prompts.
    block_size: int | None = Field(None, ge=1)
    """Tokens per block of the KV cache; null: vLLM's choice (128 on a CPU). Prompts share whole blocks only."""
    tensor_parallel_size: int = Field(1, ge=1)
    """Number of GPUs that share the weights of one engine."""
    enforce_eager: Literal["auto", True, False] = "auto"
    """Run the model without CUDA graphs, which makes decoding on a GPU two to three times slower. auto: on a CPU only."""
    max_num_seqs: int = Field(256, ge=1)
    """Largest number of answers that an engine generates at a time."""
    transport: Literal["object_store", "nccl", "ipc"] = "object_store"
    """How full weights reach the engines: through Ray's object store (works everywhere; adapters always use it), or from
    GPU to GPU. nccl needs GPUs of their own for learners and engines; ipc needs engines that share the GPU of a
    learner rank. Both hold the new weights beside the old ones until they are checked. An actor that they do not
    reach gets the version through the object store."""
    # Level 2 is of no use with adapters: a publish brings the adapter, but not the base that the engine has discarded.
    sleep_level: Literal[0, 1, 2] = 0
    """What engines that share their GPU with learners release during the update: 0 nothing; 1 their cache, and their
    weights to host memory; 2 both without a copy (full weights only: the next publish brings them)."""


class RoleResources(Section):
    """The actors of one role."""

    actors: int = Field(1, ge=1)
    """Number of actors."""
    gpus: float = Field(0.0, ge=0)
    """GPUs per actor; actors with fractions share one."""
    cpus: float = Field(1.0, ge=0)
    """CPUs that Ray reserves per actor."""
    accelerator: str | None = None
    """Ray accelerator type that the actors need (label ray.io/accelerator-type), such as A100; null: any."""
    # By default torch takes a thread per core in every process. Several actors on one machine then spin on the same cores, which
    # made an engine and a training step ten to twenty times slower.
    threads: int = Field(1, ge=1)
    """OpenMP and torch threads per actor."""


class Cluster(Section):
    """The Ray cluster, and the resources of each role."""

    address: str | None = None
    """Address of a Ray cluster to join. null: the cluster of the surrounding Ray job or of RAY_ADDRESS, else a private
    local one that ends with the run."""
    rollout: RoleResources = RoleResources()
    """Engines that sample answers."""
    reward: RoleResources = RoleResources()
    """Actors that score answers."""
    learner: RoleResources = RoleResources(actors=2)
    """Ranks that train."""
    deadline_s: float = Field(600.0, gt=0)
    """Longest time, in seconds, to wait for the placement of actors. After it the run stops and says which role waits
    for what."""
    # 30 minutes is also torch's default for a process group. Without a bound, one dead rank leaves the others hanging.
    collective_timeout_s: float = Field(1800.0, gt=0)
    """Longest time, in seconds, that learner ranks wait for each other, and that the run waits for a rollout actor to
    answer or to receive weights."""
    learner_timeout_s: float = Field(14400.0, gt=0)
    """Longest time, in seconds, of one call to the learner ranks: loading, an update on all samples, a checkpoint, an
    export."""
    # `ray job stop` sends SIGTERM, then SIGKILL after 3 seconds; most schedulers leave 30.
    grace_s: float | None = Field(None, ge=0)
    """Time, in seconds, in which a run that gets SIGTERM or Ctrl-C may finish its iteration and save a checkpoint; a
    second signal ends it at once. null: 20 seconds, or 1 inside a Ray job, which `ray job stop` kills after 3."""
    # 2 suits adapters, whose gradients and states are small; 3 is for full weights that do not fit on one GPU.
    zero_stage: Literal[1, 2, 3] = 2
    """Parts of the training state that DeepSpeed divides among the ranks: 1 optimizer state, 2 also gradients, 3 also
    weights."""
    offload_optimizer: bool = False
    """Keep optimizer state in host memory (GPU learners)."""
    object_store_gib: float = Field(1.0, gt=0)
    """Size of the object store of a private local cluster, in GiB."""
