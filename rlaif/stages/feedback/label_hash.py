"""What makes the labels of one file comparable: everything that decides a verdict beside prompt, captions and answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from rlaif.config.feedback import Label
from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.config.server import Server
from rlaif.errors import ContractError
from rlaif.feedback.store import Store
from rlaif.stages.feedback.judges import frames_shown, judge_name
from rlaif.stages.feedback.sample import FRAME_OPTIONS

METHOD_OPTIONS = {"pairwise": ("pairwise_prompt", "choices", "flips"), "claims": ("claim_prompt", "yes_no", "split")}
"""Options of `label` that only one method reads."""
CONTEXT_OPTIONS = ("captions_template", "captions_separator", "max_caption_tokens")
SERVER_OPTIONS = ("extra", "top_logprobs")
"""The server itself is in the judge's name; its other options say how it is reached and what that may take."""


def label_hash(config: Config) -> str:
    """Return 16 hex digits over what `decides` gives."""
    return _digest(deciding_options(config))


def _digest(decided: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:16]


def deciding_options(config: Config) -> dict[str, Any]:
    """Every option that the verdicts depend on, by name. What another method or another kind of judge reads is left out."""
    options, by_code = config.label, isinstance(config.label.judge, Function)
    found = {"judge": judge_name(options.judge), "method": options.method}
    drawn = not by_code and options.context == "shuffled"
    if options.method == "pairwise":
        found["comparisons"] = options.comparisons
        drawn |= options.comparisons is not None
    if drawn:
        found["seed"] = config.seed
    return found if by_code else found | _asked(config)


def _asked(config: Config) -> dict[str, Any]:
    """Of a judge that is a model."""
    options = config.label
    found = _picked(options, ("context", "show_video", *METHOD_OPTIONS[options.method]))
    if options.method == "claims" and options.split == "model":
        found |= _picked(options, ("split_prompt", "split_tokens"))
    if options.method == "claims" and options.reject_at != 0.5:  # labels from before the option are of its default
        found |= _picked(options, ("reject_at",))
    if options.context != "none":
        found |= _picked(options, CONTEXT_OPTIONS)
    if options.show_video:
        found["frames"] = _picked(config.video, FRAME_OPTIONS) | {"num_frames": frames_shown(config)}
    if isinstance(options.judge, Server):
        return found | {"server": _picked(options.judge, SERVER_OPTIONS)}
    return found | {"dtype": config.model.dtype}


def _picked(section: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return section.model_dump(mode="json", include=set(names))


def check_label_hash(store: Store, config: Config) -> None:
    """Raise ContractError if a file holds labels of another judge or another way of asking."""
    kind = label_hash(config)
    others = sorted({row["judge"] for row in store.rows() if row["kind"] != kind and not _moved(row, config)})
    if others:
        names = ", ".join(_named(config.label, deciding_options(config)))
        raise ContractError(
            f"labels in {store.path} that were made with the options as they are now ({names})",
            f"some by {', '.join(others)} with other options",
            "Set data.labels to another file for other options, or remove this one",
        )


def _moved(row: Mapping[str, Any], config: Config) -> bool:
    """Whether a row was made by the same judge, with the same options, while its model was stored at another path."""
    judge = config.label.judge
    if not isinstance(judge, str):
        return False
    same = row["judge"].rpartition("@")[2] == judge_name(judge).rpartition("@")[2]
    return same and row["kind"] == _digest(deciding_options(config) | {"judge": row["judge"]})


def _named(options: Label, decided: dict[str, Any]) -> list[str]:
    """The options as a user writes them."""
    whose = {
        "frames": ["label.num_frames", *(f"video.{name}" for name in FRAME_OPTIONS)],
        "dtype": ["model.dtype"],
        "seed": ["seed"],
    }
    whose["server"] = [f"label.judge.{name}" for name in SERVER_OPTIONS]
    return [name for key in decided for name in whose.get(key, [f"label.{key}"])]
