"""What pydantic can't see: options that must fit together. Each check returns the problems it finds."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rlaif.config.schema import Config, Reward
from rlaif.config.section import Function


def problems_of(config: Config, stage: str | None = None) -> list[str]:
    """Every combination of options that cannot run, as sentences naming the options."""
    checks = {"sft": [_sft], "reward": [_reward], "ppo": [_ppo, _rollout], "label": [_label]}
    checks |= {"caption": [_caption], "sample": [], "pairs": [], "score": [_score]}
    checks |= {f"eval {name}": [_label] if _judged(config, name) else [] for name in ("agreement", "winrate")}
    every = list(dict.fromkeys(check for group in checks.values() for check in group))
    checks |= {"eval context": [_caption, _reward, _context]}  # asks more than the same options need elsewhere
    chosen = checks.get(stage, every)
    found = [problem for check in [_run, _cluster, *chosen] for problem in check(config)]
    return list(dict.fromkeys(found)) + _devices(config, stage)


def _judged(config: Config, stage: str | None) -> bool:
    """Whether `rlaif eval agreement` or `winrate` asks the judge, not the reward model."""
    return stage in ("agreement", "winrate") and getattr(config, stage).by == "judge"


def _divides(small_name: str, small: int, large_name: str, large: int) -> list[str]:
    if large % small == 0:
        return []
    return [f"{small_name} ({small}) must divide {large_name} ({large})"]


def _run(config: Config) -> list[str]:
    problems = []
    parts = config.name.split("/")
    if (
        {"", ".", ".."} & set(parts)
        or not config.name.isprintable()
        or max(len(os.fsencode(part)) for part in parts) > 200
    ):
        problems.append(f"name: {config.name!r} must be a plain directory name")
    for option, path in (("storage", config.storage), ("data.root", config.data.root)):
        if "$" in path:
            problems.append(f"{option}: {path!r} has a shell variable, which is not expanded in a file: write the path")
    if (config.video.height is None) != (config.video.width is None):
        problems.append("video.height and video.width must be set together")
    return problems


def _cluster(config: Config) -> list[str]:
    learner = config.cluster.learner
    if learner.gpus > 1:
        return [f"cluster.learner.gpus ({learner.gpus}) must be at most 1: one rank drives one GPU; add actors instead"]
    return []


def _devices(config: Config, stage: str | None) -> list[str]:
    """Every role of the stage that runs a model needs a GPU where `model.device` says so."""
    scored = [] if isinstance(config.ppo.reward, Function) else ["reward"]
    roles = ["learner"] if stage in ("sft", "reward") else ["rollout", *scored, "learner"]
    roles = ["rollout"] if stage in ("caption", "sample") else roles
    roles = ["rollout"] * isinstance(config.label.judge, str) if stage == "label" else roles
    roles = [] if stage == "pairs" else roles
    roles = ["reward"] if stage == "score" else roles
    roles = ["rollout", "learner"] if stage == "eval context" else roles
    if stage in ("eval agreement", "eval winrate"):
        roles = ["rollout"] if _judged(config, stage.removeprefix("eval ")) else scored
    without = [name for name in roles if getattr(config.cluster, name).gpus == 0]
    return [f"model.device is cuda, but cluster.{name}.gpus is 0" for name in without if config.model.device == "cuda"]


def _sft(config: Config) -> list[str]:
    return _divides(
        "cluster.learner.actors", config.cluster.learner.actors, "sft.batch_size", config.sft.batch_size
    ) + _what_trains(config, "sft")


def _reward(config: Config) -> list[str]:
    problems = _divides(
        "cluster.learner.actors", config.cluster.learner.actors, "reward.batch_size", config.reward.batch_size
    )
    if config.reward.verdict and not config.reward.evaluation_turn:
        problems.append("reward.verdict begins the reply to reward.evaluation_turn, which is empty")
    if twice := _twice(config.reward.dimensions):
        problems.append(f"reward.dimensions names {', '.join(twice)} twice")
    return problems + _read_by_reward(config.reward) + _what_trains(config, "reward")


def _read_by_reward(reward: Reward) -> list[str]:
    """A template without its slot would leave out what the model is to go by, and say nothing."""
    turns, problems = reward.prompt_template + reward.evaluation_turn, []
    if "{question}" not in turns:
        problems.append("reward.prompt_template needs {question}")
    if reward.context != "none" and "{context}" not in turns:
        problems.append(
            f"reward.context={reward.context} needs {{context}} in reward.prompt_template or evaluation_turn, "
            "or reward.context=none"
        )
    if reward.context != "none" and "{captions}" not in reward.captions_template:
        problems.append(f"reward.captions_template needs {{captions}} with reward.context={reward.context}")
    return problems


def _score(config: Config) -> list[str]:
    twice = _twice(config.score.models)
    return [f"score.models names {', '.join(twice)} twice"] if twice else []


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _ppo(config: Config) -> list[str]:
    ppo, ranks = config.ppo, config.cluster.learner.actors
    rollouts = ppo.prompts_per_iteration * ppo.samples_per_prompt
    problems = _divides(
        "ppo.minibatch_size", ppo.minibatch_size, "prompts_per_iteration * samples_per_prompt", rollouts
    )
    problems += _divides("cluster.learner.actors", ranks, "ppo.minibatch_size", ppo.minibatch_size)
    if ppo.advantage == "leave_one_out" and ppo.samples_per_prompt < 2:
        problems.append("ppo.samples_per_prompt must be at least 2 with ppo.advantage=leave_one_out")
    if ppo.sampling.temperature == 0:
        problems.append("ppo.sampling.temperature must be above 0: PPO learns from samples, not from the mode")
    if ppo.sampling.top_p < 1 or ppo.sampling.top_k > 0:
        problems.append(
            "ppo.sampling.top_p must be 1 and top_k 0: cut distributions have log-probs no learner reproduces"
        )
    if ppo.critic_warmup and ppo.advantage == "leave_one_out":
        problems.append("ppo.critic_warmup needs a critic: ppo.advantage=gae")
    problems += _slots(config)
    if ppo.eval_every and config.eval.checker is None:
        problems.append("ppo.eval_every needs eval.checker, the function that says which claims are true")
    if ppo.reward_weights and isinstance(ppo.reward, Function):
        problems.append("ppo.reward_weights are of a reward model's dimensions; a function weighs its own parts")
    return problems + _what_trains(config, "ppo")


def _slots(config: Config) -> list[str]:
    ppo, problems = config.ppo, []
    shaped = {"score_slot=last_slot": ppo.score_slot == "last_slot", "whiten_rewards=true": ppo.whiten_rewards}
    if ppo.advantage != "gae":
        problems += [f"ppo.{option} shapes rewards per token: ppo.advantage=gae" for option, on in shaped.items() if on]
    elif ppo.counts_padding and config.model.attention == "flash_attention_2":
        problems.append(
            "model.attention=flash_attention_2 computes nothing after an answer's end, where the critic predicts with "
            "ppo.score_slot=last_slot or ppo.loss_mean=slots: use sdpa"
        )
    return problems


def _trains_tower(config: Config, stage: str) -> bool:
    section = getattr(config, stage)
    vision = config.model.train_vision if section.train_vision is None else section.train_vision
    return vision or _trains_projector(config, stage)


def _trains_projector(config: Config, stage: str) -> bool:
    section = getattr(config, stage)
    return config.model.train_projector if section.train_projector is None else section.train_projector


def _what_trains(config: Config, stage: str) -> list[str]:
    section, problems = getattr(config, stage), []
    if section.lora is not None and _trains_tower(config, stage):
        problems.append(
            f"{stage}.lora trains adapters of the language model only: set train_vision and train_projector false, or {stage}.lora null"
        )
    for name in ("optim", "critic_optim"):
        rate = getattr(getattr(section, name, None), "projector_lr", None)
        if rate is not None and not _trains_projector(config, stage):
            problems.append(
                f"{stage}.{name}.projector_lr is the rate of a projector that stays as it is: train_projector"
            )
    return problems


def _rollout(config: Config) -> list[str]:
    problems, need, width = [], config.ppo.sampling.max_tokens, config.rollout.tensor_parallel_size
    if config.rollout.max_model_len <= need:
        problems.append(
            f"rollout.max_model_len ({config.rollout.max_model_len}) must exceed ppo.sampling.max_tokens ({need}) "
            "by the prompt's length"
        )
    if config.rollout.vision == "shared" and config.ppo.lora is None and _trains_tower(config, "ppo"):
        problems.append(
            "rollout.vision=shared hands over features of a frozen tower and projector, but model.train_vision or "
            "train_projector (or ppo's) is true: rollout.vision=engine"
        )
    gpus = config.cluster.rollout.gpus
    problems += _transport(config) + _sleep(config)
    if (width > 1 or gpus > 1) and gpus != width:
        problems.append(f"cluster.rollout.gpus ({gpus}) must equal rollout.tensor_parallel_size ({width})")
    return problems


def _transport(config: Config) -> list[str]:
    """Ways between GPUs need GPUs: of their own for nccl, shared ones for ipc."""
    transport, roles = config.rollout.transport, ("rollout", "learner")
    if transport == "object_store":
        return []
    problems, shares = [], {role: getattr(config.cluster, role).gpus for role in roles}
    if config.ppo.lora is not None:
        problems.append(f"rollout.transport={transport} moves full weights (ppo.lora: null); adapters use object_store")
    for role, share in shares.items():
        fits = share >= 1 if transport == "nccl" else 0 < share < 1
        wanted = (
            "at least 1: a GPU of its own" if transport == "nccl" else "above 0 and below 1: a part of a shared GPU"
        )
        if not fits:
            problems.append(f"rollout.transport={transport} needs cluster.{role}.gpus ({share:g}) {wanted}")
    return problems


def _sleep(config: Config) -> list[str]:
    level, problems = config.rollout.sleep_level, []
    if level and config.cluster.rollout.gpus == 0:
        problems.append(f"rollout.sleep_level={level} frees a GPU, but cluster.rollout.gpus is 0")
    if level and config.ppo.max_staleness:
        problems.append("rollout.sleep_level needs ppo.max_staleness=0: otherwise engines sample while learners update")
    if level == 2 and config.ppo.lora is not None:
        problems.append("rollout.sleep_level=2 forgets the base that an adapter needs: use 1")
    return problems


def _caption(config: Config) -> list[str]:
    options = config.caption
    wanted = {
        "dependent=true": (options.dependent, "{previous}", ("prompt", "previous_slot")),
        "conditioned=true": (options.conditioned, "{question}", ("prompt", "question_slot")),
        "aggregate=summarise": (options.aggregate == "summarise", "{captions}", ("summary_prompt",)),
    }
    return [
        f"caption.{template} needs {slot} with caption.{name}"
        for name, (on, slot, templates) in wanted.items()
        for template in templates
        if on and slot not in getattr(options, template)
    ]


def _label(config: Config) -> list[str]:
    label, problems = config.label, []
    if label.method == "claims" and isinstance(label.judge, Function):
        problems.append(
            "label.method=claims asks a judge about each claim; a function compares answers: label.method=pairwise"
        )
    slots = ("{a}", "{b}") if label.method == "pairwise" else ("{claim}",)
    template = label.pairwise_prompt if label.method == "pairwise" else label.claim_prompt
    if not isinstance(label.judge, Function):
        if missing := [slot for slot in slots if slot not in template]:
            problems.append(f"label.{label.method}'s prompt needs {' and '.join(missing)}")
        if label.context != "none" and "{context}" not in template:
            problems.append(f"label.context={label.context} needs {{context}} in the prompt, or label.context=none")
        if label.context != "none" and "{captions}" not in label.captions_template:
            problems.append(f"label.captions_template needs {{captions}} with label.context={label.context}")
        if label.method == "claims" and label.split == "model" and "{answer}" not in label.split_prompt:
            problems.append("label.split_prompt needs {answer} with label.split=model")
    if (
        label.choices[0].casefold() == label.choices[1].casefold()
        or label.yes_no[0].casefold() == label.yes_no[1].casefold()
    ):
        problems.append("label.choices and label.yes_no must be two different words each")
    return problems


def _context(config: Config) -> list[str]:
    """The study sets `label.context` and `reward.context` itself: both must have a place for captions."""
    asked = {name: getattr(config, name).model_copy(update={"context": "captions"}) for name in ("label", "reward")}
    problems = _label(config.model_copy(update=asked)) + _read_by_reward(asked["reward"])
    if isinstance(config.label.judge, Function):
        problems.append("eval context compares what a judge reads, and a function reads no captions: label.judge")
    elif config.context.num_frames and not config.label.show_video:
        problems.append("context.num_frames is of a video that label.show_video=false does not show")
    return problems
