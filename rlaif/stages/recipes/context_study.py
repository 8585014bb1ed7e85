"""Does context help? `rlaif eval context CONFIG`: judge and reward model with captions, without, and with another video's."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from rlaif.config.schema import Config
from rlaif.data.preference import PreferencePair
from rlaif.errors import ConfigError, ContractError, DataError
from rlaif.functions import load_function
from rlaif.io.rundir import RunDir
from rlaif.io.storage import locate
from rlaif.markdown import markdown_table
from rlaif.models.check import require_model
from rlaif.stages.feedback import caption, label, pairs, sample
from rlaif.stages.feedback.judge_inputs import Case, read_cases
from rlaif.stages.feedback.judges import frames_shown
from rlaif.stages.feedback.label_hash import kind_of
from rlaif.stages.feedback.label_report import why
from rlaif.stages.recipes import demo
from rlaif.stages.run.run import Run
from rlaif.stages.train import reward
from rlaif.stages.train.evaluate import command

CONTEXTS = ("captions", "none", "shuffled")
MEASURES = ("judge_agreement", "rm_accuracy")
PAIRS = 2000
"""Held-out pairs of a seed from which on a gap of a few points means something: 95 % are within 2 points of .85."""


def context(config: Config, run: Run) -> list[dict]:
    """Rows {context, seed, judge_agreement, rm_accuracy, pairs, ...} in `eval/context.json`, one per context and seed; `pairs`
    were held out, of which the judge decided on `judge_pairs` and the reward model on `rm_pairs`.

    With each seed the policy answers prompts and held-out prompts anew. The judge labels both with each context; on its
    labels a reward model with the same context is trained. Both are compared with `label.reference` on the held-out answers.
    """
    if config.label.reference is None or config.data.captions is None:
        raise ConfigError(
            "label.reference to compare with, and data.captions", "not both", "Set label.reference and data.captions"
        )
    began, rows, study = time.time(), [], config.context
    if _is_demo(config) and not Path(config.caption.model).exists():
        demo.start(config, run)
    if isinstance(config.label.judge, str):
        require_model("label.judge", config.label.judge, or_adapter=True)
    caption.caption(config, run)
    cells = [
        (seed, mode, variant(config, seed, mode))
        for seed in range(config.seed, config.seed + study.seeds)
        for mode in CONTEXTS
    ]
    found = [judge(cell, run) for _, _, cell in cells]  # one engine for all of them
    run.topology.stop_rollouts()
    frames = {"judge": frames_shown(cells[0][2]) if config.label.show_video else 0, "reward": config.video.num_frames}
    for (seed, mode, cell), judged in zip(cells, found, strict=True):
        rows.append({"context": mode, "seed": seed, **judged, **train(cell, run)})
        written = {"command": command(), "seconds": time.time() - began, "frames": frames}
        run.directory.write_eval("context", written | {"rows": rows, "contexts": means(rows)})
    return rows


def text(rows: Sequence[dict], frames: Mapping[str, int]) -> str:
    """Return the table of the study, and what a reader should know about it. `frames`: how many the models saw."""
    lines = [table(means(rows))]
    lines.append(f"of each video the judge saw {frames['judge']} frames, the reward model {frames['reward']}")
    lines += unequal(rows)
    pairs = min(row["pairs"] for row in rows)
    if pairs < PAIRS:
        lines.append(f"{pairs} held-out pairs: with fewer than {PAIRS}, differences of some points are chance")
    return "\n".join(lines)


def means(rows: Sequence[dict]) -> dict[str, dict[str, float]]:
    """By context: both accuracies over its seeds, and how far each is above `none`, in the same unit."""
    found: dict[str, dict[str, float]] = {}
    for mode in dict.fromkeys(row["context"] for row in rows):
        found[mode] = {name: fmean(row[name] for row in rows if row["context"] == mode) for name in MEASURES}
    for figures in found.values() if "none" in found else ():
        figures |= {f"{name}_above_none": figures[name] - found["none"][name] for name in MEASURES}
    return found


def table(contexts: Mapping[str, Mapping[str, float]]) -> str:
    rows = []
    for mode, figures in contexts.items():
        cells = [mode]
        for name in MEASURES:
            cells += [f"{figures[name]:.3f}", f"{figures[f'{name}_above_none']:+.3f}"]
        rows.append(cells)
    return markdown_table(["context", "judge", "above none", "reward model", "above none"], rows)


def _is_demo(config: Config) -> bool:
    """Whether world and policy are the demo's own, so that they can be made where they are not there."""
    run = f"{RunDir(config.storage, config.name).location}/"
    return all(str(locate(path)).startswith(run) for path in (config.data.root, config.demo.base, config.caption.model))


def variant(config: Config, seed: int, mode: str) -> Config:
    """The configuration of one cell: its own labels and pairs, its seed's answers, and a run directory below the run's."""
    folder = str(RunDir(config.storage, config.name).path / "context")
    frames = config.context.num_frames or config.label.num_frames
    judge = config.label.model_copy(update={"context": mode, "num_frames": frames})
    asked = config.model_copy(update={"seed": seed, "label": judge})  # labels of another kind have another file
    files = {
        "candidates": f"{folder}/answers-{seed}.jsonl",
        "labels": f"{folder}/labels-{mode}-{seed}-{kind_of(asked)}.jsonl",
        "pairs": f"{folder}/pairs-{mode}-{seed}.jsonl",
        "pairs_eval": f"{folder}/held-out-{seed}.jsonl",
    }
    length = {"steps": config.context.reward_steps, "epochs": 0} if config.context.reward_steps else {}
    return asked.model_copy(
        update={
            "name": f"{config.name}/context/{mode}-{seed}",
            "data": config.data.model_copy(update=files),
            "reward": config.reward.model_copy(update={"context": mode, "eval_every": 0} | length),
        }
    )


def held_out(config: Config) -> Config:
    """The same cell on the prompts for evaluation, in a run directory below the cell's."""
    data = config.data.model_copy(
        update={
            name: str(Path(path).with_name(f"outside-{Path(path).name}"))
            for name, path in (("candidates", config.data.candidates), ("labels", config.data.labels))
        }
    )
    asked = config.candidates.model_copy(update={"prompts": config.eval.descriptions})
    return config.model_copy(update={"name": f"{config.name}/outside", "data": data, "candidates": asked})


def judge(config: Config, run: Run) -> dict:
    """Answers, labels and pairs of one cell, with how often the judge orders held-out answers as the reference does."""
    outside = held_out(config)
    beside, run = demo.opened(outside, run), demo.opened(config, run)
    sample.sample(config, run)
    sample.sample(outside, beside)
    judged = complete(label.label(outside, beside))["agreement"]["overall"]
    complete(label.label(config, run))
    built = pairs.pairs(config.model_copy(update={"data": config.data.model_copy(update={"pairs_eval": None})}), run)
    decided = list(decided_pairs(outside, read_cases(outside, run)[0]))
    if not decided:
        raise DataError(
            "held-out answers that the reference tells apart", "none", "Raise eval.descriptions or candidates.per_model"
        )
    pairs.write(Path(config.data.pairs_eval), decided)
    figures = {"judge_agreement": judged["agreement"], "judge_pairs": judged["pairs"]}
    return figures | {"train_pairs": built["pairs"], "pairs": len(decided)}


def unequal(rows: Sequence[dict]) -> list[str]:
    """Where a judge or a reward model said nothing of some held-out pairs, so that contexts are not compared on the same."""
    return [
        f"{row['context']}, seed {row['seed']}: {who} {row[name]} of {row['pairs']} held-out pairs"
        for row in rows
        for name, who in (("judge_pairs", "the judge decided on"), ("rm_pairs", "the reward model could read"))
        if row[name] < row["pairs"]
    ]


def complete(report: dict) -> dict:
    """The report of labels; contexts with verdicts on different answers could not be compared. Raises ContractError."""
    if report["again"]:
        found = f"{report['again']} of {report['prompts']} prompts without one, wholly or in part: {why(report)[0]}"
        raise ContractError(
            "verdicts on every prompt", found, "Mend what stopped them, then run this again: what is there is kept"
        )
    return report


def train(config: Config, run: Run) -> dict:
    """Accuracy of the cell's reward model on the held-out answers, and on how many pairs of them."""
    run = demo.opened(config, run)
    reward.train(config, run, "fresh")
    last = run.directory.read_metrics("reward")[-1]
    if "eval/accuracy" not in last:
        raise DataError(
            "held-out pairs that the reward model can read",
            "none",
            "Replace their videos, or raise data.max_prompt_tokens",
        )
    return {"rm_accuracy": last["eval/accuracy"], "rm_pairs": int(last["eval/pairs"])}


def decided_pairs(config: Config, cases: Sequence[Case]) -> Iterator[PreferencePair]:
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
            yield PreferencePair(
                pair_id=f"{case.prompt.prompt_id}#{best}-{worst}",
                prompt_id=case.prompt.prompt_id,
                video=case.prompt.video,
                question=case.prompt.question,
                captions=case.prompt.captions,
                chosen=case.answers[best],
                rejected=case.answers[worst],
            )
