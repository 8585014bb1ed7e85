"""Suggestions for a mistyped option, by full path."""

from __future__ import annotations

import difflib
from functools import lru_cache

from rlaif.config.options import all_options

_FOREIGN_NAMES = {
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
"""Least likeness of two names, from 0 to 1. This is also the default cut-off of `difflib.get_close_matches`."""
_SAME_SECTION = 0.2
"""Bonus of an option in the section that the user named."""
_STAGE = 0.1
"""Bonus of an option in the section of the stage that runs."""
_TIE = 0.05
"""Largest distance of a score from the best one at which an option is still suggested."""


def nearest(path: str, stage: str | None = None, most: int = 3) -> list[str]:
    """Return the full paths of the at most `most` options that `path` may stand for, best first; empty if none is similar.

    An equal name in another section counts more than a similar name in the same one. Equal names are ranked by the section
    that the user named, then by `stage`.
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
    # Several suggestions help only if they are about equally good.
    best = max(scores.values(), default=0.0)
    near = [option for option, score in scores.items() if score > best - _TIE]
    near.sort(key=lambda option: (-scores[option], option.count("."), option))
    return near[:most]


def hint(path: str, stage: str | None = None) -> str:
    """Return "; nearest is `...`" for a mistyped option, or ""."""
    near = [f"`{option}`" for option in nearest(path, stage)]
    if not near:
        return ""
    if len(near) == 1:
        return f"; nearest is {near[0]}"
    return f"; nearest are {', '.join(near)}"


# Walking all sections takes a while, and a configuration can have many mistyped options.
@lru_cache(maxsize=1)
def _paths() -> tuple[str, ...]:
    return tuple(dict.fromkeys(option.path for option in all_options()))


def _likeness(name: str, option: str) -> float:
    """Return the likeness of two names, from 0 to 1."""
    if option in (name, _FOREIGN_NAMES.get(name)):
        return 1.0
    return difflib.SequenceMatcher(None, name, option).ratio()


def _shared(parents: str, option_parents: str) -> float:
    """Return the share of the named section's path that the option's section begins with, from 0 to 1."""
    if not parents:
        return 0.0 if option_parents else 1.0
    parts = parents.split(".")
    same = 0
    for part, option_part in zip(parts, option_parents.split("."), strict=False):
        if part != option_part:
            break
        same += 1
    return same / len(parts)
