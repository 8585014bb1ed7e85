"""Does context help? `rlaif eval context CONFIG`: judge and reward model with captions, without, and with another video's."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from actors.reward import load_function
from rlaif.config.schema import Config
from rlaif.errors import ConfigError, DataError
from rlaif.preferences.record import Preference
from rlaif.rundir import RunDir
from rlaif.stages import candidates, caption, label, pairs, reward
from rlaif.stages.evaluate import command
from rlaif.stages.label import Case
from rlaif.stages.run import Run

CONTEXTS = ("captions", "none", "shuffled")


def context(config: Config, run: Run, seeds: int = 3) -> list[dict]:
    """Rows {context, seed, judge_agreement, rm_accuracy, pairs, ...} in `eval/context.json`, one per context and seed.

    With each seed the policy answers prompts and held-out prompts anew. The judge labels both with each context; on its
    labels a reward model with the same context is trained. Both are compared with `label.reference` on the held-out answers.
    """
    if config.label.reference is None or config.data.captions is None:
        raise ConfigError(
            "label.reference to compare with, and data.captions", "not both", "label.reference, data.captions"
        )
    began, rows = time.time(), []
    caption.caption(config, run)
    for seed, mode in itertools.product(range(config.seed, config.seed + seeds), CONTEXTS):
        row = {"context": mode, "seed": seed, **measure(variant(config, seed, mode), run)}
        rows.append(row)
        run.directory.write_eval("context", {"command": command(), "seconds": time.time() - began, "rows": rows})
        print(
            ", ".join(
                f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()
            )
        )
    return rows


def variant(config: Config, seed: int, mode: str) -> Config:
    """The configuration of one cell: its own labels and pairs, its seed's answers, and a run directory below the run's."""
    folder = str(RunDir(config.storage, config.name).path / "context")
    files = {
        "candidates": f"{folder}/answers-{seed}.jsonl",
        "labels": f"{folder}/labels-{mode}-{seed}.jsonl",
        "pairs": f"{folder}/pairs-{mode}-{seed}.jsonl",
        "pairs_eval": f"{folder}/held-out-{seed}.jsonl",
    }
    return config.model_copy(
        update={
            "name": f"{config.name}/context/{mode}-{seed}",
            "seed": seed,
            "data": config.data.model_copy(update=files),
            "label": config.label.model_copy(update={"context": mode}),
            "reward": config.reward.model_copy(update={"context": mode, "eval_every": 0}),
        }
    )


def held_out(config: Config) -> Config:
    """The same cell on the prompts for evaluation."""
    data = config.data.model_copy(
        update={
            "candidates": config.data.candidates.replace("/answers-", "/answers-held-out-"),
            "labels": config.data.labels.replace("/labels-", "/labels-held-out-"),
        }
    )
    return config.model_copy(
        update={"data": data, "candidates": config.candidates.model_copy(update={"prompts": config.eval.descriptions})}
    )


def measure(config: Config, run: Run) -> dict:
    """One cell's figures."""
    run = replace(run, config=config, directory=RunDir(config.storage, config.name))
    run.directory.prepare()
    outside = held_out(config)
    for part in (config, outside):
        candidates.sample(part, run)
    judged = label.label(outside, run)["agreement"]["overall"]
    label.label(config, run)
    built = pairs.pairs(config.model_copy(update={"data": config.data.model_copy(update={"pairs_eval": None})}), run)
    decided = list(decided_pairs(outside, label.read_cases(outside, run)))
    if not decided:
        raise DataError("held-out answers that the reference tells apart", "none", "data.eval, candidates.per_model")
    pairs.write(Path(config.data.pairs_eval), decided)
    run.topology.stop_rollouts()
    reward.train(config, run, "fresh")
    accuracy = run.directory.read_metrics("reward")[-1]["eval/accuracy"]
    figures = {"judge_agreement": judged["agreement"], "rm_accuracy": accuracy, "pairs": len(decided)}
    return figures | {"judge_pairs": judged["pairs"], "train_pairs": built["pairs"]}


def decided_pairs(config: Config, cases: Sequence[Case]) -> Iterator[Preference]:
    """Every two different answers that the reference tells apart, as pairs in its order."""
    prefer = load_function(config.label.reference)
    for case in cases:
        for a, b in itertools.combinations(range(len(case.answers)), 2):
            if (
                case.answers[a] == case.answers[b]
                or (sign := prefer(case.prompt, case.answers[a], case.answers[b])) == 0
            ):
                continue
            best, worst = (a, b) if sign > 0 else (b, a)
            yield Preference(
                pair_id=f"{case.prompt.prompt_id}#{best}-{worst}",
                prompt_id=case.prompt.prompt_id,
                video=case.prompt.video,
                question=case.prompt.question,
                captions=case.prompt.captions,
                chosen=case.answers[best],
                rejected=case.answers[worst],
            )
