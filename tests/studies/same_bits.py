"""Does the same seed give the same bits? `make study same-bits` (two minutes on two cores).

Runs every stage of the demo at a small size with `deterministic=true` and two learner ranks (fine-tuning, feedback, reward
model, PPO), and takes the SHA-256 of everything that the run computed: weights, optimizer moments, samples, metrics,
feedback and evaluations. Passes if all of them are those of an earlier record, which a change of the code alone must not
alter. Other processors and other versions of the libraries may give other bits: `--new` starts a new record.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from common import RECORDS, ROOT, commit, libraries, machine, write_figures
from safetensors.numpy import load_file

RECORD = RECORDS / "same-bits.json"
OPTIONS = (
    "deterministic=true",
    "logging.wandb=off",
    "demo.train_scenes=40",
    "demo.prompt_scenes=12",
    "demo.eval_scenes=6",
    "sft.steps=6",
    "sft.batch_size=8",
    "candidates.per_model=4",
    # After so few steps the model holds every claim true, so that only comparisons give pairs.
    "label.method=pairwise",
    "label.flips=average",
    "pairs.margin=0",
    "reward.steps=4",
    "reward.batch_size=8",
    "reward.eval_every=2",
    "ppo.iterations=3",
    "ppo.prompts_per_iteration=6",
    "ppo.samples_per_prompt=2",
    "ppo.minibatch_size=6",
    "ppo.epochs=2",
    "ppo.kl.controller=adaptive",
    "ppo.parity.every=1",
    "ppo.eval_every=3",
    "ppo.save.every=1",
    "cluster.learner.actors=2",
    "cluster.object_store_gib=0.3",
)
CLOCK = re.compile(r"^(time|timeline/|frames/|vision/)|seconds$|per_s$")
"""Names of metrics that say how long something took, or what a cache did in that time: they differ from run to run."""
UNCOMPUTED = ("time", "command", "config", "directory", "kind")
"""Names in other JSON files of what the run did not compute: when it was, and what was typed. `kind` beside a label is a
digest of its options, among them the judge's path."""


def study(args: argparse.Namespace) -> dict[str, object]:
    """Run the demo once and compare its hashes with those of an earlier record, if there is one."""
    earlier = None
    if not args.new and args.against.is_file():
        earlier = json.loads(args.against.read_text())["figures"]
    with tempfile.TemporaryDirectory() as folder:
        storage = args.storage or Path(folder)
        run_demo(storage)
        hashes = hashes_of(storage / "same-bits")
    present = {"commit": commit(), "cpu": machine()["cpu"], "libraries": libraries()}
    first = earlier["first"] if earlier else present
    differ = differences(earlier["hashes"], hashes) if earlier else []
    return {
        "first": first,
        "this": present,
        "same_machine_and_libraries": all(first[name] == present[name] for name in ("cpu", "libraries")),
        "options": OPTIONS,
        "differ": differ,
        "hashes": hashes,
        "passed": not differ,
    }


def run_demo(storage: Path) -> None:
    """Run the demo in a directory below `storage`, on a cluster of its own."""
    command = [sys.executable, "-m", "rlaif", "demo", "configs/demo.yaml", f"storage={storage}", "name=same-bits"]
    # A running cluster would be joined, with actors that have worked before.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # `python -m` finds the package here first, whatever is installed.
    subprocess.run([*command, *OPTIONS], cwd=ROOT, env=environment, check=True)


def hashes_of(run: Path) -> dict[str, str]:
    """Return the SHA-256 of each result of a run, by kind and path in the run directory."""
    hashes = {"videos": hash_of(file.read_bytes() for file in sorted(run.rglob("*.mp4")))}
    for file in sorted(run.rglob("*.safetensors")):
        hashes[f"weights/{file.relative_to(run)}"] = hash_of(tensor_bytes(file))
    for folder in ("data", "feedback", "samples"):
        for file in sorted((run / folder).glob("*.jsonl")):
            rows = [computed(row) for row in read_rows(file, run)]
            hashes[f"rows/{file.relative_to(run)}"] = hash_of(map(canonical, rows))
    for file in [*sorted(run.glob("eval/*.json")), *sorted(run.rglob("checkpoints/*/*.json"))]:
        content = json.loads(without_path(file.read_text(), run))
        hashes[f"results/{file.relative_to(run)}"] = hash_of([canonical(computed(content))])
    return hashes | metric_hashes(run)


def metric_hashes(run: Path) -> dict[str, str]:
    """Return the SHA-256 of each stage's metrics without those of the clock."""
    rows_by_stage: dict[str, list[bytes]] = {}
    for row in read_rows(run / "metrics.jsonl", run):
        steady = {name: value for name, value in row.items() if not CLOCK.search(name)}
        rows_by_stage.setdefault(row["stage"], []).append(canonical(steady))
    return {f"metrics/{stage}": hash_of(rows) for stage, rows in rows_by_stage.items()}


def tensor_bytes(file: Path) -> Iterable[bytes]:
    """Yield the name, type, shape and bytes of each tensor of a file, by name: a header may list them in any order."""
    for name, array in sorted(load_file(file).items()):
        yield f"{name} {array.dtype} {array.shape}".encode()
        yield array.tobytes()


def computed(content: object) -> object:
    """Return JSON content without the keys of values that the run did not compute."""
    if isinstance(content, Mapping):
        return {name: computed(value) for name, value in content.items() if name not in UNCOMPUTED}
    if isinstance(content, list):
        return [computed(value) for value in content]
    return content


def read_rows(file: Path, run: Path) -> list[dict]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in without_path(file.read_text(), run).splitlines()]


def without_path(text: str, run: Path) -> str:
    """Replace the path of the run directory, which is another one every time."""
    return text.replace(str(run), "{run}")


def canonical(content: object) -> bytes:
    """Return JSON as bytes that do not depend on the order of keys; every bit of a number counts."""
    return json.dumps(content, sort_keys=True).encode()


def hash_of(parts: Iterable[bytes]) -> str:
    """Return the SHA-256 of parts, each with its length, so that none can pass into the next one."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the names whose hashes differ or that only one side has."""
    names = sorted(before.keys() | after.keys())
    return [name for name in names if before.get(name) != after.get(name)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--against", type=Path, default=RECORD, help="earlier record; default: docs/studies/same-bits.json"
    )
    parser.add_argument("--new", action="store_true", help="start a new record, for another machine or other libraries")
    parser.add_argument("--storage", type=Path, help="folder to keep the run directory in")
    sys.exit(write_figures(study, parser))
