"""What each stage says at its end; `rlaif/stages/run/summary.py` says how it is printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.io.rundir import MAIN_STAGE, RunDir
from rlaif.io.storage import locate
from rlaif.stages.compare import agreement, winrate
from rlaif.stages.recipes import context_study as context_stage
from rlaif.stages.run.datasets import data_path
from rlaif.stages.run.summary import Summary, Typed
from rlaif.stages.train import evaluate


def summarise(stage: str, config: Config, typed: Typed, result: Any) -> Summary:
    """Return the summary of a finished stage. `result`: what the stage's function returned."""
    run = RunDir(config.storage, config.name)
    summary = SUMMARIES[stage](config, run, result)
    stays_here = {"metrics": run.metrics, "log": run.path / "logs" / f"{stage.replace(' ', '-')}.log"}
    summary.places |= {name: path for name, path in stays_here.items() if path.exists()}
    summary.steps += [(what, typed.command(name, *more)) for what, name, more in following(stage, config)]
    return summary


def following(stage: str, config: Config) -> list[tuple[str, str, Sequence[str]]]:
    """Return (what it does, stage, options) of the stages that can follow, given what this run's options point to."""
    run = RunDir(config.storage, config.name)
    feedback = ("sample answers that a judge can compare", "sample", ())
    captions = ("caption the videos", "caption", ())
    choices: dict[str, list[tuple[str, str, Sequence[str]]]] = {
        "sft": [*_uses_of_sft(config, run), captions if config.data.captions else feedback],
        "caption": [feedback],
        "sample": [("have the judge label the answers", "label", ())],
        "label": [("make preference pairs of the labels", "pairs", ())],
        "pairs": [("train a reward model on the pairs", "reward", ())],
        "ppo": [("evaluate the start and the export side by side", "eval", ())],
    }
    uses_reward = not isinstance(config.ppo.reward, Function) and _same(config.ppo.reward, run.export("reward"))
    if uses_reward and _exists(config.ppo.policy):
        choices["reward"] = [("align the policy with this reward model", "ppo", ())]
    return choices.get(stage, [])


def _uses_of_sft(config: Config, run: RunDir) -> list[tuple[str, str, Sequence[str]]]:
    """Return the training stages that start from this run's fine-tuned model and have their data."""
    export = run.export("sft")
    if isinstance(config.ppo.reward, Function):
        step = ("align the model with the reward function", "ppo", ())
        return [step] if _same(config.ppo.policy, export) else []
    with_pairs = data_path(config, config.data.pairs).is_file()
    step = ("train a reward model on the pairs", "reward", ())
    return [step] if with_pairs and _same(config.reward.init, export) else []


def _same(path: str, location: Any) -> bool:
    return str(locate(path)) == str(location)


def _exists(path: str) -> bool:
    return (locate(path) / "config.json").exists()


# ---------------------------------------------------------------- one function per stage


def _sft(config: Config, run: RunDir, export: str) -> Summary:
    losses = [row["train/nll"] for row in run.read_metrics("sft") if row.get("train/nll") is not None]
    figures = {"steps": str(config.sft.steps)}
    if losses:
        figures["loss per token"] = f"{losses[0]:.3f} -> {losses[-1]:.3f}"
    return Summary(figures, {"export": export})


def _caption(config: Config, run: RunDir, counts: Mapping[str, int]) -> Summary:
    return Summary({"videos": _counts(counts)}, {"captions": config.data.captions})


def _sample(config: Config, run: RunDir, counts: Mapping[str, int]) -> Summary:
    figures = {"prompts": _counts(counts), "answers each": str(config.candidates.per_model)}
    return Summary(figures, {"answers": config.data.candidates})


def _label(config: Config, run: RunDir, report: Mapping[str, Any]) -> Summary:
    masked = sum(report["masked"].values())
    figures = {"prompts": str(report["prompts"]), "answers": f"{report['answers']} ({masked} without a score)"}
    if "claims" in report:
        figures["claims"] = f"{report['claims']}, of which the judge rejects {report['rejected']}"
    if report.get("flips", {}).get("before") is not None:
        figures["changed by order"] = f"{report['flips']['before']:.1%} of the verdicts"
    overall = report.get("agreement", {}).get("overall", {})
    if overall.get("pairs"):
        figures["as the reference"] = f"{overall['agreement']:.1%} of {overall['pairs']} pairs of answers"
    if "server" in report:
        figures["server"] = _counts(report["server"]["labels"])
    return Summary(figures, {"labels": config.data.labels, "report": run.path / "eval" / "label.json"})


def _pairs(config: Config, run: RunDir, report: Mapping[str, Any]) -> Summary:
    figures = {
        "pairs": f"{report['pairs']} of {report['prompts_with_pairs']} prompts, {report['held_out']} held out",
        "left out": _counts(report["dropped"]) or "none",
    }
    return Summary(figures, {"file": config.data.pairs, "report": run.path / "eval" / "pairs.json"})


def _reward(config: Config, run: RunDir, export: str) -> Summary:
    measured = [row for row in run.read_metrics("reward") if row.get("eval/accuracy") is not None]
    figures = {}
    if measured:
        best = max(measured, key=lambda row: row["eval/accuracy"])
        figures["held-out accuracy"] = f"{best['eval/accuracy']:.1%} at step {best['iteration']}"
    return Summary(figures, {"export": export})


def _score(config: Config, run: RunDir, report: Mapping[str, Any]) -> Summary:
    figures = {"rows": str(report["rows"])}
    for model in report["models"]:
        figures[model["model"]] = f"{model['candidates']} candidates, {model['masked']} without a score"
    return Summary(figures, {"scores": report["out"], "report": run.path / "eval" / "score.json"})


def _ppo(config: Config, run: RunDir, export: str) -> Summary:
    rows = run.read_metrics(MAIN_STAGE)
    rewards = [row["reward/mean"] for row in rows if row.get("reward/mean") is not None]
    figures = {"iterations": str(rows[-1]["iteration"]) if rows else "0"}
    if rewards:
        figures["mean reward"] = f"{rewards[0]:.3f} -> {rewards[-1]:.3f}"
        figures["KL per answer"] = f"{rows[-1]['kl/response']:.2f} nats"
    evaluated = run.read_json("eval/ppo.json")
    table = evaluate.table(evaluated["rows"]) if evaluated and evaluated["rows"] else ""
    return Summary(figures, {"export": export, "samples": run.path / "samples"}, table)


def _eval(config: Config, run: RunDir, rows: Sequence[dict]) -> Summary:
    return Summary({}, {"rows": run.path / "eval" / "ppo.json"}, evaluate.table(rows))


def _agreement(config: Config, run: RunDir, found: dict) -> Summary:
    return Summary({}, {"report": run.path / "eval" / "agreement.json"}, agreement.table(found))


def _winrate(config: Config, run: RunDir, found: dict) -> Summary:
    folder = run.path / "eval"
    return Summary({}, {"report": folder / "winrate.json", "page": folder / "winrate.html"}, winrate.table(found))


def _context(config: Config, run: RunDir, rows: Sequence[dict]) -> Summary:
    frames = run.read_json("eval/context.json")["frames"]
    return Summary({}, {"report": run.path / "eval" / "context.json"}, context_stage.text(rows, frames))


def _counts(counts: Mapping[str, Any]) -> str:
    """Return the counts that are not zero, as words."""
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count)


SUMMARIES: dict[str, Callable[[Config, RunDir, Any], Summary]] = {
    "sft": _sft,
    "caption": _caption,
    "sample": _sample,
    "label": _label,
    "pairs": _pairs,
    "reward": _reward,
    "score": _score,
    "ppo": _ppo,
    "eval": _eval,
    "eval agreement": _agreement,
    "eval winrate": _winrate,
    "eval context": _context,
}
