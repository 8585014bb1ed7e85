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
    """The files of a run, and how their rows are checked."""

    root: str = "{run}/data"
    """Folder that all relative paths in the files below, and every `video` in their rows, start from. Every node must
    see it."""
    sft: str = "sft.jsonl"
    """Conversations for supervised fine-tuning: `{"id", "video", "messages": [{"role", "content"}, ...], "captions"?}`."""
    pairs: str = "pairs.jsonl"
    """Preference pairs for the reward model: `{"pair_id", "video", "question", "captions"?, "chosen", "rejected"}`."""
    pairs_eval: str | None = None
    """Held-out preference pairs. If it is null, the pairs of `reward.eval_fraction` of the videos in `pairs` are held
    out."""
    prompts: str = "prompts.jsonl"
    """Prompts for PPO: `{"prompt_id", "video", "question", "answer"?, "captions"?}`."""
    eval: str = "eval.jsonl"
    """Held-out prompts for evaluation, in the form of `prompts`."""
    captions: str | None = None
    """File that `rlaif caption` writes and every stage reads dense captions from. If it is null, stages use the
    `captions` of the rows."""
    candidates: str = "{run}/feedback/candidates.jsonl"
    """File that `rlaif sample` writes: the answers to be judged."""
    labels: str = "{run}/feedback/labels.jsonl"
    """File that `rlaif label` writes: the judge's verdicts on the candidates."""
    max_prompt_tokens: int = Field(4096, ge=1)
    """Longest prompt, in tokens, visual tokens included. Longer prompts are counted, named and skipped; they are never
    cut."""
    check_s: float = Field(30.0, ge=0)
    """Time, in seconds, for decoding the videos that are used first, before anything expensive starts. Videos that break
    later are left out and counted when a stage meets them; `rlaif data check --decode` decodes all of them."""
    strict: bool = False
    """Stop at any bad row or video instead of counting and skipping it (also `--strict`)."""


class Video(Section):
    """How videos become frames, and how much memory the frames may use."""

    num_frames: int = Field(8, ge=1)
    """Frames per video, evenly spaced over its length, first and last included. A row whose video has fewer frames is
    skipped as an error."""
    height: int | None = None
    """Height in pixels to resize frames to, together with `width`; null keeps the stored size. The model's processor may
    resize again."""
    width: int | None = None
    """Width in pixels to resize frames to, together with `height`; null keeps the stored size."""
    # Every process has a cache of its own, so the budget counts once per learner rank and reward actor of a node.
    feature_cache_bytes: int = Field(512 * 1024**2, ge=1)
    """Byte budget for processed videos in each learner rank and reward actor."""
    decode_threads: int | None = Field(None, ge=1)
    """Number of videos that the frame store decodes at a time, each in a process of about 80 MB; null: the cores of its
    node."""
    decode_timeout_s: float = Field(600.0, gt=0)
    """Longest time, in seconds, to read or decode one video. When it is over, the decoder is ended and the row of the
    video is an error."""
    store_bytes: int = Field(2 * 1024**3, ge=1)
    """Byte budget of the frame store. Beyond it, the least recently used frames are evicted and decoded again on demand."""
    feature_store_bytes: int = Field(2 * 1024**3, ge=1)
    """Byte budget for the output of frozen vision towers, shared by all processes. Beyond it, the least recently used
    features are evicted and computed again on demand."""


class Lora(Section):
    """Low-rank adapters."""

    # vLLM serves adapters of rank 512 at most.
    r: int = Field(64, ge=1, le=512)
    """Rank of the adapter."""
    alpha: float = 16.0
    """Scale of the adapter: its output is multiplied by alpha / r."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Probability with which each input of the adapter is dropped in training."""
    targets: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), min_length=1
    )
    """Linear layers of the language model that get an adapter, by name."""


class Model(Section):
    """How models compute, and what is trained besides the language model."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of weights and activations. Optimizer state is float32 in any case."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of all models. auto: cuda if torch sees a GPU, else cpu."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them: less memory, more time."""
    train_vision: bool = False
    """Train the vision tower. Needs full weights: an adapter is of the language model only."""
    train_projector: bool = False
    """Train the projector between vision tower and language model. Needs full weights."""


class Optim(Section):
    """AdamW and its learning rate."""

    lr: float = Field(1e-5, gt=0)
    """Learning rate after the warm-up."""
    projector_lr: float | None = Field(None, gt=0)
    """Learning rate of the projector if it is trained (`train_projector`), on the same schedule; null: `lr`."""
    # 0.95 is usual for language models; torch's default of 0.999 remembers a thousand steps, more than a short run has.
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's first and second moment."""
    # Below this scale of gradients, Adam's steps shrink with them: it matters if losses are scaled down.
    eps: float = 1e-8
    """Number that AdamW adds to its denominator, which keeps it above zero."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    warmup_steps: int = Field(0, ge=0)
    """Length of the linear warm-up, in optimizer steps (in `ppo`: in the unit of `ppo.schedule_per`)."""
    warmup_ratio: float = Field(0.0, ge=0, le=1)
    """Length of the warm-up as a share of all steps, rounded up. Used if `warmup_steps` is 0."""
    warmup_from_zero: bool = False
    """Give the first step the rate 0, as the schedules of transformers do, instead of lr / warmup_steps."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Course of the learning rate after the warm-up. cosine and linear decay to `min_lr_ratio` at the last step."""
    min_lr_ratio: float = Field(0.0, ge=0.0, le=1.0)
    """Learning rate of the last step, as a share of `lr`."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Largest norm of a gradient; a larger one is scaled down to it."""
    max_skipped_steps: int = Field(2, ge=0)
    """Largest number of steps in a row with an infinite or NaN gradient. Each is skipped and counted; one more stops the
    run."""


class Saving(Section):
    """When checkpoints are written."""

    every: int = Field(0, ge=0)
    """Number of steps or iterations between checkpoints; 0: only one at the end."""
    keep: int = Field(2, ge=1)
    """Number of newest complete checkpoints to keep. An older one is removed only after a newer one is complete."""


class Sft(Section):
    """Supervised fine-tuning (`rlaif sft`)."""

    init: str = "{run}/base"
    """Model to start from: a Hugging Face directory or hub name."""
    lora: Lora | None = None
    """Adapter to train, which is merged at the export; null: train full weights."""
    train_vision: bool | None = None
    """Overrides `model.train_vision` in this stage, unless it is null."""
    train_projector: bool | None = None
    """Overrides `model.train_projector` in this stage, unless it is null."""
    steps: int = Field(1000, ge=1)
    """Number of optimizer steps."""
    batch_size: int = Field(32, ge=1)
    """Conversations per optimizer step, over all ranks."""
    prompt_loss_weight: float = Field(0.0, ge=0, lt=1)
    """Weight in the loss of a token of the user's turns, beside 1 for a token of the assistant's turns; 0: user's turns
    are not trained on."""
    tokens_per_microbatch: int = Field(16384, ge=1)
    """Largest number of positions, padding included, in one forward pass of a rank."""
    optim: Optim = Optim()
    """Optimizer and learning rate."""
    save: Saving = Saving()
    """When checkpoints are written."""


class Reward(Section):
    """Training of a reward model (`rlaif reward`): one scalar per dimension, read at the last token of question, context and answer."""

    preset: Preset = "modern"
    """Source of this section's defaults: the ones listed here (modern), or those of the system with that name
    (docs/presets.md). Options that are set win."""
    init: str = "{run}/sft/export"
    """Model to start from. It may be larger than the policy; its own tokenizer and processor are used."""
    lora: Lora | None = Lora()
    """Adapter to train; null: train full weights."""
    train_vision: bool | None = None
    """Overrides `model.train_vision` in this stage, unless it is null."""
    train_projector: bool | None = None
    """Overrides `model.train_projector` in this stage, unless it is null."""
    dimensions: tuple[str, ...] = Field(("overall",), min_length=1)
    """Dimensions of the preferences to learn, each by one output of the head. A row without a dimension is about
    `overall`."""
    context: Literal["captions", "none", "shuffled"] = "captions"
    """Content of `{context}` in the prompt: the dense captions of the video, nothing, or the captions of another video
    (a control)."""
    captions_template: str = "context : {captions}\n"
    """Text of the captions in the prompt; `{captions}` is the captions joined by `captions_separator`."""
    captions_separator: str = " "
    """Text between two captions."""
    prompt_template: str = "{context}{question}"
    """User turn before the answer. `{question}` must be here or in `evaluation_turn`, and so must `{context}` unless
    `context` is none."""
    evaluation_turn: str = ""
    """Second user turn, after the answer, for example to ask for a grade as VLM-RLAIF does; it may hold `{context}`.
    Empty: there is none."""
    verdict: str = ""
    """Beginning of the reply to `evaluation_turn`; the scalar is read at its last token. Empty: the scalar is read
    before the reply."""
    max_caption_tokens: int = Field(1024, ge=0)
    """Token budget for captions. Those beyond it are left out whole, never cut."""
    centering: Literal["none", "mean_abs", "squared"] = "mean_abs"
    """Regulariser that keeps scores near zero: |mean(r_w + r_l)| over a micro-batch (mean_abs, VLM-RLAIF), or mean(r^2)
    over both answers (squared, SafeSora)."""
    centering_coef: float = Field(1e-3, ge=0)
    """Weight of `centering` in the loss."""
    margin: Literal["none", "record"] = "none"
    """record: the scores of a pair should differ by more than `margin_coef` times the row's own `margin`, or 0 if it has
    none."""
    margin_coef: float = Field(1.0, ge=0)
    """Factor of a row's margin, from the judge's unit to the unit of the scores."""
    head_init: Literal["normal", "uniform"] = "normal"
    """Initial weights of the new head: normal with standard deviation 1 / (hidden size + 1), or torch's uniform within 1
    / sqrt(hidden size). The bias is 0."""
    steps: int = Field(1000, ge=1)
    """Number of optimizer steps, if `epochs` is 0."""
    epochs: int = Field(0, ge=0)
    """Number of passes over the pairs; 0: train for `steps`."""
    batch_size: int = Field(32, ge=1)
    """Pairs per optimizer step, over all ranks."""
    tokens_per_microbatch: int = Field(16384, ge=1)
    """Largest number of positions, padding included, in one forward pass of a rank."""
    optim: Optim = Optim()
    """Optimizer and learning rate."""
    eval_every: int = Field(100, ge=0)
    """Number of steps between measurements on the held-out pairs; 0: only one at the end."""
    eval_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of the videos whose pairs are held out if `data.pairs_eval` is null."""
    export: Literal["best", "last"] = "best"
    """Weights to export: those of the measurement with the highest accuracy (best; ties go to the earliest), or of the
    last step. The checkpoint of the best measurement is kept."""
    save: Saving = Saving()
    """When checkpoints are written."""

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, options: Any) -> Any:
        return with_preset("reward", options)


class Kl(Section):
    """Penalty for moving away from the reference model."""

    estimator: Literal["k1", "k3"] = "k1"
    """Penalty per token, in nats: k1 is logp - ref, k3 is exp(ref - logp) - 1 - (ref - logp)."""
    clamp: bool = False
    """Raise negative penalties of tokens to 0: max(0, logp - ref) for k1. The result overestimates the KL (VLM-RLAIF)."""
    coef: float = Field(0.05, ge=0)
    """Initial coefficient of the penalty, beta."""
    controller: Literal["fixed", "adaptive"] = "fixed"
    """fixed keeps `coef`; adaptive changes the coefficient to hold the KL at `target`."""
    target: float = Field(6.0, gt=0)
    """Desired KL to the reference, in nats per response. Used by the adaptive controller."""
    horizon: int = Field(10000, ge=1)
    """Number of samples over which the coefficient adapts. Used by the adaptive controller."""
    limit: float = Field(10.0, gt=0)
    """Bound of the mean KL to the reference, in nats (k1) per response. A run that ends above it is reported as out of
    bounds."""


class Sampling(Section):
    """How answers are sampled."""

    # Chat-completions servers accept temperatures from 0 to 2, and so does every sampling option here.
    temperature: float = Field(1.0, ge=0, le=2)
    """Temperature that divides the logits; 0 takes the most likely token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Probability of the most likely tokens that are sampled from; 1: all tokens."""
    top_k: int = Field(0, ge=0)
    """Number of the most likely tokens that are sampled from; 0: all tokens."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer, in tokens."""
    truncate_at: tuple[int | str, ...] = ()
    """Tokens after which a finished answer of PPO is cut, each an id or the text of one token (with or without a space
    before it). The last one listed that occurs in the answer decides, at its first occurrence. A cut answer counts as
    one without an end-of-turn token."""


class Terms(Section):
    """Named parts that are added to the score of an answer."""

    no_eos: float = 0.0
    """Added to the score if the answer did not end with an end-of-turn token: it reached `max_tokens` or was cut
    (VLM-RLAIF: -8)."""
    length: float = 0.0
    """Added to the score, multiplied by response tokens / `max_tokens` (VLM-RLAIF: -10)."""


class Parity(Section):
    """Check that rollout engine and learner compute the same log-probs, on one text prompt and one video prompt."""

    every: int = Field(10, ge=0)
    """Number of publishes between two checks; 0: only the check before the first iteration."""
    limit: float | None = Field(None, gt=0)
    """Largest mean absolute difference of a prompt's log-probs, in nats; null: 1e-4 in float32 and 0.03 in bfloat16."""
    tokens: int = Field(8, ge=1)
    """Length of the compared responses, in tokens. Each token costs one prefill on the engine."""


class Ppo(Section):
    """PPO from AI feedback (`rlaif ppo`)."""

    preset: Preset = "modern"
    """Source of this section's defaults: the ones listed here (modern), or those of the system with that name
    (docs/presets.md). Options that are set win."""
    policy: str = "{run}/sft/export"
    """Model that the policy starts from, which is also the reference of the KL penalty."""
    reward: str | Function = "{run}/reward/export"
    """Source of the scores: an export of `rlaif reward`, or a function (`path`)."""
    reward_weights: dict[str, FiniteFloat] = {}
    """Weight of each dimension of the reward model in the score. Names all dimensions, or none: then each has weight 1."""
    lora: Lora | None = Lora()
    """Adapter to train, whose bytes alone are published to the engines; null: train full weights."""
    train_vision: bool | None = None
    """Overrides `model.train_vision` in this stage, unless it is null."""
    train_projector: bool | None = None
    """Overrides `model.train_projector` in this stage, unless it is null."""
    iterations: int = Field(100, ge=1)
    """Number of rounds of sampling, scoring and learning."""
    prompts_per_iteration: int = Field(64, ge=1)
    """Number of different prompts in an iteration, at most those of `data.prompts`."""
    samples_per_prompt: int = Field(4, ge=1)
    """Number of answers to each prompt."""
    minibatch_size: int = Field(128, ge=1)
    """Samples per optimizer step, over all ranks; it must divide `prompts_per_iteration` times `samples_per_prompt`."""
    epochs: int = Field(1, ge=1)
    """Number of passes over the samples of an iteration."""
    tokens_per_microbatch: int = Field(16384, ge=1)
    """Largest number of positions, padding included, in one forward pass of a rank."""
    sampling: Sampling = Sampling()
    """How answers are sampled."""
    max_staleness: int = Field(0, ge=0)
    """Largest number of versions that a sample may be behind the weights that train on it; 0: synchronous."""
    # In float32 engine and learner agree to about 1e-6; in bfloat16 the difference is large enough to bias the ratio.
    old_logprobs: Literal["auto", "engine", "learner"] = "auto"
    """Source of the log-probs that the ratio starts from. auto: the engine's in float32, else the learner's with
    truncated importance weights."""
    importance_cap: float | None = Field(2.0, gt=0)
    """Cap of the importance weights; null: the learner's log-probs are used without weights."""
    parity: Parity = Parity()
    advantage: Literal["gae", "leave_one_out"] = "gae"
    """gae needs a critic; leave_one_out takes the other answers to a prompt as its baseline and needs none (for small
    GPUs)."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount of later rewards, per token."""
    lam: float = Field(0.95, ge=0, le=1)
    """Lambda of GAE."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of an iteration to mean 0 and standard deviation 1."""
    whiten_eps: Literal["variance", "deviation"] = "variance"
    """Quantity that whitening adds 1e-8 to before it divides: the variance (a spread below 1e-4 then stays small), or
    the standard deviation (VLM-RLAIF)."""
    score_slot: Literal["last_token", "last_slot"] = "last_token"
    """Place of the score: the last token of the answer, or slot `sampling.max_tokens` - 1 of the padded answer. With
    last_slot, rewards and advantages extend over the slots after the end, in which the critic predicts too (gae
    only)."""
    reward_scale: float = Field(1.0, gt=0)
    """Factor of all rewards, penalty included. Not used with `whiten_rewards`."""
    whiten_rewards: bool = False
    """Divide rewards by their standard deviation over all ranks; the mean is kept (gae only)."""
    loss_mean: Literal["tokens", "slots"] = "tokens"
    """What the losses and the whitening of advantages average over: response tokens, or all `sampling.max_tokens` slots
    of every answer."""
    clip: float = Field(0.2, gt=0)
    """The probability ratio is clipped to 1 - clip and 1 + clip."""
    value_clip: float = Field(0.2, gt=0)
    """Largest change of the critic's prediction from the old one, in the unit of `value_clip_unit`."""
    # An absolute range that suits returns around 1 would stop a critic whose returns are around 100.
    value_clip_unit: Literal["running_scale", "absolute"] = "running_scale"
    """Unit of `value_clip`: the running standard deviation of returns, or one unit of reward."""
    value_coef: float = Field(1.0, gt=0)
    """Factor of the value loss. The critic has an optimizer of its own, so it matters only through gradient clipping and
    Adam's eps."""
    target_kl: float | None = None
    """Bound of the mean approximate KL to the sampling policy, in nats per token; beyond it the epochs of an iteration
    end early. null: no bound."""
    entropy_coef: float = 0.0
    """Weight of the policy's entropy, which is maximised."""
    kl: Kl = Kl()
    """Penalty for moving away from the reference model."""
    terms: Terms = Terms()
    schedule_per: Literal["step", "iteration"] = "step"
    """Unit that warm-up and schedule of the learning rates count: optimizer steps, or iterations."""
    optim: Optim = Optim()
    """Optimizer and learning rate of the policy."""
    critic_optim: Optim = Optim()
    """Optimizer and learning rate of the critic."""
    critic_init: Literal["auto", "reward", "policy"] = "auto"
    """Weights that the critic starts from. auto: the reward model's if it has the policy's base, else the policy's. The
    value head starts at zero in any case."""
    critic_warmup: int = Field(0, ge=0)
    """Number of first iterations that train only the critic."""
    max_reward_failures: float = Field(0.2, ge=0, le=1)
    """Largest share of an iteration's samples without a reward; beyond it the run stops. Prompts that cannot be answered
    count in `max_prompt_failures` instead."""
    max_prompt_failures: float = Field(0.5, ge=0, le=1)
    """Largest share of unusable prompts; beyond it the run stops. A prompt that turns out to be unusable is replaced by
    another one and left out from then on."""
    reward_timeout_s: float = Field(900.0, gt=0)
    """Longest time, in seconds, that a reward actor may take for one batch of answers. Beyond it the actor is replaced
    and its batch is scored once more, prompt by prompt; answers to a prompt that takes too long again have no reward."""
    eval_every: int = Field(0, ge=0)
    """Number of iterations between evaluations on `eval.in_training` prompts, of which the best checkpoint is kept; 0:
    never."""
    save: Saving = Saving(every=10)
    """When checkpoints are written."""

    @property
    def counts_padding(self) -> bool:
        """Return whether slots after an answer's end count, in rewards and advantages or in the losses."""
        return self.score_slot == "last_slot" or self.loss_mean == "slots"

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, options: Any) -> Any:
        return with_preset("ppo", options)


class Eval(Section):
    """How policies are measured, by `rlaif eval` and during PPO."""

    descriptions: tuple[str, ...] = ("eval_descriptions.jsonl",)
    """Files of held-out prompts whose answers `rlaif eval context` has judged."""
    checker: str | None = None
    """Function that says which claims are true, as `package.module:function`. It is called as f(prompt, response) and
    returns `{"claims", "false_claims", "truths", "recalled"}` or `{"correct"}`."""
    in_training: int = Field(64, ge=1)
    """Number of prompts that are evaluated during training."""
    seed: int = 1234
    """Seed of sampled answers."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer, in tokens."""


class Logging(Section):
    """Destinations of metrics and of printed output, besides the run directory."""

    # YAML reads a bare `off` as false, see the validator below.
    wandb: Literal["auto", "off"] = "auto"
    """auto: report metrics to Weights & Biases, online if you are logged in, else offline. A failure of W&B never stops
    a run."""

    @field_validator("wandb", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return off(value)

    project: str = "rlaif"
    """Project in Weights & Biases."""
    foreign: Literal["log", "terminal"] = "log"
    """Destination of the output of libraries and actors: `logs/<stage>.log` in the run directory, or the terminal."""


class Demo(Section):
    """The demo (`rlaif demo`): a world of moving shapes and a tiny model that describes them."""

    scratch: bool = False
    """Train the base model too (`read_steps`, `pretrain_steps`), instead of starting from the one that comes with rlaif."""
    base: str = "{run}/base"
    """Directory that the untrained model is written to."""
    read_steps: int = Field(600, ge=1)
    """Number of first steps of training the base model, on reading.jsonl, which is text alone."""
    pretrain_steps: int = Field(900, ge=1)
    """Number of steps on pretrain.jsonl after that; `sft.init` is the result. `model` says whether tower and projector
    train."""
    pretrain_scenes: int = Field(2000, ge=1)
    """Number of scenes that reading.jsonl and pretrain.jsonl are about."""
    train_scenes: int = Field(1200, ge=1)
    """Number of scenes for supervised fine-tuning, the first of `pretrain_scenes`."""
    prompt_scenes: int = Field(512, ge=1)
    """Number of scenes whose answers are judged, and that PPO asks about."""
    eval_scenes: int = Field(256, ge=1)
    """Number of held-out scenes."""
    seeds: int = Field(1, ge=1)
    """Number of seeds that the PPO part is repeated with."""


class Config(Section):
    """All options of one run."""

    # `rlaif options` and docs/options.md list sections in this order, which is roughly that of the stages.
    name: str
    """Name of the run, whose directory is `<storage>/<name>`."""
    storage: str = "runs"
    """Absolute path or URI that run directories are created under. A relative path is refused inside a Ray job, whose
    working directory is temporary."""
    seed: int = 0
    """Seed that everything random in a run is derived from."""
    deterministic: bool = False
    """Compute the same bits from the same configuration and, with `ppo.max_staleness` 0, across a kill and a resume.
    Prompts are answered one at a time and without a prefix cache, and kernels whose results vary are refused: slower."""
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
