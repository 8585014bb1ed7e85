"""The configuration that `rlaif init` writes: few options, fitted to the files that are there, each with a reason."""

from __future__ import annotations

import json
import os
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from rlaif.config.starter_text import CPU, ONE_GPU, TEXT
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


@dataclass(frozen=True)
class Found:
    """A file of rows that is there already."""

    name: str
    rows: int
    captions: bool
    """Whether any row has dense captions of its video."""


def write_config(folder: Path, gpu: bool, model: str | None, positions: int | None, force: bool) -> tuple[Path, dict]:
    """Write `rlaif.yaml` into a folder; returns its path and the files of rows that it refers to, by kind.

    `positions`: how many the model has, if that is known. Raises ConfigError if a configuration is there and `force` is
    not given, or the folder cannot be written.
    """
    folder = Path(folder).expanduser().absolute()
    target = folder / NAME
    if len(os.fsencode(folder.name)) > 255:
        raise ConfigError("a folder with a name of at most 255 bytes", folder.name, "Give a shorter name")
    if folder.exists() and not folder.is_dir():
        raise ConfigError("a folder to write a configuration into", f"the file {folder}", "Give the path of a folder")
    if target.is_dir():
        raise ConfigError(f"a file, or nothing, at {target}", "a folder", "Give another folder, or move that one")
    if os.path.lexists(target) and not force:
        raise ConfigError(
            f"no {NAME} in {folder}", "one that is there", "Add --force to replace it, or give another folder"
        )
    if reason := why_not_writable(folder):
        raise ConfigError("a folder that can be written", reason, "Give the path of a folder that you may write to")
    rows = look(folder)
    text = render(folder, rows, gpu, model or (GPU_MODEL if gpu else CPU_MODEL), positions)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    except OSError as error:
        found, change = f"{target}: {error.strerror or error}", "Give the path of a folder that you may write to"
        raise ConfigError("a folder that can be written", found, change) from error
    return target, rows


def look(folder: Path) -> dict[str, Found]:
    """Return the files of rows in a folder, by what they hold."""
    kinds = ("prompts", "sft", "pairs", "pairs_eval", "eval")
    paths = {kind: next((p for e in ENDINGS if (p := folder / f"{kind}{e}").is_file()), None) for kind in kinds}
    return {kind: _read(path) for kind, path in paths.items() if path}


def _read(path: Path) -> Found:
    count, captions = 0, False
    try:
        for row in read_rows(path):
            if not isinstance(row, RowFailure):
                count += 1
                captions = captions or bool(row.fields.get("captions"))
    except DataError:
        pass  # `rlaif check` says what is wrong with it
    return Found(path.name, count, captions)


def render(folder: Path, found: dict[str, Found], gpu: bool, model: str, positions: int | None) -> str:
    """Return the configuration as text."""
    kind = ONE_GPU if gpu else CPU
    longest = min(kind.max_model_len, positions or kind.max_model_len)
    answer = min(kind.max_tokens, longest // 4)
    sizes = _sizes(found, kind.prompts_per_iteration, kind.batch_size)
    starts_from_sft = "sft" in found or "prompts" not in found
    without_pairs = "pairs" not in found and "prompts" in found
    values = {
        "name": _text(re.sub(r"[^A-Za-z0-9_-]+", "-", folder.name).strip("-") or "mine"),
        "storage": _text(folder / "runs"),
        "root": _text(folder),
        "model": _text(model),
        "policy": '"{run}/sft/export"' if starts_from_sft else _text(model),
        "files": "\n".join(_file_lines(found)),
        "max_model_len": longest,
        "max_prompt_tokens": longest - answer,
        "max_tokens": answer,
        "context": "captions" if _has_captions(found) else "none",
        "samples": SAMPLES_PER_PROMPT,
        "no_pairs": "  # there is no pairs.jsonl yet: write one, or give a function instead" if without_pairs else "",
        **sizes,
        **vars(replace(kind)),
    }
    values |= {"max_model_len": longest, "max_tokens": answer, **sizes}
    return re.sub(r"<(\w+)>", lambda slot: str(values[slot[1]]), TEXT)


def _sizes(found: dict[str, Found], prompts: int, batch: int) -> dict[str, int]:
    """Return batch sizes that the files can fill, and divide each other."""
    prompts = min(prompts, found["prompts"].rows or prompts) if "prompts" in found else prompts
    rows = {kind: found[kind].rows if kind in found else 0 for kind in ("sft", "pairs")}
    sft_batch, pairs_batch = (min(batch, count) if count else batch for count in rows.values())
    return {
        "prompts_per_iteration": prompts,
        "minibatch_size": prompts * SAMPLES_PER_PROMPT,
        "sft_batch": sft_batch,
        "pairs_batch": pairs_batch,
        "sft_steps": max(20, min(1000, 3 * rows["sft"] // sft_batch)) if rows["sft"] else 200,
    }


def _has_captions(found: dict[str, Found]) -> bool:
    """Return whether the reward model can read captions: they must be in the pairs and in the prompts."""
    return all(kind in found and found[kind].captions for kind in ("pairs", "prompts"))


def _file_lines(found: dict[str, Found]) -> list[str]:
    """Return a line per file of `data`; without held-out pairs some of the others are held out."""
    lines = []
    for kind, what in WHAT.items():
        default = "null" if kind == "pairs_eval" else f"{kind}.jsonl"
        name = _text(found[kind].name) if kind in found else default
        count = f"{found[kind].rows} rows" if kind in found else MISSING[kind]
        lines.append(f"  {f'{kind}: {name}':<28}  # {what} ({count})")
    return lines


WHAT = {
    "prompts": "questions about videos, for PPO",
    "sft": "conversations to imitate",
    "pairs": "preferred and rejected answers, for the reward model",
    "pairs_eval": "held-out pairs",
    "eval": "held-out questions, to measure before and after",
}
MISSING = {kind: "not there yet" for kind in WHAT} | {"pairs_eval": "a part of `pairs` is held out instead"}


def next_steps(folder: Path, found: dict[str, Found], program: str = "rlaif") -> str:
    """Return what to do after `rlaif init`: the rows that are missing, with a clip that is there, and the commands.

    `program` is the command line that runs rlaif, as the user started it.
    """
    clip = next((p for p in sorted(folder.rglob("*")) if p.suffix.lower() in VIDEOS and "runs" not in p.parts), None)
    video = str(clip.relative_to(folder)) if clip else "clips/a.mp4"
    lines = []
    for kind, row in EXAMPLES.items():
        if kind not in found:
            lines.append(f"  {kind + '.jsonl':<15} {json.dumps(row | {'video': video})}")
    missing = ["Still to be written, one JSON object per line (`eval.jsonl` is optional):", *lines, ""] if lines else []
    check = f"{program} check {shlex.quote(str(folder / NAME))}"
    options = f"{program} options ppo    (a section's options: type, default, meaning)"
    return "\n".join([*missing, f"next:  {check}", f"       {options}"])


EXAMPLES = {
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
"""A row of each file."""


def _text(value: str | Path) -> str:
    """Return a value as YAML reads it on one line."""
    return (
        yaml.safe_dump(str(value), width=10**6, allow_unicode=True, default_style=None)
        .strip()
        .removesuffix("...")
        .strip()
    )
