"""`rlaif eval context CONFIG`: how much captions help judge and reward model, against none and those of another video."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from rlaif.config.schema import Config
from rlaif.data.preference import PreferencePair
from rlaif.errors import ConfigError, ContractError, DataError
from rlaif.functions import load_function
from rlaif.io.rundir import RunDir, typed_command
from rlaif.io.storage import locate
from rlaif.markdown import markdown_table
from rlaif.models.check import require_model
from rlaif.stages.feedback import caption, label, pairs, sample
from rlaif.stages.feedback.judge_inputs import Case, read_cases
from rlaif.stages.feedback.judges import frames_shown
from rlaif.stages.feedback.label_hash import label_hash
from rlaif.stages.feedback.label_report import report_reasons
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.preflight.judges import check_judge_and_functions
from rlaif.stages.recipes import demo
from rlaif.stages.run.run import Run, open_part
from rlaif.stages.run.summary import Summary
from rlaif.stages.train import reward

CONTEXTS = ("captions", "none", "shuffled")
MEASURES = ("judge_agreement", "rm_accuracy")
PAIRS = 2000
"""Held-out pairs of a seed that make a gap of a few points meaningful: 95 % of results are within 2 points of .85."""


def context(config: Config, run: Run) -> list[dict]:
    """Compare contexts; `eval/context.json` has the rows {context, seed, judge_agreement, rm_accuracy, pairs, ...} too.

    There is one row per context and seed. `pairs` were held out; the judge decided on `judge_pairs` of them and the reward
    model on `rm_pairs`. With each seed the policy answers prompts and held-out prompts anew. The judge labels both with each
    context; on its labels a reward model with the same context is trained. Both are compared with `label.reference` on the
    held-out answers.
    """
    if config.label.reference is None or config.data.captions is None:
        raise ConfigError(
            "label.reference to compare with, and data.captions", "not both", "Set label.reference and data.captions."
        )
    began, rows = time.time(), []
    if _is_demo(config) and not Path(config.caption.model).exists():
        demo.start_demo(config, run)
    if isinstance(config.label.judge, str):
        require_model("label.judge", config.label.judge, or_adapter=True)
    caption.caption(config, run)
    cells = _cells(config)
    # All judging comes before any training, so that one engine serves all cells.
    judged = [judge_cell(cell.config, run) for cell in cells]
    run.topology.stop_rollouts()
    frames = {"judge": 0, "reward": config.video.num_frames}
    if config.label.show_video:
        frames["judge"] = frames_shown(cells[0].config)
    for cell, figures in zip(cells, judged, strict=True):
        trained = train_cell(cell.config, run)
        rows.append({"context": cell.context, "seed": cell.seed, **figures, **trained})
        # Written after every cell, so that a study that is killed leaves the rows it has.
        result = {"command": typed_command(), "seconds": time.time() - began, "frames": frames}
        run.directory.write_eval("context", result | {"rows": rows, "contexts": context_means(rows)})
    return rows


class _Cell(NamedTuple):
    """One context with one seed."""

    context: str
    seed: int
    config: Config


def _cells(config: Config) -> list[_Cell]:
    cells = []
    for seed in range(config.seed, config.seed + config.context.seeds):
        for mode in CONTEXTS:
            cells.append(_Cell(mode, seed, cell_config(config, seed, mode)))
    return cells


def study_text(rows: Sequence[dict], frames: Mapping[str, int]) -> str:
    """Return the table of the study, and what a reader should know about it. `frames`: how many the models saw."""
    lines = [context_table(context_means(rows))]
    lines.append(f"of each video the judge saw {frames['judge']} frames, the reward model {frames['reward']}")
    lines += unequal_counts(rows)
    # The fewest of any seed: a single small seed makes a mean uncertain.
    pairs = min(row["pairs"] for row in rows)
    if pairs < PAIRS:
        lines.append(f"{pairs} held-out pairs: with fewer than {PAIRS}, differences of some points are chance")
    return "\n".join(lines)


def context_means(rows: Sequence[dict]) -> dict[str, dict[str, float]]:
    """Return, by context, both accuracies over its seeds, and how far each is above `none`, in the same unit."""
    by_context: dict[str, list[dict]] = {}
    for row in rows:
        by_context.setdefault(row["context"], []).append(row)
    means: dict[str, dict[str, float]] = {}
    for mode, of_context in by_context.items():
        means[mode] = {}
        for name in MEASURES:
            means[mode][name] = fmean(row[name] for row in of_context)
    if "none" in means:
        for figures in means.values():
            for name in MEASURES:
                figures[f"{name}_above_none"] = figures[name] - means["none"][name]
    return means


def context_table(contexts: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table with a line per context."""
    rows = []
    for mode, figures in contexts.items():
        cells = [mode]
        for name in MEASURES:
            cells += [f"{figures[name]:.3f}", f"{figures[f'{name}_above_none']:+.3f}"]
        rows.append(cells)
    return markdown_table(["context", "judge", "above none", "reward model", "above none"], rows)


def _is_demo(config: Config) -> bool:
    """Return whether world and policy are the demo's own, so that they can be made if they do not exist."""
    folder = f"{RunDir(config.storage, config.name).location}/"
    paths = (config.data.root, config.demo.base, config.caption.model)
    return all(str(locate(path)).startswith(folder) for path in paths)


def cell_config(config: Config, seed: int, mode: str) -> Config:
    """Return the configuration of one cell: its own labels and pairs, its seed's answers, a directory below the run's."""
    folder = str(RunDir(config.storage, config.name).path / "context")
    frames = config.context.num_frames or config.label.num_frames
    label_options = config.label.model_copy(update={"context": mode, "num_frames": frames})
    own = config.model_copy(update={"seed": seed, "label": label_options})
    # The label hash is part of the name: labels that were made with other options are in another file.
    files = {
        "candidates": f"{folder}/answers-{seed}.jsonl",
        "labels": f"{folder}/labels-{mode}-{seed}-{label_hash(own)}.jsonl",
        "pairs": f"{folder}/pairs-{mode}-{seed}.jsonl",
        "pairs_eval": f"{folder}/held-out-{seed}.jsonl",
    }
    reward_changes: dict[str, object] = {"context": mode, "eval_every": 0}
    if config.context.reward_steps:
        reward_changes |= {"steps": config.context.reward_steps, "epochs": 0}
    changes = {
        "name": f"{config.name}/context/{mode}-{seed}",
        "data": config.data.model_copy(update=files),
        "reward": config.reward.model_copy(update=reward_changes),
    }
    return own.model_copy(update=changes)


def outside_config(config: Config) -> Config:
    """Return the configuration of the same cell on the prompts for evaluation, in a directory below the cell's."""
    files = {
        "candidates": _outside_path(config.data.candidates),
        "labels": _outside_path(config.data.labels),
    }
    changes = {
        "name": f"{config.name}/outside",
        "data": config.data.model_copy(update=files),
        "candidates": config.candidates.model_copy(update={"prompts": config.eval.descriptions}),
    }
    return config.model_copy(update=changes)


def _outside_path(path: str) -> str:
    name = Path(path).name
    return str(Path(path).with_name(f"outside-{name}"))


def judge_cell(config: Config, run: Run) -> dict:
    """Make answers, labels and pairs of one cell.

    Returns how often the judge orders held-out answers as the reference does, and how many pairs there are.
    """
    outside = outside_config(config)
    outside_run, run = open_part(outside, run), open_part(config, run)
    sample.sample(config, run)
    sample.sample(outside, outside_run)
    overall = require_complete(label.label(outside, outside_run))["agreement"]["overall"]
    require_complete(label.label(config, run))
    # The pairs to evaluate on are those of the reference, below: `pairs` must not hold out any of the judge's.
    without_eval = config.data.model_copy(update={"pairs_eval": None})
    report = pairs.pairs(config.model_copy(update={"data": without_eval}), run)
    cases, _ = read_cases(outside, outside_run)
    decided = list(decided_pairs(outside, cases))
    if not decided:
        raise DataError(
            "held-out answers that the reference tells apart",
            "none",
            "Raise eval.descriptions or candidates.per_model.",
        )
    pairs.write_pairs(Path(config.data.pairs_eval), decided)
    figures = {"judge_agreement": overall["agreement"], "judge_pairs": overall["pairs"]}
    return figures | {"train_pairs": report["pairs"], "pairs": len(decided)}


def unequal_counts(rows: Sequence[dict]) -> list[str]:
    """Return a line for each judge or reward model that gave no result for some held-out pairs.

    Contexts are not compared on the same pairs then.
    """
    lines = []
    for row in rows:
        for name, action in (("judge_pairs", "the judge decided on"), ("rm_pairs", "the reward model could read")):
            if row[name] < row["pairs"]:
                cell = f"{row['context']}, seed {row['seed']}"
                lines.append(f"{cell}: {action} {row[name]} of {row['pairs']} held-out pairs")
    return lines


def require_complete(report: dict) -> dict:
    """Return the report of labels. Raises ContractError if some are missing: contexts would have verdicts on other answers."""
    if report["again"]:
        reason = report_reasons(report)[0]
        raise ContractError(
            "verdicts on every prompt",
            f"{report['again']} of {report['prompts']} prompts without one, wholly or in part: {reason}",
            "Correct the cause, then run the same command again: it goes on from the labels it has.",
        )
    return report


def train_cell(config: Config, run: Run) -> dict:
    """Train the cell's reward model. Returns its accuracy on the held-out answers, and on how many pairs of them."""
    run = open_part(config, run)
    reward.train(config, run, "fresh")
    last = run.directory.read_metrics("reward")[-1]
    if "eval/accuracy" not in last:
        raise DataError(
            "held-out pairs that the reward model can read",
            "none",
            "Replace their videos, or raise data.max_prompt_tokens.",
        )
    return {"rm_accuracy": last["eval/accuracy"], "rm_pairs": int(last["eval/pairs"])}


def decided_pairs(config: Config, cases: Sequence[Case]) -> Iterator[PreferencePair]:
    """Yield every two different answers that the reference tells apart, as pairs in its order."""
    prefer = load_function(config.label.reference)
    for case in cases:
        prompt, answers = case.prompt, case.answers
        for a, b in itertools.combinations(range(len(answers)), 2):
            if answers[a] == answers[b]:
                continue
            sign = prefer(prompt, answers[a], answers[b])
            if sign == 0:
                continue
            best, worst = (a, b) if sign > 0 else (b, a)
            yield PreferencePair(
                pair_id=f"{prompt.prompt_id}#{best}-{worst}",
                prompt_id=prompt.prompt_id,
                video=prompt.video,
                question=prompt.question,
                captions=prompt.captions,
                chosen=answers[best],
                rejected=answers[worst],
            )


def check_eval_context(inquiry: Inquiry) -> None:
    """Check the judge, the code that knows the truth, and that there are captions."""
    config = inquiry.config
    check_judge_and_functions(inquiry)
    if config.label.reference is None:
        expected = "code that knows which of two answers is truer"
        inquiry.report("label.reference", expected, "none", "Set label.reference to a function")
    if config.data.captions is None:
        expected = "the captions that are the context"
        inquiry.report("data.captions", expected, "none", "Run `rlaif caption` and set data.captions")


def summarise_eval_context(config: Config, directory: RunDir, rows: Sequence[dict]) -> Summary:
    """Return the table of the study."""
    frames = directory.read_json("eval/context.json")["frames"]
    return Summary({}, {"report": directory.path / "eval" / "context.json"}, study_text(rows, frames))
