"""Environment variables of every actor: thread counts and engine switches that libraries read once, at import."""

from __future__ import annotations

from typing import Literal

_NOISY = ("torch.distributed.c10d_logger", "vllm.triton_utils.dispatcher")
"""Modules that warn at every call about names that their callers in other libraries still use."""


def actor_env(
    threads: int = 1, device: Literal["cpu", "cuda"] = "cpu", dtype: Literal["float32", "bfloat16"] | None = None
) -> dict[str, str]:
    """Return environment variables for a Ray actor, to be passed as `runtime_env={"env_vars": actor_env(...)}`.

    They must be set before torch or vLLM is imported, so the creator of the actor sets them.

    Args:
        threads: OpenMP threads of the actor's own process.
        device: what the actor computes on.
        dtype: the dtype of its model, if it has one.
    """
    env = {
        "OMP_NUM_THREADS": str(threads),
        # Waiting threads that spin make a process that shares its cores several times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "0",
        "TOKENIZERS_PARALLELISM": "false",
        # On the CPU vLLM warns several times per request that it ignores thread counts.
        "VLLM_LOGGING_LEVEL": "ERROR",
        # vLLM's engine core runs in the actor's own process, so that weights reach it without another copy.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # A bar for every model an actor loads, and warnings from inside libraries, would bury the run's own lines.
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "PYTHONWARNINGS": ",".join(f"ignore::FutureWarning:{module}" for module in _NOISY),
    }
    if dtype == "float32":
        # By default Triton multiplies float32 matrices in TF32, with 10 bits of mantissa: attention and adapter kernels on
        # a GPU would then differ by more than the parity gate allows.
        env["TRITON_F32_DEFAULT"] = "ieee"
    if device == "cpu":
        env["DS_ACCELERATOR"] = "cpu"
        # Ray 2.60 does not hide GPUs from actors that reserved none.
        env["CUDA_VISIBLE_DEVICES"] = ""
        # vLLM's default pins one thread to each core it sees, including those of other actors: with busy cores that
        # samples about twenty times slower.
        env["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return env
