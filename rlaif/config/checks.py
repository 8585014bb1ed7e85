"""Checks that pydantic can't do: options that must fit together. Each check returns the problems that it found."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from rlaif.config.schema import Config, Ppo, Reward
from rlaif.config.section import Function

Check = Callable[[Config], list[str]]

_LONGEST_NAME = 200
"""Bytes of one part of a run's name, below the 255 that file systems allow."""


def problems_of(config: Config, stage: str | None = None) -> list[str]:
    """Return every combination of options that cannot run, as sentences that name the options.

    `stage` restricts the checks to what that stage reads; None or an unknown stage means all of them.
    """
    problems: list[str] = []
    for check in [_run, _cluster, *_checks_of(config, stage)]:
        problems += check(config)
    # `_context` repeats checks of other sections, so a problem can come up twice.
    distinct = list(dict.fromkeys(problems))
    return distinct + _devices(config, stage)


def _checks_of(config: Config, stage: str | None) -> list[Check]:
    if stage in ("eval agreement", "eval winrate"):
        return [_label] if _asks_judge(config, stage) else []
    by_stage: dict[str, list[Check]] = {
        "sft": [_sft],
        "reward": [_reward],
        "ppo": [_ppo, _rollout],
        "label": [_label],
        "caption": [_caption],
        "sample": [],
        "pairs": [],
        "score": [_score],
        # The study sets contexts itself, so it needs more of the same options than the other stages do.
        "eval context": [_caption, _reward, _context],
    }
    every: list[Check] = [_sft, _reward, _ppo, _rollout, _label, _caption, _score]
    return every if stage is None else by_stage.get(stage, every)


def _asks_judge(config: Config, stage: str) -> bool:
    """Return whether `eval agreement` or `eval winrate` asks the judge instead of the reward model."""
    section = config.agreement if stage == "eval agreement" else config.winrate
    return section.by == "judge"


def _divides(small_name: str, small: int, large_name: str, large: int) -> list[str]:
    if large % small == 0:
        return []
    return [f"{small_name} ({small}) must divide {large_name} ({large})"]


def _run(config: Config) -> list[str]:
    problems = []
    if not _is_directory_name(config.name):
        problems.append(f"name: {config.name!r} must be a plain directory name")
    for option, path in (("storage", config.storage), ("data.root", config.data.root)):
        if "$" in path:
            problems.append(f"{option}: {path!r} has a shell variable, which is not expanded in a file: write the path")
    if (config.video.height is None) != (config.video.width is None):
        problems.append("video.height and video.width must be set together")
    return problems


def _is_directory_name(name: str) -> bool:
    """Return whether a name is a relative path that stays inside `storage`."""
    parts = name.split("/")
    longest = max(len(os.fsencode(part)) for part in parts)
    leaves = not {"", ".", ".."}.isdisjoint(parts)
    return name.isprintable() and longest <= _LONGEST_NAME and not leaves


def _cluster(config: Config) -> list[str]:
    # A fraction is allowed: ranks may share a GPU with engines.
    gpus = config.cluster.learner.gpus
    if gpus > 1:
        return [f"cluster.learner.gpus ({gpus}) must be at most 1: one rank drives one GPU; add actors instead"]
    return []


def _devices(config: Config, stage: str | None) -> list[str]:
    """Return the roles that run a model on `model.device=cuda` but have no GPU."""
    if config.model.device != "cuda":
        return []
    problems = []
    for role in _roles(config, stage):
        if getattr(config.cluster, role).gpus == 0:
            problems.append(f"model.device is cuda, but cluster.{role}.gpus is 0")
    return problems


def _roles(config: Config, stage: str | None) -> list[str]:
    """Return the roles of a stage that run a model."""
    scoring = [] if isinstance(config.ppo.reward, Function) else ["reward"]
    if stage in ("sft", "reward"):
        return ["learner"]
    if stage in ("caption", "sample"):
        return ["rollout"]
    if stage == "label":
        return ["rollout"] if isinstance(config.label.judge, str) else []
    if stage == "pairs":
        return []
    if stage == "score":
        return ["reward"]
    if stage == "eval context":
        return ["rollout", "learner"]
    if stage in ("eval agreement", "eval winrate"):
        return ["rollout"] if _asks_judge(config, stage) else scoring
    return ["rollout", *scoring, "learner"]


def _sft(config: Config) -> list[str]:
    ranks = config.cluster.learner.actors
    problems = _divides("cluster.learner.actors", ranks, "sft.batch_size", config.sft.batch_size)
    return problems + _training(config, "sft")


def _reward(config: Config) -> list[str]:
    reward = config.reward
    ranks = config.cluster.learner.actors
    problems = _divides("cluster.learner.actors", ranks, "reward.batch_size", reward.batch_size)
    if reward.verdict and not reward.evaluation_turn:
        problems.append("reward.verdict begins the reply to reward.evaluation_turn, which is empty")
    if twice := _duplicates(reward.dimensions):
        problems.append(f"reward.dimensions names {', '.join(twice)} twice")
    return problems + _reward_prompt(reward) + _training(config, "reward")


def _reward_prompt(reward: Reward) -> list[str]:
    """Return the slots that the reward model's prompt lacks: without them it would silently not see the text."""
    turns = reward.prompt_template + reward.evaluation_turn
    problems = []
    if "{question}" not in turns:
        problems.append("reward.prompt_template needs {question}")
    if reward.context == "none":
        return problems
    if "{context}" not in turns:
        problems.append(
            f"reward.context={reward.context} needs {{context}} in reward.prompt_template or evaluation_turn, "
            "or set reward.context=none"
        )
    if "{captions}" not in reward.captions_template:
        problems.append(f"reward.captions_template needs {{captions}} with reward.context={reward.context}")
    return problems


def _score(config: Config) -> list[str]:
    twice = _duplicates(config.score.models)
    return [f"score.models names {', '.join(twice)} twice"] if twice else []


def _duplicates(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _ppo(config: Config) -> list[str]:
    ppo = config.ppo
    samples = ppo.prompts_per_iteration * ppo.samples_per_prompt
    ranks = config.cluster.learner.actors
    problems = _divides("ppo.minibatch_size", ppo.minibatch_size, "prompts_per_iteration * samples_per_prompt", samples)
    problems += _divides("cluster.learner.actors", ranks, "ppo.minibatch_size", ppo.minibatch_size)
    # The baseline of an answer is the mean of the other answers to its prompt.
    if ppo.advantage == "leave_one_out" and ppo.samples_per_prompt < 2:
        problems.append("ppo.samples_per_prompt must be at least 2 with ppo.advantage=leave_one_out")
    problems += _ppo_sampling(ppo)
    if ppo.critic_warmup and ppo.advantage == "leave_one_out":
        problems.append("ppo.critic_warmup needs a critic: set ppo.advantage=gae")
    problems += _slots(config)
    if ppo.eval_every and config.eval.checker is None:
        problems.append("ppo.eval_every needs eval.checker, the function that says which claims are true")
    if ppo.reward_weights and isinstance(ppo.reward, Function):
        problems.append("ppo.reward_weights are of a reward model's dimensions; a function weighs its own parts")
    return problems + _training(config, "ppo")


def _ppo_sampling(ppo: Ppo) -> list[str]:
    problems = []
    if ppo.sampling.temperature == 0:
        problems.append("ppo.sampling.temperature must be above 0: PPO learns from samples, not from the mode")
    if ppo.sampling.top_p < 1 or ppo.sampling.top_k > 0:
        problems.append(
            "ppo.sampling.top_p must be 1 and top_k 0: cut distributions have log-probs no learner reproduces"
        )
    return problems


def _slots(config: Config) -> list[str]:
    ppo = config.ppo
    problems = []
    if ppo.advantage != "gae":
        if ppo.score_slot == "last_slot":
            problems.append("ppo.score_slot=last_slot shapes rewards per token: set ppo.advantage=gae")
        if ppo.whiten_rewards:
            problems.append("ppo.whiten_rewards=true shapes rewards per token: set ppo.advantage=gae")
    elif ppo.counts_padding and config.model.attention == "flash_attention_2":
        # Flash attention unpads the batch, so padding positions get no hidden state to predict from.
        problems.append(
            "model.attention=flash_attention_2 computes nothing after an answer's end, where the critic predicts with "
            "ppo.score_slot=last_slot or ppo.loss_mean=slots: set model.attention=sdpa"
        )
    return problems


def _trains_tower(config: Config, stage: str) -> bool:
    """Return whether a stage trains the vision tower or the projector."""
    section = getattr(config, stage)
    vision = config.model.train_vision if section.train_vision is None else section.train_vision
    return vision or _trains_projector(config, stage)


def _trains_projector(config: Config, stage: str) -> bool:
    section = getattr(config, stage)
    return config.model.train_projector if section.train_projector is None else section.train_projector


def _training(config: Config, stage: str) -> list[str]:
    """Return contradictions between a training stage's adapter, its learning rates and the parts of the model it trains."""
    section = getattr(config, stage)
    problems = []
    if section.lora is not None and _trains_tower(config, stage):
        problems.append(
            f"{stage}.lora trains adapters of the language model only: set train_vision and train_projector false, "
            f"or {stage}.lora null"
        )
    for name in ("optim", "critic_optim"):
        rate = getattr(getattr(section, name, None), "projector_lr", None)
        if rate is not None and not _trains_projector(config, stage):
            problems.append(
                f"{stage}.{name}.projector_lr is the rate of a projector that is not trained: set train_projector"
            )
    return problems


def _rollout(config: Config) -> list[str]:
    rollout = config.rollout
    answer = config.ppo.sampling.max_tokens
    width = rollout.tensor_parallel_size
    gpus = config.cluster.rollout.gpus
    problems = []
    # vLLM counts the prompt and its answer against `max_model_len`.
    if rollout.max_model_len <= answer:
        problems.append(
            f"rollout.max_model_len ({rollout.max_model_len}) must exceed ppo.sampling.max_tokens ({answer}) "
            "by the prompt's length"
        )
    if rollout.vision == "shared" and config.ppo.lora is None and _trains_tower(config, "ppo"):
        problems.append(
            "rollout.vision=shared hands over features of a frozen tower and projector, but model.train_vision or "
            "train_projector (or ppo's) is true: set rollout.vision=engine"
        )
    problems += _transport(config) + _sleep(config)
    # An engine that is split over GPUs gets whole ones; a single one may share its GPU.
    if (width > 1 or gpus > 1) and gpus != width:
        problems.append(f"cluster.rollout.gpus ({gpus}) must equal rollout.tensor_parallel_size ({width})")
    return problems


def _transport(config: Config) -> list[str]:
    """Check that nccl has GPUs of their own for both roles, and ipc GPUs that they share."""
    transport = config.rollout.transport
    if transport == "object_store":
        return []
    problems = []
    if config.ppo.lora is not None:
        problems.append(
            f"rollout.transport={transport} moves full weights: set ppo.lora null, or use object_store for an adapter"
        )
    for role in ("rollout", "learner"):
        gpus = getattr(config.cluster, role).gpus
        if transport == "nccl":
            fits = gpus >= 1
            need = "at least 1: a GPU of its own"
        else:
            fits = 0 < gpus < 1
            need = "above 0 and below 1: a part of a shared GPU"
        if not fits:
            problems.append(f"rollout.transport={transport} needs cluster.{role}.gpus ({gpus:g}) {need}")
    return problems


def _sleep(config: Config) -> list[str]:
    level = config.rollout.sleep_level
    problems = []
    if level and config.cluster.rollout.gpus == 0:
        problems.append(f"rollout.sleep_level={level} frees a GPU, but cluster.rollout.gpus is 0")
    # With a batch in flight, an engine would have to sample while it sleeps.
    if level and config.ppo.max_staleness:
        problems.append("rollout.sleep_level needs ppo.max_staleness=0: otherwise engines sample while learners update")
    if level == 2 and config.ppo.lora is not None:
        problems.append("rollout.sleep_level=2 forgets the base that an adapter needs: set it to 1")
    return problems


def _caption(config: Config) -> list[str]:
    caption = config.caption
    requirements: list[tuple[str, str, tuple[str, ...]]] = []
    if caption.dependent:
        requirements.append(("dependent=true", "{previous}", ("prompt", "previous_slot")))
    if caption.conditioned:
        requirements.append(("conditioned=true", "{question}", ("prompt", "question_slot")))
    if caption.aggregate == "summarise":
        requirements.append(("aggregate=summarise", "{captions}", ("summary_prompt",)))
    problems = []
    for option, slot, templates in requirements:
        for template in templates:
            if slot not in getattr(caption, template):
                problems.append(f"caption.{template} needs {slot} with caption.{option}")
    return problems


def _label(config: Config) -> list[str]:
    label = config.label
    problems = []
    if not isinstance(label.judge, Function):
        problems += _judge_prompts(config)
    elif label.method == "claims":
        problems.append(
            "label.method=claims asks a judge about each claim; a function compares answers: set label.method=pairwise"
        )
    # Log-probs of the two words as the next token decide; words that differ in case only are no decision.
    for words in (label.choices, label.yes_no):
        if words[0].casefold() == words[1].casefold():
            problems.append("label.choices and label.yes_no must be two different words each")
            break
    return problems


def _judge_prompts(config: Config) -> list[str]:
    """Return the slots that the prompts of a judge on vLLM or behind a server lack."""
    label = config.label
    slots = ("{a}", "{b}") if label.method == "pairwise" else ("{claim}",)
    template = label.pairwise_prompt if label.method == "pairwise" else label.claim_prompt
    problems = []
    if missing := [slot for slot in slots if slot not in template]:
        problems.append(f"label.{label.method}'s prompt needs {' and '.join(missing)}")
    if label.context != "none" and "{context}" not in template:
        problems.append(f"label.context={label.context} needs {{context}} in the prompt, or set label.context=none")
    if label.context != "none" and "{captions}" not in label.captions_template:
        problems.append(f"label.captions_template needs {{captions}} with label.context={label.context}")
    if label.method == "claims" and label.split == "model" and "{answer}" not in label.split_prompt:
        problems.append("label.split_prompt needs {answer} with label.split=model")
    return problems


def _context(config: Config) -> list[str]:
    """Check the options of `eval context`, which sets `label.context` and `reward.context` itself: both need captions."""
    label = config.label.model_copy(update={"context": "captions"})
    reward = config.reward.model_copy(update={"context": "captions"})
    problems = _label(config.model_copy(update={"label": label})) + _reward_prompt(reward)
    if isinstance(config.label.judge, Function):
        problems.append(
            "eval context compares what a judge reads, and a function reads no captions: set label.judge to a model or server"
        )
    elif config.context.num_frames and not config.label.show_video:
        problems.append("context.num_frames is of a video that label.show_video=false does not show")
    return problems
