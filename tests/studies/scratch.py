"""Is the base model that comes with rlaif honest? `make study scratch` (half an hour on two cores).

Runs the demo twice: from the base model in the package, and from scratch, which makes that base anew. Passes if the new
base's held-out claim accuracy is within 2 points of the shipped one's, and if the demos end no further apart than other
machines and seeds do (`SPREAD`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bases import measure
from common import ROOT, write_figures

from rlaif.stages.recipes.demo import SHIPPED, SPREAD

POINTS = 0.02
"""Largest difference of claim accuracy."""
MOST_LEFT = 0.3
"""Largest share of SFT's greedy hallucination that may be left."""


def study(args: argparse.Namespace) -> dict[str, object]:
    """Run both demos, measure both bases, and compare."""
    with tempfile.TemporaryDirectory() as folder:
        storage = args.storage or Path(folder)
        demos = {name: run_demo(storage, name, *options) for name, options in DEMOS.items()}
        retrained = storage / "scratch" / "pretrained" / "sft" / "export"
        bases = {"shipped": measure(SHIPPED), "retrained": measure(retrained)}
    apart = bases["retrained"]["claim_accuracy"] - bases["shipped"]["claim_accuracy"]
    checks = {"base": abs(apart) <= POINTS}
    checks |= {f"demo, {name}": within(name, *demos.values()) for name in SPREAD}
    checks["demo, removes hallucination"] = all(demo["hallucination_left"] <= MOST_LEFT for demo in demos.values())
    return {
        "bases": bases,
        "claim_accuracy_difference": apart,
        "demos": demos,
        "spread": SPREAD,
        "checks": checks,
        "passed": all(checks.values()),
    }


DEMOS = {"quick": (), "scratch": ("demo.scratch=true",)}


def run_demo(storage: Path, name: str, *options: str) -> dict[str, float]:
    """Run one demo and return how it ends."""
    command = [sys.executable, "-m", "rlaif", "demo", "configs/demo.yaml", f"storage={storage}", f"name={name}"]
    subprocess.run([*command, "logging.wandb=off", *options], cwd=ROOT, check=True)
    rows = json.loads((storage / name / "eval" / "demo.json").read_text())["rows"]
    greedy = {row["policy"]: row for row in rows if row["decoding"] == "greedy"}
    before, after = greedy["sft"], greedy["rlaif"]
    return {
        "hallucination_left": after["hallucination"] / before["hallucination"],
        "recall_gained": after["recall"] - before["recall"],
        "qa_accuracy": after["qa_accuracy"],
        "sft_hallucination": before["hallucination"],
    }


def within(figure: str, one: dict[str, float], other: dict[str, float]) -> bool:
    """Return whether two demos are as close to each other as the stated spread."""
    least, most = SPREAD[figure]
    return abs(one[figure] - other[figure]) <= most - least


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", type=Path, help="folder to keep both run directories in")
    sys.exit(write_figures(study, parser))
