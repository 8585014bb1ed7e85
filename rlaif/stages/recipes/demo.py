"""`rlaif demo CONFIG` (`make demo`): the whole system in miniature."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.io.memory import MemoryWatch
from rlaif.io.rundir import RunDir, typed_command
from rlaif.io.storage import locate, replacing
from rlaif.io.terminal import headline, phase, say
from rlaif.models.tiny import build_tiny
from rlaif.stages.feedback import caption, label, pairs, sample
from rlaif.stages.preflight.functions import check_function
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.preflight.judges import check_label_functions
from rlaif.stages.run.datasets import data_path
from rlaif.stages.run.run import Run, open_part, require_below_run
from rlaif.stages.run.summary import NextStage, Summary
from rlaif.stages.train import ppo, reward, sft
from rlaif.stages.train.evaluate import table
from rlaif.worlds.shapes.dataset import write_dataset
from rlaif.worlds.shapes.language import WORDS

SHIPPED = Path(__file__).parents[2] / "worlds" / "shapes" / "base"
"""The base model that `reading_config` and `pretraining_config` trained once, with `made_by.json`, which says how."""
WATCH_S = 5.0
"""Seconds between two measurements of the memory of all processes; more would take a noticeable part of a core."""
SPREAD: dict[str, tuple[float, float]] = {"hallucination_left": (0.03, 0.20), "qa_accuracy": (0.83, 0.97)}
"""The least and greatest results of demos on different machines and with different seeds (greedy answers)."""


@dataclass(frozen=True)
class DemoResult:
    """The rows of the demo's table, and the figures of what they cost."""

    rows: list[dict]
    figures: Mapping[str, str]


def demo(config: Config, run: Run) -> DemoResult:
    """Run every stage on the shapes world, and PPO once per seed."""
    rows: list[dict] = []
    with MemoryWatch(interval_s=WATCH_S) as memory:
        start_demo(config, run)
        headline("3/5 feedback: the model captions clips of each video, answers, and verifies its answers' claims")
        make_feedback(config, run)
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


def start_demo(config: Config, run: Run) -> None:
    """Make the world, and the policy that everything else starts from: it sees, describes and judges."""
    headline(f"1/5 world: videos of moving shapes; {started_from(config)}")
    prepare_demo(config)
    if config.demo.scratch:
        headline("2/5 base model: it learns to read, then to see and describe, then to verify claims as well")
        for stage in (reading_config(config), pretraining_config(config)):
            sft.train(stage, open_part(stage, run), "fresh")
    else:
        headline("2/5 supervised fine-tuning: descriptions with planted errors, and how to verify claims")
        copy_base(config)
    sft.train(config, run, "fresh")


def copy_base(config: Config) -> None:
    """Copy the base model that comes with rlaif to the path that `pretraining_config` would write."""
    target = RunDir(config.storage, pretraining_config(config).name).export("sft")
    with replacing(target) as folder:
        shutil.copytree(SHIPPED, folder, dirs_exist_ok=True)


def reading_config(config: Config) -> Config:
    """Return the options that train the untrained model on `reading.jsonl`, text alone, as language models are."""
    changes = {"init": config.demo.base, "steps": config.demo.read_steps}
    changes |= {"train_vision": False, "train_projector": False}
    return finetuning_config(config, "read", "reading.jsonl", changes)


def pretraining_config(config: Config) -> Config:
    """Return the options that train the same model on `pretrain.jsonl`, as video-language models are."""
    init = RunDir(config.storage, f"{config.name}/read").export("sft")
    changes = {"init": str(init), "steps": config.demo.pretrain_steps}
    changes |= {"train_vision": None, "train_projector": None}
    return finetuning_config(config, "pretrained", "pretrain.jsonl", changes)


def finetuning_config(config: Config, name: str, file: str, changes: Mapping[str, object]) -> Config:
    """Return the options of a fine-tuning that comes before `sft`, in a directory of its own below the run's."""
    own = {
        "name": f"{config.name}/{name}",
        "sft": config.sft.model_copy(update=changes),
        "data": config.data.model_copy(update={"sft": file}),
    }
    return config.model_copy(update=own)


def prepare_demo(config: Config) -> None:
    """Write the dataset and the untrained model below the run directory, so that no user's data are replaced."""
    options = config.demo
    require_below_run(config, "configs/demo.yaml", **{"data.root": config.data.root, "demo.base": options.base})
    set_aside_feedback(config)
    sizes = {"train": options.train_scenes, "prompt": options.prompt_scenes, "test": options.eval_scenes}
    sizes["pretrain"] = options.pretrain_scenes if options.scratch else 0
    write_dataset(Path(config.data.root), sizes, config.seed)
    if options.scratch:
        build_tiny(Path(options.base), WORDS, config.seed)


def set_aside_feedback(config: Config) -> None:
    """Rename what an earlier demo's models wrote and the pairs made of it: it is not about this demo's models."""
    folder = RunDir(config.storage, config.name).path
    paths = [folder / "feedback", folder / "context"]
    for file in (config.data.pairs, config.data.pairs_eval):
        if file:
            paths.append(data_path(config, file))
    for path in paths:
        # Files outside the run directory are the user's and stay.
        if path.exists() and path.is_relative_to(folder):
            path.rename(_free_name(path))


def _free_name(path: Path) -> Path:
    """Return the path with the first number at its end that no file has yet."""
    number = 1
    while path.with_name(f"{path.name}.{number}").exists():
        number += 1
    return path.with_name(f"{path.name}.{number}")


def make_feedback(config: Config, run: Run) -> None:
    """Make captions, answers, verdicts and preference pairs with the policy itself, without the scenes' truth.

    The truth only measures afterwards how often the verdicts are right.
    """
    caption.caption(config, run)
    sample.sample(config, run)
    labels = label.label(config, run)
    report = pairs.pairs(config, run)
    say(f"{report['pairs']} pairs of answers")
    overall = labels.get("agreement", {}).get("overall", {})
    if overall.get("pairs"):
        say(f"the labels order {overall['agreement']:.1%} of {overall['pairs']} pairs of answers as the scenes do")


def train_seed(config: Config, run: Run, seed: int) -> list[dict]:
    """Run PPO with one seed and return its rows of the table. The first seed has the run's own directory."""
    if seed != config.seed:
        config = config.model_copy(update={"name": f"{config.name}-seed{seed}", "seed": seed})
        run = open_part(config, run)
    ppo.train(config, run, "fresh")
    return run.directory.read_json("eval/ppo.json")["rows"]


def write_results(config: Config, run: Run, rows: list[dict]) -> None:
    """Write `eval/demo.json`: the rows, and which base model they start from."""
    names = ("policy", "seed", "decoding", "hallucination", "recall", "qa_accuracy", "reward", "kl", "length")
    columns = []
    for row in rows:
        columns.append({name: row.get(name) for name in names})
    base = "scratch" if config.demo.scratch else "shipped"
    run.directory.write_eval("demo", {"command": typed_command(), "base": base, "rows": columns})


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
    lines = [table(result.rows), "", *seed_verdicts(config, result.rows), spread_text()]
    return Summary(dict(result.figures), places, "\n".join(lines), following(config), remark=started_from(config))


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


def seed_verdicts(config: Config, rows: list[dict]) -> list[str]:
    """Return a line per seed: how much greedy hallucination PPO removed, the recall it cost, how far the policy moved."""
    greedy = {}
    for row in rows:
        if row["decoding"] == "greedy":
            greedy[row["policy"], row["seed"]] = row
    limit = config.ppo.kl.limit
    lines = []
    for (policy, seed), after in greedy.items():
        if policy != "rlaif":
            continue
        before = greedy["sft", seed]
        if not before.get("hallucination") or "hallucination" not in after:
            lines.append(f"seed {seed}: a policy without (false) claims; nothing to compare")
            continue
        share = after["hallucination"] / before["hallucination"]
        recall = after["recall"] - before["recall"]
        place = "within" if after["kl"] <= limit else "BEYOND"
        lines.append(
            f"seed {seed}: {share:.0%} of SFT's greedy hallucination is left, recall {recall:+.3f}, "
            f"KL {after['kl']:.2f} nats per answer ({place} ppo.kl.limit {limit:g})"
        )
    return lines


def spread_text() -> str:
    """Return a sentence about how far the figures of other machines and seeds are apart."""
    share, accuracy = SPREAD["hallucination_left"], SPREAD["qa_accuracy"]
    return (
        "figures differ between machines and seeds, because kernels add up in another order: measured were "
        f"{share[0]:.0%} to {share[1]:.0%} of the greedy hallucination left, "
        f"qa_accuracy {accuracy[0]:.2f} to {accuracy[1]:.2f}"
    )
