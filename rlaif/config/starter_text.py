"""The text of the configuration that `rlaif init` writes, and what differs between a CPU and a GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Values for one kind of machine."""

    title: str
    model_options: str
    video: str
    sft_lora: str
    sft_rate: str
    ppo_lora: str
    rate: str
    rollout: str
    cluster: str
    iterations: int
    prompts_per_iteration: int
    batch_size: int
    max_model_len: int
    max_tokens: int


CPU = Machine(
    title="on the CPU: good for trying the whole path with a small model and few rows",
    model_options="{dtype: float32, device: cpu}",
    video="{num_frames: 8}",
    sft_lora="{r: 8, alpha: 16}",
    sft_rate="1.0e-4",
    ppo_lora="{r: 8, alpha: 16}",
    rate="1.0e-4",
    rollout="max_num_seqs: 32, cpu_kv_cache_gib: 0.5",
    cluster="""
  learner: {actors: 1, threads: 1}
  rollout: {actors: 1, threads: 1}
  reward: {actors: 1, threads: 1}
  object_store_gib: 0.5""",
    iterations=5,
    prompts_per_iteration=8,
    batch_size=8,
    max_model_len=4096,
    max_tokens=128,
)

ONE_GPU = Machine(
    title="on one GPU with 80 GB, which engine, reward model and learner share; not run on a GPU yet",
    model_options="{dtype: bfloat16, device: cuda, gradient_checkpointing: true}",
    video="{num_frames: 16}",
    sft_lora="{r: 32, alpha: 32}",
    sft_rate="1.0e-4",
    ppo_lora="{r: 64, alpha: 16}",
    rate="2.0e-5",
    rollout="max_num_seqs: 64, gpu_memory_utilization: 0.3, kv_cache_gib: 8",
    cluster="""
  learner: {actors: 1, gpus: 0.5, cpus: 4, threads: 4}
  rollout: {actors: 1, gpus: 0.3, cpus: 4, threads: 4}
  reward: {actors: 1, gpus: 0.2, cpus: 2, threads: 2}
  object_store_gib: 8""",
    iterations=100,
    prompts_per_iteration=32,
    batch_size=16,
    max_model_len=8192,
    max_tokens=512,
)

TEXT = """\
# Your own videos <title>.
# `rlaif check FILE` says everything that is missing or does not fit; `rlaif options [SECTION]` lists all options.
name: <name>                      # results are in <storage>/<name>
storage: <storage>
seed: 0

data:
  root: <root>   # videos in the rows are relative to this folder
<files>
  max_prompt_tokens: <max_prompt_tokens>      # longer prompts are counted, named and skipped

video: <video>           # frames per video, evenly spaced; a video with fewer is skipped

model: <model_options>

# 1. rlaif sft: imitate your conversations
sft:
  init: <model>
  lora: <sft_lora>        # an adapter, merged into the export; null trains all weights, in about four times the memory
  steps: <sft_steps>
  batch_size: <sft_batch>
  optim: {lr: <sft_rate>}

# 2. rlaif reward: learn which answers are preferred
reward:
  init: <policy>
  lora: <ppo_lora>
  context: <context>               # captions: the reward model also reads the rows' dense `captions`
  captions_template: "What happens in the video: {captions}\\n"
  epochs: 3
  batch_size: <pairs_batch>
  optim: {lr: <rate>}

# 3. rlaif ppo: answer, score, learn. The reward may be a function: reward: {path: my_module:my_function}
ppo:
  policy: <policy>
  reward: "{run}/reward/export"<no_pairs>
  lora: <ppo_lora>
  iterations: <iterations>
  prompts_per_iteration: <prompts_per_iteration>        # at most the rows of `prompts`
  samples_per_prompt: <samples>
  minibatch_size: <minibatch_size>              # divides prompts_per_iteration * samples_per_prompt
  sampling: {max_tokens: <max_tokens>}
  optim: {lr: <rate>}
  critic_optim: {lr: <rate>}
  save: {every: 5}

# 4. rlaif eval: the policy before and after
eval: {max_tokens: <max_tokens>}

rollout: {max_model_len: <max_model_len>, <rollout>}

cluster:<cluster>

logging: {wandb: auto}            # online if you are logged in, else offline; "off" turns it off
"""
