"""The whole system in miniature: `rlaif demo CONFIG` (`make demo`)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rlaif.config.schema import Config
from rlaif.errors import ConfigError
from rlaif.memory import MemoryWatch
from rlaif.models.tiny import build_tiny
from rlaif.rundir import RunDir
from rlaif.stages import candidates, caption, label, pairs, ppo, reward, sft
from rlaif.stages.data import data_path
from rlaif.stages.evaluate import command, table
from rlaif.stages.run import Run, open_run
from rlaif.worlds.shapes.dataset import write_dataset
from rlaif.worlds.shapes.language import WORDS


def demo(config: Config) -> None:
    """World, SFT, preferences, reward model, PPO for each seed, and a table of SFT against RLAIF."""
    began = time.time()
    with MemoryWatch() as memory, open_run(config) as run:
        start(config, run)
        say("3/5 feedback: the model captions clips of each video, answers, and verifies its answers' claims")
        feedback(config, run)
        say("4/5 reward model, with the videos' dense captions as context")
        reward.train(config, run, "fresh")
        rows, decodes = [], {}
        for seed in range(config.seed, config.seed + config.demo.seeds):
            say(f"5/5 PPO, seed {seed}")
            rows += train_seed(config, run, seed)
        decodes = run.topology.frame_counters()
        write_results(config, run, rows)
    report(config, run, rows, decodes, time.time() - began, memory.peak_gib)


def start(config: Config, run: Run) -> None:
    """The world, and the policy that everything else starts from: it learns to see, then to judge as well."""
    say("1/5 world: videos of moving shapes, and a model from scratch")
    prepare(config)
    say(
        "2/5 supervised fine-tuning: to read, to see (and to describe with planted errors), then to verify claims as well"
    )
    for stage in (reading(config), pretraining(config)):
        sft.train(stage, opened(stage, run), "fresh")
    sft.train(config, run, "fresh")


def reading(config: Config) -> Config:
    """The untrained model on `reading.jsonl`, text alone: what a published language model would bring along."""
    changes = {"init": config.demo.base, "steps": config.demo.read_steps}
    return before(config, "read", "reading.jsonl", changes | {"train_vision": False, "train_projector": False})


def pretraining(config: Config) -> Config:
    """The same model on `pretrain.jsonl`: what a published video-language model would bring along."""
    init = RunDir(config.storage, reading(config).name).export("sft")
    changes = {"init": str(init), "steps": config.demo.pretrain_steps}
    return before(config, "pretrained", "pretrain.jsonl", changes | {"train_vision": None, "train_projector": None})


def before(config: Config, name: str, file: str, changes: Mapping[str, object]) -> Config:
    """Fine-tuning that comes before `sft`, in a run directory of its own below the run's."""
    sections = {
        "sft": config.sft.model_copy(update=changes),
        "data": config.data.model_copy(update={"sft": file}),
    }
    return config.model_copy(update={"name": f"{config.name}/{name}", **sections})


def opened(config: Config, run: Run) -> Run:
    """A run of its own directory on the actors of another."""
    run = replace(run, config=config, directory=RunDir(config.storage, config.name), within=run.shared)
    run.directory.prepare()
    run.directory.write_config(config.model_dump(mode="json"))
    return run


def prepare(config: Config) -> None:
    """The dataset and the untrained model, both below the run directory: a user's own data are never written over."""
    run = str(RunDir(config.storage, config.name).location)
    for option, path in (("data.root", config.data.root), ("demo.base", config.demo.base)):
        if not path.startswith(run + "/"):
            raise ConfigError(
                f"{option} below the demo's run directory, {run}", path, f"leave {option} as in configs/demo.yaml"
            )
    set_aside(config)
    sizes = {"train": config.demo.train_scenes, "prompt": config.demo.prompt_scenes, "test": config.demo.eval_scenes}
    write_dataset(Path(config.data.root), sizes, config.seed)
    build_tiny(Path(config.demo.base), WORDS, config.seed)


def set_aside(config: Config) -> None:
    """What an earlier demo's models said, and the pairs made of it, is not this one's: it gets another name."""
    folder = RunDir(config.storage, config.name).path
    pairs_files = [file for file in (config.data.pairs, config.data.pairs_eval) if file]
    for path in (folder / "feedback", folder / "context", *(data_path(config, file) for file in pairs_files)):
        if path.exists() and path.is_relative_to(folder):
            names = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
            path.rename(next(name for name in names if not name.exists()))


def feedback(config: Config, run: Run) -> None:
    """Captions, answers, verdicts and preference pairs by the policy itself; nothing of the scenes' truth takes part.

    The truth only measures afterwards how often the verdicts are right.
    """
    caption.caption(config, run)
    candidates.sample(config, run)
    found = label.label(config, run)
    built = pairs.pairs(config, run)
    print(f"{built['pairs']} pairs of answers")
    right = found.get("agreement", {}).get("overall", {})
    if right.get("pairs"):
        print(f"the labels order {right['agreement']:.1%} of {right['pairs']} pairs of answers as the scenes do")


def train_seed(config: Config, run: Run, seed: int) -> list[dict]:
    """PPO with one seed; the first has the run's own directory. Returns its rows of the table."""
    if seed != config.seed:
        config = config.model_copy(update={"name": f"{config.name}-seed{seed}", "seed": seed})
        run = opened(config, run)
    ppo.train(config, run, "fresh")
    return run.directory.read_json("eval/ppo.json")["rows"]


def write_results(config: Config, run: Run, rows: list[dict]) -> None:
    names = ("policy", "seed", "decoding", "hallucination", "recall", "qa_accuracy", "reward", "kl", "length")
    kept = [{name: row.get(name) for name in names} for row in rows]
    run.directory.write_eval("demo", {"command": command(), "rows": kept})


def report(
    config: Config, run: Run, rows: list[dict], counters: dict[str, float], seconds: float, peak_gib: float
) -> None:
    """The table, what it cost, where everything lies and what to type next."""
    path = run.directory.path
    print("\n" + table(rows) + "\n")
    for line in verdicts(config, rows):
        print(line)
    print(
        f"decodes per video {counters['frames/decodes'] / counters['frames/videos']:.2f}, re-decodes {counters['frames/redecodes']:.0f}"
    )
    print(f"{seconds / 60:.1f} minutes, {peak_gib:.1f} GiB peak memory of all processes")
    print(f"run directory: {path}  (metrics.jsonl, samples/, eval/demo.json, export/)")
    print(
        f"next:  rlaif eval configs/demo.yaml name={config.name} storage={config.storage}     the exported policy again"
    )
    print(f"       rlaif ppo configs/demo.yaml name=mine data.root={config.data.root} \\")
    print(f"           ppo.policy={config.ppo.policy} ppo.reward={config.ppo.reward} ppo.kl.coef=0.2")


def verdicts(config: Config, rows: list[dict]) -> list[str]:
    """Per seed: how much hallucination PPO took out of greedy answers, what recall it cost, and how far it moved."""
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


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)
