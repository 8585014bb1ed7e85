"""The configuration that `rlaif init` writes: few options, each with a reason, fitted to the files in the folder."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from rlaif.config.starter_text import CPU, ONE_GPU, TEXT, Machine
from rlaif.data.files import read_rows
from rlaif.data.rows import RowFailure
from rlaif.errors import ConfigError, DataError
from rlaif.io.writable import why_not_writable

NAME = "rlaif.yaml"
ENDINGS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v")
CPU_MODEL = "Qwen/Qwen2-VL-2B-Instruct"
GPU_MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
SAMPLES_PER_PROMPT = 4

MEANINGS = {
    "prompts": "questions about videos, for PPO",
    "sft": "conversations to imitate",
    "pairs": "preferred and rejected answers, for the reward model",
    "pairs_eval": "held-out pairs",
    "eval": "held-out questions, to measure before and after",
}
"""The files of rows, by their option in `data`, in the order in which the configuration names them."""


@dataclass(frozen=True)
class RowFile:
    """A file of rows in the folder of a new configuration."""

    name: str
    rows: int
    captions: bool
    """Whether any row has dense captions of its video."""


def write_config(
    folder: Path, gpu: bool, model: str | None, positions: int | None, force: bool
) -> tuple[Path, dict[str, RowFile]]:
    """Write `rlaif.yaml` into a folder; return its path and the files of rows that it refers to, by kind.

    Raises ConfigError if a configuration exists and `force` is not given, or the folder cannot be written.

    Args:
        folder: Folder of videos and files of rows; it is created if it does not exist.
        gpu: Whether the configuration is for one GPU instead of the CPU.
        model: Folder or hub name of the model to start from; None: a small public one.
        positions: How many positions the model has, if that is known.
        force: Whether to replace an existing configuration.
    """
    folder = Path(folder).expanduser().absolute()
    _check_folder(folder, force)
    files = row_files(folder)
    default_model = GPU_MODEL if gpu else CPU_MODEL
    text = render(folder, files, gpu, model or default_model, positions)
    target = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    except OSError as error:
        reason, fix = f"{target}: {error.strerror or error}", "Give the path of a folder that you may write to."
        raise ConfigError("a folder that can be written", reason, fix) from error
    return target, files


def _check_folder(folder: Path, force: bool) -> None:
    """Raise ConfigError if a configuration can't be written into the folder, or may not be replaced there."""
    target = folder / NAME
    # Most file systems allow 255 bytes; beyond that even `exists` raises.
    if len(os.fsencode(folder.name)) > 255:
        raise ConfigError("a folder with a name of at most 255 bytes", folder.name, "Give a shorter name.")
    if folder.exists() and not folder.is_dir():
        raise ConfigError("a folder to write a configuration into", f"the file {folder}", "Give the path of a folder.")
    if target.is_dir():
        raise ConfigError(f"a file, or nothing, at {target}", "a folder", "Give another folder, or move that one.")
    # `lexists`, because a link to a file that does not exist would be replaced or followed.
    if os.path.lexists(target) and not force:
        raise ConfigError(
            f"no {NAME} in {folder}", "an existing one", "Add --force to replace it, or give another folder."
        )
    if reason := why_not_writable(folder):
        raise ConfigError("a folder that can be written", reason, "Give the path of a folder that you may write to.")


def row_files(folder: Path) -> dict[str, RowFile]:
    """Return the files of rows in a folder by kind, each with the first of `ENDINGS` that exists."""
    files = {}
    for kind in MEANINGS:
        for ending in ENDINGS:
            path = folder / f"{kind}{ending}"
            if path.is_file():
                files[kind] = _read_row_file(path)
                break
    return files


def _read_row_file(path: Path) -> RowFile:
    count = 0
    captions = False
    try:
        for row in read_rows(path):
            if not isinstance(row, RowFailure):
                count += 1
                captions = captions or bool(row.fields.get("captions"))
    except DataError:
        pass  # `rlaif check` says what is wrong with it
    return RowFile(path.name, count, captions)


def render(folder: Path, files: Mapping[str, RowFile], gpu: bool, model: str, positions: int | None) -> str:
    """Return the text of the configuration."""
    machine = ONE_GPU if gpu else CPU
    values = _values(folder, files, machine, model, positions)
    return re.sub(r"<(\w+)>", lambda slot: str(values[slot[1]]), TEXT)


def _values(
    folder: Path, files: Mapping[str, RowFile], machine: Machine, model: str, positions: int | None
) -> dict[str, Any]:
    """Return what replaces each `<slot>` of the text."""
    longest = min(machine.max_model_len, positions or machine.max_model_len)
    # Prompts hold videos, so answers get at most a quarter of the positions.
    answer = min(machine.max_tokens, longest // 4)
    starts_from_sft = "sft" in files or "prompts" not in files
    # PPO needs a reward: with prompts but no pairs, the reward model of the configuration can't be trained yet.
    lacks_pairs = "prompts" in files and "pairs" not in files
    # A run's name becomes a directory name and part of URIs.
    run_name = re.sub(r"[^A-Za-z0-9_-]+", "-", folder.name).strip("-")
    # What is computed from the files and the model replaces the machine's defaults of the same name.
    return asdict(machine) | {
        "name": _as_yaml(run_name or "mine"),
        "storage": _as_yaml(folder / "runs"),
        "root": _as_yaml(folder),
        "model": _as_yaml(model),
        "policy": '"{run}/sft/export"' if starts_from_sft else _as_yaml(model),
        "files": "\n".join(_file_lines(files)),
        "max_model_len": longest,
        "max_prompt_tokens": longest - answer,
        "max_tokens": answer,
        "context": "captions" if _has_captions(files) else "none",
        "samples": SAMPLES_PER_PROMPT,
        "no_pairs": "  # there is no pairs.jsonl yet: write one, or give a function instead" if lacks_pairs else "",
        **_sizes(files, machine),
    }


def _sizes(files: Mapping[str, RowFile], machine: Machine) -> dict[str, int]:
    """Return batch sizes that the files can fill and that divide each other."""

    def rows_of(kind: str) -> int:
        return files[kind].rows if kind in files else 0

    def at_most_rows_of(kind: str, size: int) -> int:
        return min(size, rows_of(kind) or size)

    prompts = at_most_rows_of("prompts", machine.prompts_per_iteration)
    sft_batch = at_most_rows_of("sft", machine.batch_size)
    # About three passes over the conversations, within bounds that suit few and many rows.
    sft_steps = max(20, min(1000, 3 * rows_of("sft") // sft_batch)) if rows_of("sft") else 200
    return {
        "prompts_per_iteration": prompts,
        "minibatch_size": prompts * SAMPLES_PER_PROMPT,
        "sft_batch": sft_batch,
        "pairs_batch": at_most_rows_of("pairs", machine.batch_size),
        "sft_steps": sft_steps,
    }


def _has_captions(files: Mapping[str, RowFile]) -> bool:
    """Return whether the reward model can read captions: they must be in the pairs and in the prompts."""
    return all(kind in files and files[kind].captions for kind in ("pairs", "prompts"))


def _file_lines(files: Mapping[str, RowFile]) -> list[str]:
    """Return one line of `data` per file. Without held-out pairs, a part of `pairs` is held out."""
    lines = []
    for kind, meaning in MEANINGS.items():
        if kind in files:
            name = _as_yaml(files[kind].name)
            remark = f"{files[kind].rows} rows"
        elif kind == "pairs_eval":
            name = "null"
            remark = "a part of `pairs` is held out instead"
        else:
            name = f"{kind}.jsonl"
            remark = "not there yet"
        option = f"{kind}: {name}"
        lines.append(f"  {option:<28}  # {meaning} ({remark})")
    return lines


def next_steps(folder: Path, files: Mapping[str, RowFile], program: str = "rlaif") -> str:
    """Return what to do after `rlaif init`: an example of each missing row, about a clip in the folder, and the commands.

    `program` is the command line that runs rlaif, as the user started it.
    """
    video = _first_clip(folder) or "clips/a.mp4"
    lines = []
    for kind, row in EXAMPLES.items():
        if kind not in files:
            lines.append(f"  {kind + '.jsonl':<15} {json.dumps(row | {'video': video})}")
    if lines:
        lines = ["Still to be written, one JSON object per line (`eval.jsonl` is optional):", *lines, ""]
    check = f"{program} check {shlex.quote(str(folder / NAME))}"
    options = f"{program} options ppo    (a section's options: type, default, meaning)"
    return "\n".join([*lines, f"next:  {check}", f"       {options}"])


def _first_clip(folder: Path) -> str | None:
    """Return the first video below the folder, relative to it, outside of any `runs`."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in VIDEOS and "runs" not in path.parts:
            return str(path.relative_to(folder))
    return None


EXAMPLES: dict[str, dict[str, Any]] = {
    "prompts": {"prompt_id": "a1", "video": "", "question": "What happens?"},
    "sft": {
        "id": "s1",
        "video": "",
        "messages": [{"role": "user", "content": "What happens?"}, {"role": "assistant", "content": "A man waves."}],
    },
    "pairs": {
        "pair_id": "p1",
        "video": "",
        "question": "What happens?",
        "chosen": "A man waves.",
        "rejected": "A dog.",
    },
    "eval": {"prompt_id": "e1", "video": "", "question": "Who waves?"},
}
"""A row of each file; `video` is filled in."""


def _as_yaml(value: str | Path) -> str:
    """Return a value as YAML reads it on one line."""
    text = yaml.safe_dump(str(value), width=10**6, allow_unicode=True, default_style=None).strip()
    # PyYAML ends a document that is a bare scalar with a line of three dots.
    return text.removesuffix("...").strip()
