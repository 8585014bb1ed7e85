"""The whole system in miniature: `rlaif demo CONFIG` (`make demo`)."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.io.memory import MemoryWatch
from rlaif.io.rundir import RunDir
from rlaif.io.storage import locate, replacing
from rlaif.io.terminal import headline, phase, say
from rlaif.models.tiny import build_tiny
from rlaif.stages.feedback import caption, label, pairs, sample
from rlaif.stages.preflight.functions import check_function
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.preflight.judges import check_label_functions
from rlaif.stages.run.datasets import data_path
from rlaif.stages.run.run import Run, require_below_run
from rlaif.stages.run.summary import NextStage, Summary
from rlaif.stages.train import ppo, reward, sft
from rlaif.stages.train.evaluate import command, table
from rlaif.worlds.shapes.dataset import write_dataset
from rlaif.worlds.shapes.language import WORDS

SHIPPED = Path(__file__).parents[2] / "worlds" / "shapes" / "base"
"""What `reading` and `pretraining` made once, with `made_by.json`, which says how."""
WATCH_S = 5.0
"""Between two looks at the memory of all processes: a look takes a noticeable part of a core."""
SPREAD: dict[str, tuple[float, float]] = {"hallucination_left": (0.03, 0.20), "qa_accuracy": (0.83, 0.97)}
"""Least and greatest of what demos on different machines and with different seeds ended with (greedy answers)."""


@dataclass(frozen=True)
class DemoResult:
    """The rows of the demo's table, and the figures of what they cost."""

    rows: list[dict]
    figures: Mapping[str, str]


def demo(config: Config, run: Run) -> DemoResult:
    """Run every stage on the shapes world, and PPO once per seed."""
    rows: list[dict] = []
    with MemoryWatch(interval_s=WATCH_S) as memory:
        start(config, run)
        headline("3/5 feedback: the model captions clips of each video, answers, and verifies its answers' claims")
        feedback(config, run)
        headline("4/5 reward model, with the videos' dense captions as context")
        reward.train(config, run, "fresh")
        for seed in range(config.seed, config.seed + config.demo.seeds):
            headline(f"5/5 PPO, seed {seed}")
            rows += train_seed(config, run, seed)
        counters = run.topology.frame_counters()
        write_results(config, run, rows)
        with phase("stopping the actors"):
            run.topology.stop()
    figures = {
        "decodes per video": f"{counters['frames/decodes'] / counters['frames/videos']:.2f}",
        "re-decodes": f"{counters['frames/redecodes']:.0f}",
        "peak memory": f"{memory.peak_gib:.1f} GiB, all processes together",
    }
    return DemoResult(rows, figures)


def started_from(config: Config) -> str:
    """Return a sentence about what the demo's policy is made of."""
    if config.demo.scratch:
        return "from scratch (demo.scratch=true), the base model included"
    return "from the base model that comes with rlaif (demo.scratch=true, or `make demo SCRATCH=1`, makes that too)"


def start(config: Config, run: Run) -> None:
    """Make the world, and the policy that everything else starts from: it sees, describes and judges."""
    headline(f"1/5 world: videos of moving shapes; {started_from(config)}")
    prepare(config)
    if config.demo.scratch:
        headline("2/5 base model: it learns to read, then to see and describe, then to verify claims as well")
        for stage in (reading(config), pretraining(config)):
            sft.train(stage, opened(stage, run), "fresh")
    else:
        headline("2/5 supervised fine-tuning: descriptions with planted errors, and how to verify claims")
        copy_base(config)
    sft.train(config, run, "fresh")


def copy_base(config: Config) -> None:
    """Put the base model that comes with rlaif where `pretraining` would write it."""
    with replacing(RunDir(config.storage, pretraining(config).name).export("sft")) as folder:
        shutil.copytree(SHIPPED, folder, dirs_exist_ok=True)


def reading(config: Config) -> Config:
    """Return the options that train the untrained model on `reading.jsonl`, text alone, as language models are."""
    changes = {"init": config.demo.base, "steps": config.demo.read_steps}
    return before(config, "read", "reading.jsonl", changes | {"train_vision": False, "train_projector": False})


def pretraining(config: Config) -> Config:
    """Return the options that train the same model on `pretrain.jsonl`, as video-language models are."""
    init = RunDir(config.storage, f"{config.name}/read").export("sft")
    changes = {"init": str(init), "steps": config.demo.pretrain_steps}
    return before(config, "pretrained", "pretrain.jsonl", changes | {"train_vision": None, "train_projector": None})


def before(config: Config, name: str, file: str, changes: Mapping[str, object]) -> Config:
    """Return the options of fine-tuning before `sft`, in a run directory of its own below the run's."""
    sections = {
        "sft": config.sft.model_copy(update=changes),
        "data": config.data.model_copy(update={"sft": file}),
    }
    return config.model_copy(update={"name": f"{config.name}/{name}", **sections})


def opened(config: Config, run: Run) -> Run:
    """Return a run with a directory of its own on the actors of another."""
    run = replace(run, config=config, directory=RunDir(config.storage, config.name), within=run.shared)
    run.directory.prepare()
    run.directory.write_config(config.model_dump(mode="json"))
    return run


def prepare(config: Config) -> None:
    """Write the dataset and the untrained model below the run directory, so that no user's data are replaced."""
    require_below_run(config, "configs/demo.yaml", **{"data.root": config.data.root, "demo.base": config.demo.base})
    set_aside(config)
    sizes = {"train": config.demo.train_scenes, "prompt": config.demo.prompt_scenes, "test": config.demo.eval_scenes}
    sizes["pretrain"] = config.demo.pretrain_scenes if config.demo.scratch else 0
    write_dataset(Path(config.data.root), sizes, config.seed)
    if config.demo.scratch:
        build_tiny(Path(config.demo.base), WORDS, config.seed)


def set_aside(config: Config) -> None:
    """Rename what an earlier demo's models said and the pairs made of it: none of it is about this demo's models."""
    folder = RunDir(config.storage, config.name).path
    pairs_files = [file for file in (config.data.pairs, config.data.pairs_eval) if file]
    for path in (folder / "feedback", folder / "context", *(data_path(config, file) for file in pairs_files)):
        if path.exists() and path.is_relative_to(folder):
            names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
            path.rename(next(name for name in names if not name.exists()))


def feedback(config: Config, run: Run) -> None:
    """Make captions, answers, verdicts and preference pairs with the policy itself, without the scenes' truth.

    The truth only measures afterwards how often the verdicts are right.
    """
    caption.caption(config, run)
    sample.sample(config, run)
    labels = label.label(config, run)
    built = pairs.pairs(config, run)
    say(f"{built['pairs']} pairs of answers")
    right = labels.get("agreement", {}).get("overall", {})
    if right.get("pairs"):
        say(f"the labels order {right['agreement']:.1%} of {right['pairs']} pairs of answers as the scenes do")


def train_seed(config: Config, run: Run, seed: int) -> list[dict]:
    """Run PPO with one seed and return its rows of the table. The first seed has the run's own directory."""
    if seed != config.seed:
        config = config.model_copy(update={"name": f"{config.name}-seed{seed}", "seed": seed})
        run = opened(config, run)
    ppo.train(config, run, "fresh")
    return run.directory.read_json("eval/ppo.json")["rows"]


def write_results(config: Config, run: Run, rows: list[dict]) -> None:
    """Write `eval/demo.json`: the rows, and which base model they start from."""
    names = ("policy", "seed", "decoding", "hallucination", "recall", "qa_accuracy", "reward", "kl", "length")
    kept = [{name: row.get(name) for name in names} for row in rows]
    base = "scratch" if config.demo.scratch else "shipped"
    run.directory.write_eval("demo", {"command": command(), "base": base, "rows": kept})


def check_demo(inquiry: Inquiry) -> None:
    """Check the functions that options name; the demo makes everything else itself."""
    config = inquiry.config
    check_function(inquiry, "eval.checker", config.eval.checker)
    check_label_functions(inquiry)
    if isinstance(config.ppo.reward, Function):
        check_function(inquiry, "ppo.reward", config.ppo.reward.path)


def summarise_demo(config: Config, directory: RunDir, result: DemoResult) -> Summary:
    """Return the table of SFT against RLAIF, what it cost, where everything is and what can follow."""
    path = directory.path
    places = {"run directory": path, "results": path / "eval" / "demo.json", "export": path / "export"}
    places["samples"] = path / "samples"
    text = "\n".join([table(result.rows), "", *verdicts(config, result.rows), spread()])
    return Summary(dict(result.figures), places, text, following(config), remark=started_from(config))


def following(config: Config) -> list[NextStage]:
    """Return the stages that can follow; a second PPO run keeps the demo's data and models."""
    shared = {
        "data.root": config.data.root,
        "data.captions": config.data.captions,
        "ppo.policy": config.ppo.policy,
        "ppo.reward": config.ppo.reward,
    }
    options = [f"name={config.name}-kl"]
    for name, path in shared.items():
        if isinstance(path, str):
            options.append(f"{name}={locate(path)}")
    purpose = "the same PPO experiment with a stronger KL penalty, in a run directory of its own"
    return [
        ("evaluate the exported policy again", "eval", ()),
        (purpose, "ppo", (*options, "ppo.kl.coef=0.2")),
    ]


def verdicts(config: Config, rows: list[dict]) -> list[str]:
    """Say for each seed how much greedy hallucination PPO removed, what recall it cost, and how far the policy moved."""
    greedy = {(row["policy"], row["seed"]): row for row in rows if row["decoding"] == "greedy"}
    lines = []
    for (name, seed), after in greedy.items():
        if name != "rlaif":
            continue
        before = greedy["sft", seed]
        if not before.get("hallucination") or "hallucination" not in after:
            lines.append(f"seed {seed}: a policy without (false) claims; nothing to compare")
            continue
        left = after["hallucination"] / before["hallucination"]
        limit = config.ppo.kl.limit
        lines.append(
            f"seed {seed}: {left:.0%} of SFT's greedy hallucination is left, recall {after['recall'] - before['recall']:+.3f}, "
            f"KL {after['kl']:.2f} nats per answer ({'within' if after['kl'] <= limit else 'BEYOND'} ppo.kl.limit {limit:g})"
        )
    return lines


def spread() -> str:
    """Say how far the figures of other machines and seeds are apart."""
    left, answers = SPREAD["hallucination_left"], SPREAD["qa_accuracy"]
    return (
        "figures differ between machines and seeds, because kernels add up in another order: measured were "
        f"{left[0]:.0%} to {left[1]:.0%} of the greedy hallucination left, qa_accuracy {answers[0]:.2f} to {answers[1]:.2f}"
    )
