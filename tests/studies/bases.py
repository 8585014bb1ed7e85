"""Measure a base model of the demo, and copy one into the package.

    python tests/studies/bases.py measure BASE             held-out figures of a base model, as JSON
    python tests/studies/bases.py ship RUN_DIRECTORY       copy the base of a demo from scratch into the package
    python tests/studies/bases.py record                   add the held-out figures to its `made_by.json`

`ship RUN_DIRECTORY COMMIT COMMAND` records a run of another commit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path

import yaml
from common import ROOT, commit, libraries, machine

from rlaif.config.load import load_config
from rlaif.stages.recipes.demo import SHIPPED
from rlaif.stages.run.run import open_run
from rlaif.stages.train import evaluate
from rlaif.stages.train.workers import start_workers
from rlaif.worlds.shapes.dataset import write_dataset

SCENES, SEED = 256, 0
"""Held-out scenes that a base is measured on: those of configs/demo.yaml."""
REWARD = "{path: 'rlaif.worlds.shapes.checker:reward'}"
MOST_BYTES = 5 * 2**20


def measure(base: Path) -> dict[str, float]:
    """Return the report of `rlaif eval` on a base model: greedy answers on held-out scenes, against the scenes' truth.

    `claim_accuracy` is the share of claims in descriptions that are true. It is well below 1 by design: the errors that
    the demo removes are planted in the data that the base learned to describe from.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder) / "data", {"prompt": 1, "test": SCENES}, SEED)
        options = [f"storage={folder}", "name=base", f"data.root={folder}/data", "data.captions=null"]
        options += [f"ppo.policy={base}", f"ppo.reward={REWARD}", "logging.wandb=off"]
        config = load_config(ROOT / "configs" / "demo.yaml", options)
        with open_run(config) as run:
            prompts = evaluate.held_out(config, run)
            workers = start_workers(config, run, evaluate.frozen(config, None))
            greedy = evaluate.measure(config, workers, prompts, "greedy")
    figures = {"claim_accuracy": 1 - greedy["hallucination"], "recall": greedy["recall"]}
    return figures | {"qa_accuracy": greedy["qa_accuracy"], "scenes": SCENES}


def ship(run: Path, made_from: str = "", command: str = "make demo SCRATCH=1") -> None:
    """Copy the base of a demo from scratch into the package, with `made_by.json`.

    Args:
        run: the demo's run directory.
        made_from: the commit that made it, if not the present one.
        command: the command line that made it.
    """
    export = run / "pretrained" / "sft" / "export"
    options = {name: yaml.safe_load((run / name / "config.yaml").read_text()) for name in ("read", "pretrained")}
    if SHIPPED.exists():
        shutil.rmtree(SHIPPED)
    shutil.copytree(export, SHIPPED)
    files = sorted(SHIPPED.iterdir())
    for file in files:
        file.chmod(0o644)
    made_by = {
        "command": command,
        "commit": made_from or commit(),
        "seed": options["pretrained"]["seed"],
        "steps": {name: config["sft"]["steps"] for name, config in options.items()},
        "pretrain_scenes": scenes_of(run),
        "libraries": libraries(),
        "machine": machine(),
        "sha256": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
    }
    (SHIPPED / "made_by.json").write_text(json.dumps(made_by, indent=1) + "\n")
    size = sum(file.stat().st_size for file in SHIPPED.iterdir())
    if size > MOST_BYTES:
        raise SystemExit(f"the base model has {size} bytes, more than {MOST_BYTES}")


def record() -> None:
    """Add the held-out figures to the record of the base model in the package."""
    file = SHIPPED / "made_by.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"held_out": measure(SHIPPED)}, indent=1) + "\n")


def scenes_of(run: Path) -> int:
    """Return the number of scenes behind a run's `pretrain.jsonl`."""
    rows = (run / "data" / "pretrain.jsonl").read_text().splitlines()
    return len({json.loads(row)["id"].partition("/")[0] for row in rows})


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["measure", base]:
            print(json.dumps(measure(Path(base).resolve()), indent=1))
        case ["ship", run, *made_from]:
            ship(Path(run).resolve(), *made_from)
        case ["record"]:
            record()
        case _:
            sys.exit(__doc__)
