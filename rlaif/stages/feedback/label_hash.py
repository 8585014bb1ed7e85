"""The hash that makes the labels of one file comparable: of all that decides a verdict beside prompt, captions and answers."""

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
"""Options of a server that decide verdicts. The judge's name holds the server itself; the other options say how it is reached
and what that may cost."""


def label_hash(config: Config) -> str:
    """Return 16 hex digits over the result of `deciding_options`; rows of labels hold them as `kind`."""
    return _digest(deciding_options(config))


def _digest(options: dict[str, Any]) -> str:
    # Sorted, so that the order in which options are collected does not matter.
    text = json.dumps(options, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def deciding_options(config: Config) -> dict[str, Any]:
    """Return every option that the verdicts depend on, by name.

    Options that only another method or another kind of judge reads are not included.
    """
    options = config.label
    by_code = isinstance(options.judge, Function)
    deciding: dict[str, Any] = {"judge": judge_name(options.judge), "method": options.method}
    # The seed counts only if something is drawn: which captions are swapped, or which pairs are compared.
    random = not by_code and options.context == "shuffled"
    if options.method == "pairwise":
        deciding["comparisons"] = options.comparisons
        random |= options.comparisons is not None
    if random:
        deciding["seed"] = config.seed
    return deciding if by_code else deciding | _model_options(config)


def _model_options(config: Config) -> dict[str, Any]:
    """Return the options that decide the verdicts of a judge that is a model."""
    options = config.label
    deciding = _dump(options, ("context", "show_video", *METHOD_OPTIONS[options.method]))
    if options.method == "claims" and options.split == "model":
        deciding |= _dump(options, ("split_prompt", "split_tokens"))
    # Labels from before `label.reject_at` existed were made with its default; their hash must stay.
    if options.method == "claims" and options.reject_at != 0.5:
        deciding |= _dump(options, ("reject_at",))
    if options.context != "none":
        deciding |= _dump(options, CONTEXT_OPTIONS)
    if options.show_video:
        deciding["frames"] = _dump(config.video, FRAME_OPTIONS) | {"num_frames": frames_shown(config)}
    if isinstance(options.judge, Server):
        deciding["server"] = _dump(options.judge, SERVER_OPTIONS)
    else:
        deciding["dtype"] = config.model.dtype
    return deciding


def _dump(section: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return section.model_dump(mode="json", include=set(names))


def check_label_hash(store: Store, config: Config) -> None:
    """Raise ContractError if a file holds labels of another judge or another way of asking."""
    expected = label_hash(config)
    others = set()
    for row in store.rows():
        if row["kind"] != expected and not _is_moved(row, config):
            others.add(row["judge"])
    if others:
        names = ", ".join(_option_names(config.label, deciding_options(config)))
        raise ContractError(
            f"labels in {store.path} that were made with the options as they are now ({names})",
            f"some by {', '.join(sorted(others))} with other options",
            "Set data.labels to another file for other options, or remove this one.",
        )


def _is_moved(row: Mapping[str, Any], config: Config) -> bool:
    """Return whether the same judge made a row with the same options, when its model was stored at another path."""
    judge = config.label.judge
    if not isinstance(judge, str):
        return False
    # A model's name is PATH@FINGERPRINT: the path may change, the weights may not.
    fingerprint = row["judge"].rpartition("@")[2]
    if fingerprint != judge_name(judge).rpartition("@")[2]:
        return False
    options = deciding_options(config) | {"judge": row["judge"]}
    return row["kind"] == _digest(options)


def _option_names(options: Label, deciding: dict[str, Any]) -> list[str]:
    """Return the deciding options as a user writes them."""
    spelled = {
        "frames": ["label.num_frames", *map("video.{}".format, FRAME_OPTIONS)],
        "server": list(map("label.judge.{}".format, SERVER_OPTIONS)),
        "dtype": ["model.dtype"],
        "seed": ["seed"],
    }
    names = []
    for key in deciding:
        names += spelled.get(key, [f"label.{key}"])
    return names
