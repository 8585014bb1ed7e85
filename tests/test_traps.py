"""Each trap of a library that the code depends on has a comment at its place: a reader may otherwise "simplify" it away."""

from __future__ import annotations

import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAPS = {
    "torchvision registers fake kernels for operators that do not exist": (
        "rlaif/doctor/torchvision_hook.py",
        "schema",
    ),
    "waiting OpenMP threads spin on cores that others need": ("cluster/env.py", "spin"),
    "vLLM pins a thread to every core it sees": ("cluster/env.py", "pins one thread"),
    "vLLM's engine core would be a process of its own": ("cluster/env.py", "engine core"),
    "Ray does not hide GPUs from actors that reserved none": ("cluster/env.py", "does not hide GPUs"),
    "Triton multiplies float32 in TF32": ("cluster/env.py", "TF32"),
    "Ray joins any cluster on the machine": ("cluster/session.py", "would join any cluster"),
    "a head of Ray 2.60 wants a token": ("cluster/session.py", "authentication by token"),
    "Ray ends the process of a thread that calls it at its end": ("cluster/health.py", "status 1"),
    "numpy has no bfloat16": ("cluster/publish.py", "no bfloat16"),
    "a collective without one of its ranks hangs": ("cluster/transfer.py", "hanging"),
    "vLLM normalises videos with the image processor's mean": ("actors/engine.py", "mean and deviation"),
    "a seeded prompt in two steps fails on a CPU": ("actors/engine.py", "does not use offset"),
    "vLLM has no batch-invariant mode on a CPU": ("actors/engine.py", "batch-invariant"),
    "a sampled placeholder breaks the learner's forward": ("actors/engine.py", "placeholder"),
    "InternVL reports another id at visual positions": ("actors/requests.py", "InternVL"),
    "the encoder cache outlives new weights": ("actors/weights.py", "old tower's output"),
    "the prefix cache is not reset while requests run": ("actors/weights.py", "returns False"),
    "packed weights cannot be read back on a CPU": ("actors/receiver.py", "cannot be read back"),
    "an adapter of the same id is not loaded again": ("actors/weights.py", "load_inplace"),
    "a tied head stays stale unless it is sent": ("learners/state.py", "tied head"),
    "DeepSpeed's load_checkpoint unpickles": ("learners/state.py", "unpickles"),
    "the state_dict of ZeRO-3 holds empty shards": ("learners/state.py", "empty shards"),
    "DeepSpeed clips at 1.0 unless it is set": ("learners/roles.py", "clips at 1.0"),
    "set_adapter switches gradients of other adapters off": ("learners/roles.py", "set_adapter"),
    "checkpointing recomputes under the active adapter": ("learners/learner.py", "gradient checkpointing"),
    "vLLM's IPC refuses a tensor larger than its buffer": ("learners/group.py", "IPC"),
    "transformers shifts the text after a video": ("rlaif/models/vlm.py", "transformers' own"),
    "PEFT makes adapters of a bfloat16 model float32": ("rlaif/models/vlm.py", "PEFT would make"),
    "transformers unpickles weights of other formats": ("rlaif/models/vlm.py", "unpickle"),
    "Qwen2.5-VL needs second_per_grid_ts": ("rlaif/models/video_features.py", "StopIteration"),
    "vLLM expects other names of LLaVA's tower": ("rlaif/models/family.py", "one more level"),
    "safetensors refuses tensors that share memory": ("rlaif/io/tensors.py", "share memory"),
    "smaps_rollup is slow to read": ("rlaif/io/memory.py", "smaps_rollup"),
    "decord's seeking returns wrong frames": ("rlaif/video/files.py", "decord"),
    "decord picks the larger of two streams": ("rlaif/video/container.py", "larger of two streams"),
    "x264's macroblock tree differs from run to run": ("rlaif/worlds/shapes/render.py", "macroblock tree"),
}
"""Trap: (file that depends on it, words of the comment there)."""


def comments(source: str) -> str:
    """Return the text of a module's comments, joined."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts = [token.string.strip("#: ") for token in tokens if token.type == tokenize.COMMENT]
    return " ".join(texts)


@pytest.mark.parametrize("trap", TRAPS)
def test_trap_has_a_comment_at_its_place(trap):
    file, words = TRAPS[trap]
    assert words in comments((ROOT / file).read_text())


def test_code_and_docstrings_are_no_comments():
    assert "joined" not in comments('"""joined"""\njoined = 1\n')
    assert "one line and the next" in comments("# one line\n# and the next\n")
