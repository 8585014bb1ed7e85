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
from rlaif.stages.feedback.judges import frames_shown, name_of
from rlaif.stages.feedback.sample import OF_FRAMES

OF_METHOD = {"pairwise": ("pairwise_prompt", "choices", "flips"), "claims": ("claim_prompt", "yes_no", "split")}
"""Options of `label` that only one method reads."""
OF_CONTEXT = ("captions_template", "captions_separator", "max_caption_tokens")
OF_SERVER = ("extra", "top_logprobs")
"""The server itself is in the judge's name; its other options say how it is reached and what that may take."""


def kind_of(config: Config) -> str:
    """Return 16 hex digits over what `decides` gives."""
    return _digest(decides(config))


def _digest(decided: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()[:16]


def decides(config: Config) -> dict[str, Any]:
    """Every option that the verdicts depend on, by name. What another method or another kind of judge reads is left out."""
    options, by_code = config.label, isinstance(config.label.judge, Function)
    found = {"judge": name_of(options.judge), "method": options.method}
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
    found = _picked(options, ("context", "show_video", *OF_METHOD[options.method]))
    if options.method == "claims" and options.split == "model":
        found |= _picked(options, ("split_prompt", "split_tokens"))
    if options.method == "claims" and options.reject_at != 0.5:  # labels from before the option are of its default
        found |= _picked(options, ("reject_at",))
    if options.context != "none":
        found |= _picked(options, OF_CONTEXT)
    if options.show_video:
        found["frames"] = _picked(config.video, OF_FRAMES) | {"num_frames": frames_shown(config)}
    if isinstance(options.judge, Server):
        return found | {"server": _picked(options.judge, OF_SERVER)}
    return found | {"dtype": config.model.dtype}


def _picked(section: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return section.model_dump(mode="json", include=set(names))


def check_kind(store: Store, config: Config) -> None:
    """Raise ContractError if a file holds labels of another judge or another way of asking."""
    kind = kind_of(config)
    others = sorted({row["judge"] for row in store.rows() if row["kind"] != kind and not _moved(row, config)})
    if others:
        names = ", ".join(_named(config.label, decides(config)))
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
    same = row["judge"].rpartition("@")[2] == name_of(judge).rpartition("@")[2]
    return same and row["kind"] == _digest(decides(config) | {"judge": row["judge"]})


def _named(options: Label, decided: dict[str, Any]) -> list[str]:
    """The options as a user writes them."""
    whose = {
        "frames": ["label.num_frames", *(f"video.{name}" for name in OF_FRAMES)],
        "dtype": ["model.dtype"],
        "seed": ["seed"],
    }
    whose["server"] = [f"label.judge.{name}" for name in OF_SERVER]
    return [name for key in decided for name in whose.get(key, [f"label.{key}"])]
