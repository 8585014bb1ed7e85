"""Which options a mistyped one may have meant, by their full paths."""

from __future__ import annotations

import difflib
from functools import lru_cache

from rlaif.config.options import all_options

_MEANT = {
    "rank": "r",
    "lora_r": "r",
    "lora_rank": "r",
    "lora_alpha": "alpha",
    "target_modules": "targets",
    "learning_rate": "lr",
    "clip_range": "clip",
    "cliprange": "clip",
    "eps_clip": "clip",
    "beta": "coef",
    "kl_coef": "coef",
    "kl_beta": "coef",
    "init_kl_coef": "coef",
    "max_steps": "steps",
    "num_steps": "steps",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_new_tokens": "max_tokens",
    "num_generations": "samples_per_prompt",
    "n_samples_per_prompt": "samples_per_prompt",
    "mini_batch_size": "minibatch_size",
    "ppo_epochs": "epochs",
    "warmup": "warmup_steps",
    "grad_clip": "max_grad_norm",
    "clip_grad": "max_grad_norm",
    "frames": "num_frames",
    "nframes": "num_frames",
    "tp_size": "tensor_parallel_size",
    "output_dir": "storage",
    "run_name": "name",
    "gpu_memory": "gpu_memory_utilization",
    "lambda": "lam",
    "gae_lambda": "lam",
}
"""Names that other tools give to an option of ours."""

_CLOSE = 0.6
_SAME_SECTION = 0.2
_STAGE = 0.1
_TIE = 0.05


def nearest(path: str, stage: str | None = None, most: int = 3) -> list[str]:
    """Return the full paths of the options that `path` may have meant, best first; empty if none is like it.

    A name that another section has counts more than a similar one; of equal names those in the section that was named,
    and then those of `stage`, come first.
    """
    parents, _, name = path.rpartition(".")
    scores: dict[str, float] = {}
    for option in _paths():
        option_parents, _, option_name = option.rpartition(".")
        likeness = _likeness(name, option_name)
        if likeness < _CLOSE:
            continue
        bonus = _STAGE if stage and option.startswith(f"{stage}.") else 0.0
        scores[option] = likeness + _SAME_SECTION * _shared(parents, option_parents) + bonus
    best = max(scores.values(), default=0.0)
    near = [option for option, score in scores.items() if score > best - _TIE]
    return sorted(near, key=lambda option: (-scores[option], option.count("."), option))[:most]


def hint(path: str, stage: str | None = None) -> str:
    """Return "; nearest is `...`" for a mistyped option, or ""."""
    near = [f"`{option}`" for option in nearest(path, stage)]
    if not near:
        return ""
    return f"; nearest is {near[0]}" if len(near) == 1 else f"; nearest are {', '.join(near)}"


@lru_cache(maxsize=1)
def _paths() -> tuple[str, ...]:
    return tuple(dict.fromkeys(option.path for option in all_options()))


def _likeness(name: str, option: str) -> float:
    if option in (name, _MEANT.get(name)):
        return 1.0
    return difflib.SequenceMatcher(None, name, option).ratio()


def _shared(parents: str, option_parents: str) -> float:
    """Return how much of the section that was named is the option's, from 0 to 1."""
    if not parents:
        return 0.0 if option_parents else 1.0
    named, own = parents.split("."), option_parents.split(".")
    same = 0
    for one, other in zip(named, own, strict=False):
        if one != other:
            break
        same += 1
    return same / len(named)
