"""Which options differ between the configuration of a checkpoint and that of the run that resumes it, and what follows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COMMON = ("seed", "deterministic", "data", "video", "model", "cluster")
"""Options at the top that every training stage reads."""
SECTIONS = {"sft": ("sft",), "reward": ("reward",), "ppo": ("ppo", "rollout", "eval")}
"""Sections that a stage reads beside these."""
FILES = {"sft": ("sft",), "reward": ("pairs", "pairs_eval"), "ppo": ("prompts", "eval"), "": ("candidates", "labels")}
"""Files of `data` by the stage that reads them."""
WITHOUT_EFFECT = ("cluster.address", "cluster.object_store_gib")
"""Options that say where a run is, not what it computes."""
FIXED = ("lora", "train_vision", "train_projector", "advantage", "dimensions")
"""Options of a stage's section that decide which tensors a checkpoint holds. The names of `model` are the same."""
FILES_OF_ROWS = ("data.prompts", "data.sft", "data.pairs")
SIZES_OF_STEPS = ("ppo.prompts_per_iteration", "sft.batch_size", "reward.batch_size")
ORDER = ("seed", *FILES_OF_ROWS, *SIZES_OF_STEPS)
"""Options that decide which rows a step takes: after a change a resume may repeat rows or skip some."""

_MISSING = object()


@dataclass(frozen=True)
class Change:
    """One option, as the checkpoint has it and as it is now."""

    option: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.option}: {show(self.before)} -> {show(self.now)}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options by their dotted names; an empty section is a value."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return the options that differ between two nested groups, by dotted name. A section that is null on one side (an
    adapter that was switched off) is one difference."""
    old, new = flatten(before), flatten(now)
    for one, other in ((old, new), (new, old)):
        for name in [name for name in one if name not in other]:
            if group := _group(other, name):
                for below in group:
                    del other[f"{name}.{below}"]
                other[name] = group
    names = [*old, *(name for name in new if name not in old)]
    changes = [Change(name, old.get(name, _MISSING), new.get(name, _MISSING)) for name in names]
    return [change for change in changes if change.before != change.now]


def resumed_with(
    stage: str, before: Mapping[str, Any], now: Mapping[str, Any], directories: tuple[str, str]
) -> list[Change]:
    """Return the options that differ and that a training stage reads.

    Args:
        directories: the run's directory then and now. Paths below it are compared relative to it, so that a moved run
            has no differences.
    """
    old, new = (_read_by(stage, config, run) for config, run in zip((before, now), directories, strict=True))
    # an option that one side does not know came with another version, and has its default there
    changes = [change for change in differences(old, new) if _MISSING not in (change.before, change.now)]
    return [change for change in changes if change.option not in WITHOUT_EFFECT]


def is_fixed(stage: str, option: str) -> bool:
    """Return whether a checkpoint of `stage` cannot go on with another value of `option`."""
    section, _, name = option.partition(".")
    return section in ("model", stage) and name.split(".")[0] in FIXED


def decides_order(option: str) -> bool:
    """Return whether `option` decides which rows a step takes."""
    return option in ORDER


def show(value: Any) -> str:
    """Return an option's value as it is written in YAML and on the command line."""
    if value is _MISSING:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value)


def _group(flat: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key.removeprefix(f"{name}."): value for key, value in flat.items() if key.startswith(f"{name}.")}


def _read_by(stage: str, config: Mapping[str, Any], run: str) -> dict[str, Any]:
    """Return the options that a stage reads, with `{run}` for the run's directory."""
    chosen = {name: config[name] for name in (*COMMON, *SECTIONS[stage]) if name in config}
    others = {file for reader, files in FILES.items() if reader != stage for file in files}
    chosen["data"] = {name: value for name, value in chosen.get("data", {}).items() if name not in others}

    def shorten(group: dict[str, Any]) -> dict[str, Any]:
        return {name: _shortened(value, run) for name, value in group.items()}

    return json.loads(json.dumps(chosen), object_hook=shorten)


def _shortened(value: Any, run: str) -> Any:
    if isinstance(value, str) and (value == run or value.startswith(f"{run}/")):
        return "{run}" + value.removeprefix(run)
    return value
