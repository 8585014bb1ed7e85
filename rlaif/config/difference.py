"""Differences between the configuration of a checkpoint and that of the run that resumes it, and their consequences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COMMON = ("seed", "deterministic", "data", "video", "model", "cluster")
"""Top-level options that every training stage reads."""
SECTIONS = {"sft": ("sft",), "reward": ("reward",), "ppo": ("ppo", "rollout", "eval")}
"""Further sections that a stage reads."""
FILES = {"sft": ("sft",), "reward": ("pairs", "pairs_eval"), "ppo": ("prompts", "eval"), "": ("candidates", "labels")}
"""Files of `data` by the training stage that reads them; no training stage reads those under an empty name."""
WITHOUT_EFFECT = ("cluster.address", "cluster.object_store_gib")
"""Options of the place of a run, which do not change what it computes."""
FIXED = ("lora", "train_vision", "train_projector", "advantage", "dimensions")
"""Options of a stage's section, and of `model`, that decide which tensors a checkpoint holds."""
ORDER = (
    "seed",
    "data.prompts",
    "data.sft",
    "data.pairs",
    "ppo.prompts_per_iteration",
    "sft.batch_size",
    "reward.batch_size",
)
"""Options that decide which rows a step uses: a resume with another value may repeat or skip rows."""

# None is a value of many options, so that a missing one needs a mark of its own.
_MISSING = object()


@dataclass(frozen=True)
class Change:
    """One option with its value in the checkpoint and its value now."""

    option: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.option}: {show(self.before)} -> {show(self.now)}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested options by dotted name. An empty section counts as a value."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def changed_options(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Return the options that differ between two nested groups, by dotted name.

    A section that is null on one side (an adapter that was switched off) is one difference.
    """
    old = flatten(before)
    new = flatten(now)
    _fold_sections(old, new)
    _fold_sections(new, old)
    changes = []
    for name in dict.fromkeys([*old, *new]):
        change = Change(name, old.get(name, _MISSING), new.get(name, _MISSING))
        if change.before != change.now:
            changes.append(change)
    return changes


def _fold_sections(one: Mapping[str, Any], other: dict[str, Any]) -> None:
    """Fold options of `other` back into a section if `one` has a single value (null) for that section."""
    missing = [name for name in one if name not in other]
    for name in missing:
        group = _group(other, name)
        if not group:
            continue
        for below in group:
            del other[f"{name}.{below}"]
        other[name] = group


def resumed_with(
    stage: str, before: Mapping[str, Any], now: Mapping[str, Any], directories: tuple[str, str]
) -> list[Change]:
    """Return the options that differ and that a training stage reads.

    Args:
        stage: `sft`, `reward` or `ppo`.
        before: The configuration of the checkpoint.
        now: The configuration of the run that resumes it.
        directories: The run's directory then and now. Paths below it are compared relative to it, so that a moved run
            has no differences.
    """
    directory_before, directory_now = directories
    old = _read_by(stage, before, directory_before)
    new = _read_by(stage, now, directory_now)
    changes = []
    for change in changed_options(old, new):
        # An option that is missing on one side came with another version of rlaif, and had its default there.
        is_new = _MISSING in (change.before, change.now)
        if not is_new and change.option not in WITHOUT_EFFECT:
            changes.append(change)
    return changes


def is_fixed(stage: str, option: str) -> bool:
    """Return whether a checkpoint of `stage` can't be resumed with another value of `option`."""
    # `ppo.lora.r` is fixed because `lora` is.
    section, _, name = option.partition(".")
    return section in ("model", stage) and name.split(".")[0] in FIXED


def decides_order(option: str) -> bool:
    """Return whether `option` decides which rows a step uses."""
    return option in ORDER


def show(value: Any) -> str:
    """Return an option's value as a user writes it in YAML or on the command line."""
    if value is _MISSING:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value)


def _group(flat: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the options below a section, by their names inside it."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in flat.items() if key.startswith(prefix)}


def _read_by(stage: str, config: Mapping[str, Any], run: str) -> dict[str, Any]:
    """Return the options that a stage reads, with `{run}` in place of the run's directory."""
    options = {name: config[name] for name in (*COMMON, *SECTIONS[stage]) if name in config}
    other_files: set[str] = set()
    for reader, files in FILES.items():
        if reader != stage:
            other_files.update(files)
    options["data"] = {name: value for name, value in options.get("data", {}).items() if name not in other_files}

    def shorten(group: dict[str, Any]) -> dict[str, Any]:
        return {name: _shortened(value, run) for name, value in group.items()}

    # JSON calls the hook for every nested section, and makes lists of tuples on both sides.
    return json.loads(json.dumps(options), object_hook=shorten)


def _shortened(value: Any, run: str) -> Any:
    if isinstance(value, str) and (value == run or value.startswith(f"{run}/")):
        return "{run}" + value.removeprefix(run)
    return value
