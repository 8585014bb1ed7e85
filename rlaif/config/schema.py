"""Every option of every stage: typed, frozen, documented. One YAML file holds one run's options."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, FiniteFloat, field_validator, model_validator

from rlaif.config.cluster import Cluster, Rollout
from rlaif.config.feedback import (
    Agreement,
    Bench,
    Candidates,
    Caption,
    Context,
    Label,
    Pairs,
    Score,
    Winrate,
)
from rlaif.config.presets import Preset, with_preset
from rlaif.config.section import Function, Section, off


class Data(Section):
    """The files of a run, and how rows are checked."""

    root: str = "{run}/data"
    """Folder every path in the files below (and every `video` in their rows) is relative to; every node must see it."""
    sft: str = "sft.jsonl"
    """Conversations for supervised fine-tuning: {"id", "video", "messages": [{"role", "content"}, ...], "captions"?}."""
    pairs: str = "pairs.jsonl"
    """Preferences for the reward model: {"pair_id", "video", "question", "captions"?, "chosen", "rejected"}."""
    pairs_eval: str | None = None
    """Held-out preferences; without it the pairs of `reward.eval_fraction` of the videos are held out."""
    prompts: str = "prompts.jsonl"
    """Prompts for PPO: {"prompt_id", "video", "question", "answer"?, "captions"?}."""
    eval: str = "eval.jsonl"
    """Held-out prompts for evaluation, same form as `prompts`."""
    captions: str | None = None
    """Where `rlaif caption` writes and every stage reads dense captions; None: the rows' own `captions`."""
    candidates: str = "{run}/feedback/candidates.jsonl"
    """Where `rlaif sample` writes answers to be judged."""
    labels: str = "{run}/feedback/labels.jsonl"
    """Where `rlaif label` writes what the judge says of them."""
    max_prompt_tokens: int = Field(4096, ge=1)
    """Prompts longer than this after visual expansion are counted, named and skipped; a media span is never cut."""
    check_s: float = Field(30.0, ge=0)
    """Decode the videos that will be used first for at most this many seconds before anything expensive starts. Files that
    break later are left out and counted when they are met; `rlaif data check --decode` decodes everything."""
    strict: bool = False
    """Make every bad row or video fatal instead of counted and skipped (also `--strict`)."""


class Video(Section):
    """How videos become frames, and how many are kept in memory."""

    num_frames: int = Field(8, ge=1)
    """Frames per video, sampled uniformly over its length; a shorter video is an error of that row."""
    height: int | None = None
    """Resize frames to this height in pixels (None: as stored). Processors may resize again."""
    width: int | None = None
    """Resize frames to this width in pixels (None: as stored)."""
    feature_cache_bytes: int = Field(512 * 1024**2, ge=1)
    """Processed videos each learner rank and reward actor keeps, in bytes."""
    decode_threads: int | None = Field(None, ge=1)
    """Videos that the frame store decodes at a time, each in a process of about 80 MB (None: the cores of its node)."""
    decode_timeout_s: float = Field(600.0, gt=0)
    """A video that takes longer to read or decode is an error of its row; its decoder is ended."""
    store_bytes: int = Field(2 * 1024**3, ge=1)
    """Byte budget of the frame store; beyond it the least recently used frames are evicted and decoded again on demand."""
    feature_store_bytes: int = Field(2 * 1024**3, ge=1)
    """Byte budget for what frozen vision towers made of videos, shared by all processes; the rest as with `store_bytes`."""


class Lora(Section):
    """Low-rank adapters."""

    r: int = Field(64, ge=1, le=512)
    """Rank of the adapter."""
    alpha: float = 16.0
    """The adapter's output is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Share of the adapter's inputs that are dropped in training."""
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """Linear layers of the language model that get an adapter."""


class Model(Section):
    """How models compute, and what trains besides the language model."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of weights and activations; optimizer state is float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where torch sees one."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """The implementation that transformers uses."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""
    train_vision: bool = False
    """Train the vision tower (full weights only)."""
    train_projector: bool = False
    """Train the projector between tower and language model (full weights only)."""


class Optim(Section):
    """AdamW and its learning rate."""

    lr: float = Field(1e-5, gt=0)
    """Learning rate after the warm-up."""
    projector_lr: float | None = Field(None, gt=0)
    """Rate of the projector, where it trains (`train_projector`), on the same schedule; None: `lr`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates."""
    eps: float = 1e-8
    """AdamW's term that keeps the denominator above zero."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up, in optimizer steps (of `ppo`: in what `ppo.schedule_per` says)."""
    warmup_ratio: float = Field(0.0, ge=0, le=1)
    """Warm-up as a share of all steps, rounded up, where `warmup_steps` is 0."""
    warmup_from_zero: bool = False
    """The first step has rate 0, as in transformers' schedules, instead of lr / warmup_steps."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What follows the warm-up, down to `min_lr_ratio` at the last step."""
    min_lr_ratio: float = Field(0.0, ge=0.0, le=1.0)
    """Learning rate of the last step, as a share of `lr`."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients with a larger norm are scaled down to it."""
    max_skipped_steps: int = Field(2, ge=0)
    """Steps in a row whose gradient is infinite or NaN: each is skipped and counted, one more stops the run."""


class Saving(Section):
    """When checkpoints are written."""

    every: int = Field(0, ge=0)
    """Checkpoint every this many steps or iterations (0: only at the end)."""
    keep: int = Field(2, ge=1)
    """Newest complete checkpoints to keep; pruned only after a newer one is complete."""


class Sft(Section):
    """Supervised fine-tuning (`rlaif sft`)."""

    init: str = "{run}/base"
    """Model to start from: a Hugging Face directory or hub name."""
    lora: Lora | None = None
    """Train an adapter (merged at export) instead of full weights."""
    train_vision: bool | None = None
    """Overrides `model.train_vision` for this stage."""
    train_projector: bool | None = None
    """Overrides `model.train_projector` for this stage."""
    steps: int = Field(1000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(32, ge=1)
    """Conversations per optimizer step, over all ranks."""
    prompt_loss_weight: float = Field(0.0, ge=0, lt=1)
    """What a token of the user's turns counts in the loss, beside 1 for one of the assistant's (0: not trained on)."""
    tokens_per_microbatch: int = Field(16384, ge=1)
    """Padded positions per forward and rank."""
    optim: Optim = Optim()
    """Optimizer and learning rate."""
    save: Saving = Saving()
    """When checkpoints are written."""


class Reward(Section):
    """A reward model: one scalar per dimension, read at the last token of question, context and answer."""

    preset: Preset = "modern"
    """Where the defaults below come from: here, or the system named (docs/presets.md); what is set wins."""
    init: str = "{run}/sft/export"
    """Model to start from; may be larger than the policy (its own tokenizer and processor are used)."""
    lora: Lora | None = Lora()
    """Train an adapter or, when null, full weights."""
    train_vision: bool | None = None
    """Overrides `model.train_vision` for this stage."""
    train_projector: bool | None = None
    """Overrides `model.train_projector` for this stage."""
    dimensions: tuple[str, ...] = Field(("overall",), min_length=1)
    """What is learned of the preferences, each by an output of the head; a row that does not say is about `overall`."""
    context: Literal["captions", "none", "shuffled"] = "captions"
    """What fills the caption slot: the video's dense captions, nothing, or another video's captions (a control)."""
    captions_template: str = "context : {captions}\n"
    """How the captions enter the prompt; `{captions}` is the captions joined by `captions_separator`."""
    captions_separator: str = " "
    """What stands between two captions."""
    prompt_template: str = "{context}{question}"
    """The user turn that precedes the answer."""
    evaluation_turn: str = ""
    """A second user turn after the answer (the seed system asks for a quality score there); may hold `{context}`."""
    verdict: str = ""
    """How the reply to `evaluation_turn` begins; the scalar is read at its last token instead of before the reply."""
    max_caption_tokens: int = Field(1024, ge=0)
    """Captions beyond this budget are left out whole, never cut."""
    centering: Literal["none", "mean_abs", "squared"] = "mean_abs"
    """Regulariser of the scores: 1e-3 |mean(r_w + r_l)| (VLM-RLAIF; over a micro-batch) or mean(s^2) over both (SafeSora)."""
    centering_coef: float = Field(1e-3, ge=0)
    """Weight of `centering` in the loss."""
    margin: Literal["none", "record"] = "none"
    """record: the scores shall differ by more than `margin_coef` times the row's own `margin` (0 where it has none)."""
    margin_coef: float = Field(1.0, ge=0)
    """Factor of a row's margin."""
    head_init: Literal["normal", "uniform"] = "normal"
    """Weights of the new head: normal with deviation 1 / (hidden + 1), or torch's uniform within 1 / sqrt(hidden). Bias 0."""
    steps: int = Field(1000, ge=1)
    """Optimizer steps, unless `epochs` is set."""
    epochs: int = Field(0, ge=0)
    """Passes over the pairs, instead of `steps` (0: `steps`)."""
    batch_size: int = Field(32, ge=1)
    """Pairs per optimizer step, over all ranks."""
    tokens_per_microbatch: int = Field(16384, ge=1)
    """Padded positions per forward and rank."""
    optim: Optim = Optim()
    """Optimizer and learning rate."""
    eval_every: int = Field(100, ge=0)
    """Measure on the held-out pairs every this many steps (0: only at the end)."""
    eval_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of the videos whose pairs are held out if `data.pairs_eval` is not set."""
    export: Literal["best", "last"] = "best"
    """best: the weights of the evaluation with the highest accuracy, whose checkpoint is kept; of equal ones, the first."""
    save: Saving = Saving()
    """When checkpoints are written."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, options: Any) -> Any:
        return with_preset("reward", options)


class Kl(Section):
    """The penalty for moving away from the reference."""

    estimator: Literal["k1", "k3"] = "k1"
    """Per-token penalty: k1 = logp - ref, k3 = exp(ref - logp) - 1 - (ref - logp)."""
    clamp: bool = False
    """A token's penalty is never below 0 (k1 can be): max(0, logp - ref), which is no estimate of the KL any more."""
    coef: float = Field(0.05, ge=0)
    """Initial coefficient beta."""
    controller: Literal["fixed", "adaptive"] = "fixed"
    """Keep `coef`, or adapt it to hold the KL at `target`."""
    target: float = Field(6.0, gt=0)
    """Adaptive controller: wanted KL to the reference, in nats per response."""
    horizon: int = Field(10000, ge=1)
    """Adaptive controller: samples over which the coefficient adapts."""
    limit: float = Field(10.0, gt=0)
    """The run is reported as out of bounds when mean KL per response (nats, k1) ends above this."""


class Sampling(Section):
    """How answers are sampled."""

    temperature: float = Field(1.0, ge=0, le=2)
    """Divides the logits; 0 takes the most likely token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the most likely tokens that make up this probability (1: all)."""
    top_k: int = Field(0, ge=0)
    """0: off."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer, in tokens."""
    truncate_at: tuple[int | str, ...] = ()
    """Cut finished PPO answers behind these tokens: ids, or the text of one token (with or without a space before it).
    The last one listed that occurs decides, at its first occurrence; the answer then counts as one that did not end."""


class Terms(Section):
    """Named parts added to the reward model's score."""

    no_eos: float = 0.0
    """Added when the answer hit `max_tokens` without an end-of-turn token (the seed system: -8)."""
    length: float = 0.0
    """Added times (response tokens / max_tokens) (the seed system: -10)."""


class Parity(Section):
    """Do rollout engine and learner compute the same? Both give log-probs of one text and one video prompt."""

    every: int = Field(10, ge=0)
    """Publishes between two checks (0: only the one before the first iteration)."""
    limit: float | None = Field(None, gt=0)
    """Largest mean absolute difference of a prompt's log-probs, in nats; None: 1e-4 in float32, 0.03 in bfloat16."""
    tokens: int = Field(8, ge=1)
    """Length of the responses compared. Each token is one prefill on the engine."""


class Ppo(Section):
    """PPO from AI feedback (`rlaif ppo`)."""

    preset: Preset = "modern"
    """Where the defaults below come from: here, or the system named (docs/presets.md); what is set wins."""
    policy: str = "{run}/sft/export"
    """Start of the policy, and the reference the KL is measured to."""
    reward: str | Function = "{run}/reward/export"
    """Export of `rlaif reward`, or a function."""
    reward_weights: dict[str, FiniteFloat] = {}
    """Factor of each dimension of the reward model in the score; empty: each counts 1. Names all of them, or none."""
    lora: Lora | None = Lora()
    """Train an adapter (only adapter bytes are published) or, when null, full weights."""
    train_vision: bool | None = None
    """Overrides `model.train_vision` for this stage."""
    train_projector: bool | None = None
    """Overrides `model.train_projector` for this stage."""
    iterations: int = Field(100, ge=1)
    """Rounds of sampling, scoring and learning."""
    prompts_per_iteration: int = Field(64, ge=1)
    """Different prompts of one iteration; at most as many as `data.prompts` has."""
    samples_per_prompt: int = Field(4, ge=1)
    """Answers to each of them."""
    minibatch_size: int = Field(128, ge=1)
    """Samples per optimizer step, over all ranks; divides prompts_per_iteration * samples_per_prompt."""
    epochs: int = Field(1, ge=1)
    """Passes over each iteration's samples."""
    tokens_per_microbatch: int = Field(16384, ge=1)
    """Padded positions per forward and rank."""
    sampling: Sampling = Sampling()
    """How answers are sampled."""
    max_staleness: int = Field(0, ge=0)
    """Versions a sample may be behind the update that trains on it; 0 is synchronous."""
    old_logprobs: Literal["auto", "engine", "learner"] = "auto"
    """Whose log-probs the ratio starts from; auto: the engine's in float32, else the learner's with truncated importance weights."""
    importance_cap: float | None = Field(2.0, gt=0)
    """Limit of those weights; null: the learner's log-probs without weights."""
    parity: Parity = Parity()
    advantage: Literal["gae", "leave_one_out"] = "gae"
    """gae needs the critic; leave_one_out is critic-free (group baseline) for small GPUs."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount of later rewards, per token."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's lambda."""
    whiten_advantages: bool = True
    """Shift and scale an iteration's advantages to mean 0 and deviation 1."""
    whiten_eps: Literal["variance", "deviation"] = "variance"
    """What whitening adds 1e-8 to before it divides: the variance, so that a spread below 1e-4 stays small, or the standard
    deviation (VLM-RLAIF)."""
    score_slot: Literal["last_token", "last_slot"] = "last_token"
    """Where the score lands: on the answer's last token, or on slot `sampling.max_tokens` - 1 of the padded answer; rewards
    and advantages then run over the slots after the end too, where the critic predicts (gae only)."""
    reward_scale: float = Field(1.0, gt=0)
    """Factor of all rewards, penalty included; not applied with `whiten_rewards`."""
    whiten_rewards: bool = False
    """Divide rewards by their standard deviation over all ranks; the mean is kept (gae only)."""
    loss_mean: Literal["tokens", "slots"] = "tokens"
    """What whitening of advantages and the losses count: response tokens, or all `sampling.max_tokens` slots of every answer."""
    clip: float = Field(0.2, gt=0)
    """The probability ratio is clipped to 1 - clip and 1 + clip."""
    value_clip: float = Field(0.2, gt=0)
    """How far the critic's new prediction may move from the old one, in `value_clip_unit`."""
    value_clip_unit: Literal["running_scale", "absolute"] = "running_scale"
    """Unit of `value_clip`: the running standard deviation of returns, or one unit of reward."""
    value_coef: float = Field(1.0, gt=0)
    """Factor of the value loss (it matters through gradient clipping and Adam's eps only: the critic has its own optimizer)."""
    target_kl: float | None = None
    """Stop an iteration's epochs when the mean approximate KL to the sampling policy exceeds this."""
    entropy_coef: float = 0.0
    """Weight of the policy's entropy, which is maximised."""
    kl: Kl = Kl()
    """The penalty for moving away from the reference."""
    terms: Terms = Terms()
    schedule_per: Literal["step", "iteration"] = "step"
    """What the learning rates' warm-up and schedule count: optimizer steps, or iterations."""
    optim: Optim = Optim()
    """Optimizer and learning rate of the policy."""
    critic_optim: Optim = Optim()
    """Optimizer and learning rate of the critic."""
    critic_init: Literal["auto", "reward", "policy"] = "auto"
    """auto: the reward model's weights where its base is the policy's, else the policy's. The value head starts at zero."""
    critic_warmup: int = Field(0, ge=0)
    """Iterations that train only the critic."""
    max_reward_failures: float = Field(0.2, ge=0, le=1)
    """The run stops when more than this share of an iteration's samples has no reward. Prompts that cannot be answered
    count in `max_prompt_failures` instead."""
    max_prompt_failures: float = Field(0.5, ge=0, le=1)
    """A prompt that turns out to be unusable is replaced by another one and left out from then on. The run stops when this
    share of all prompts is exceeded."""
    reward_timeout_s: float = Field(900.0, gt=0)
    """How long a reward actor may take for one batch of answers. One that takes longer is replaced, what it was scoring is
    asked once more prompt by prompt, and answers to a prompt that takes too long again have no reward."""
    eval_every: int = Field(0, ge=0)
    """Evaluate every this many iterations on `eval.in_training` prompts and keep the best checkpoint (0: never)."""
    save: Saving = Saving(every=10)
    """When checkpoints are written."""

    @property
    def counts_padding(self) -> bool:
        """Slots after an answer's end take part: in rewards and advantages, or in the losses."""
        return self.score_slot == "last_slot" or self.loss_mean == "slots"

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, options: Any) -> Any:
        return with_preset("ppo", options)


class Eval(Section):
    """How policies are measured (`rlaif eval`, and during PPO)."""

    descriptions: tuple[str, ...] = ("eval_descriptions.jsonl",)
    """Held-out prompts whose answers `rlaif eval context` has judged."""
    checker: str | None = None
    """`package.module:function` called as f(prompt, response) -> {"claims", "false_claims", "truths", "recalled"} or {"correct"}."""
    in_training: int = Field(64, ge=1)
    """Prompts evaluated during training."""
    seed: int = 1234
    """Seed of sampled answers."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer, in tokens."""


class Logging(Section):
    """Where metrics go, besides the run directory."""

    wandb: Literal["auto", "off"] = "auto"
    """auto: online where the user is logged in, else offline; a W&B failure never stops a run."""

    @field_validator("wandb", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return off(value)

    project: str = "rlaif"
    """W&B project."""
    foreign: Literal["log", "terminal"] = "log"
    """Where the output of libraries and actors goes: to `logs/<stage>.log` in the run directory, or to the terminal."""


class Demo(Section):
    """The embedded default: a world of moving shapes and a tiny model that describes them."""

    scratch: bool = False
    """Make the base model too (`read_steps`, `pretrain_steps`), instead of starting from the one that comes with rlaif."""
    base: str = "{run}/base"
    """Where the untrained model is written."""
    read_steps: int = Field(600, ge=1)
    """Steps of `sft` on reading.jsonl, which is text alone."""
    pretrain_steps: int = Field(900, ge=1)
    """Steps on pretrain.jsonl after that, from which `sft.init` comes; `model` says whether tower and projector train."""
    pretrain_scenes: int = Field(2000, ge=1)
    """Scenes that reading.jsonl and pretrain.jsonl are about."""
    train_scenes: int = Field(1200, ge=1)
    """Scenes of supervised fine-tuning, the first of those."""
    prompt_scenes: int = Field(512, ge=1)
    """Scenes whose answers are judged, and that PPO asks about."""
    eval_scenes: int = Field(256, ge=1)
    """Held-out scenes."""
    seeds: int = Field(1, ge=1)
    """Repeat the PPO part with this many seeds."""


class Config(Section):
    name: str
    """Name of the run: its directory is <storage>/<name>."""
    storage: str = "runs"
    """Absolute path or URI; a relative one is refused inside a Ray job, whose working directory is temporary."""
    seed: int = 0
    """Everything random in a run is derived from it."""
    deterministic: bool = False
    """Same bits from the same configuration, and (with `ppo.max_staleness` 0) across a kill and a resume: prompts are
    answered one at a time and without a prefix cache, and kernels whose results vary are refused. Slower."""
    data: Data = Data()
    video: Video = Video()
    model: Model = Model()
    sft: Sft = Sft()
    caption: Caption = Caption()
    candidates: Candidates = Candidates()
    label: Label = Label()
    pairs: Pairs = Pairs()
    agreement: Agreement = Agreement()
    winrate: Winrate = Winrate()
    reward: Reward = Reward()
    score: Score = Score()
    ppo: Ppo = Ppo()
    rollout: Rollout = Rollout()
    eval: Eval = Eval()
    cluster: Cluster = Cluster()
    logging: Logging = Logging()
    context: Context = Context()
    demo: Demo = Demo()
    bench: Bench = Bench()
