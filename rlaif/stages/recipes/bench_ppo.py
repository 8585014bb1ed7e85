"""`rlaif bench ppo CONFIG`: how a PPO iteration spends its time, what it wastes, and how it compares with one process."""

from __future__ import annotations

import json
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from actors.frames import LocalFrames
from rlaif.config.schema import Config
from rlaif.data.files import write_rows
from rlaif.io.progress import progress
from rlaif.io.rundir import typed_command
from rlaif.io.terminal import headline, say
from rlaif.markdown import markdown_table
from rlaif.models.tiny import Size, build_tiny
from rlaif.records import Prompt
from rlaif.stages.recipes.bench_baseline import Baseline, Times
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run, open_run, require_below_run
from rlaif.stages.train import ppo, reward
from rlaif.stages.train.deck import Deck
from rlaif.worlds.shapes.dataset import add_captions, write_dataset
from rlaif.worlds.shapes.language import WORDS

BENCH_MODEL = Size(
    hidden=512,
    intermediate=1408,
    layers=16,
    heads=8,
    vision_hidden=256,
    vision_intermediate=704,
    vision_layers=6,
    vision_heads=8,
    frames_per_patch=2,
)
"""56 million parameters, untrained: with a vocabulary of a hundred words it ends an answer at random, after about a hundred
tokens, so that lengths spread from a few to `ppo.sampling.max_tokens`."""

PHASES = ("rollout", "reward_busy", "experience", "forward", "backward", "optimizer", "publish", "checkpoint")


def bench(config: Config, file: Path | None = None) -> dict:
    """Run PPO, then the baseline on the same prompts and model. Prints and returns medians over the iterations.

    The first iteration of each warms up and does not count. `file`: the figures are written to it as JSON.
    """
    paths = {"data.root": config.data.root, "ppo.policy": config.ppo.policy}
    require_below_run(config, "configs/bench.yaml", **paths)
    with open_run(config) as run:
        headline("1/3 world, model and reward model")
        prepare_ppo_bench(config, run)
        headline("2/3 PPO on the cluster")
        ppo.train(config, run, "fresh")
        memory = run.topology.peak_memory()
        prompts = datasets.load(run, config.data.prompts, "prompts")
        rows = run.directory.read_metrics("ppo")
    headline("3/3 the same in one process, in turn")
    times = _run_baseline(config, prompts)
    figures = ppo_figures(rows, times, config.ppo.prompts_per_iteration * config.ppo.samples_per_prompt)
    for role, size in memory.items():
        figures[f"peak_gib_{role}"] = size / 2**30
    result = figures | {"command": typed_command()}
    say("\n" + figures_table(result))
    if file is not None:
        file.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _run_baseline(config: Config, prompts: Sequence[Prompt]) -> list[Times]:
    baseline = Baseline(config, LocalFrames(config.data.root, config.video.num_frames))
    deck = Deck(prompts, config.ppo.prompts_per_iteration, config.seed)
    numbers = range(config.ppo.iterations - 1)
    times = []
    for number in progress(numbers, "one process", len(numbers)):
        times.append(baseline.iterate(deck.of(number)))
    return times


def prepare_ppo_bench(config: Config, run: Run) -> None:
    """Make videos, a random model, and a reward model of one step: its cost is measured, its scores mean nothing."""
    count = config.ppo.prompts_per_iteration * config.ppo.iterations
    # Only prompts are read; the other sets are as small as the world allows.
    sizes = {"train": 2, "prompt": count, "test": 1}
    write_dataset(Path(config.data.root), sizes, config.seed)
    add_captions(datasets.data_path(config, config.data.prompts))
    build_tiny(Path(config.ppo.policy), WORDS, config.seed, size=BENCH_MODEL)
    prompts = datasets.load(run, config.data.prompts, "prompts")
    rows = []
    for number, prompt in enumerate(prompts):
        row = {"video": prompt.video, "question": prompt.question, "captions": list(prompt.captions)}
        row |= {"chosen": prompt.answer, "pair_id": str(number), "rejected": "no"}
        rows.append(row)
    write_rows(datasets.data_path(config, config.data.pairs), rows)
    reward.train(config, run, "fresh")


@dataclass(frozen=True)
class _Iterations:
    """The iterations that count: their rows of metrics.jsonl, wall seconds and sampled tokens."""

    rows: list[dict]
    walls: list[float]
    tokens: list[float]

    @classmethod
    def of(cls, rows: Sequence[dict], samples: int) -> _Iterations:
        """Leave out the first iteration, which warms up, and the last, after which nothing waits.

        `samples`: answers of one iteration.
        """
        # An iteration lasts from the moment it begins to wait for samples until the next one does.
        starts = [row["timeline/waited_from"] for row in rows]
        walls = list(map(operator.sub, starts[1:], starts))
        inner = list(rows[1:-1])
        tokens = [row["response/length"] * samples for row in inner]
        return cls(inner, walls[1:], tokens)

    def median_of(self, name: str) -> float:
        """Return the median of a metric."""
        return median(row[name] for row in self.rows)

    def share_of_wall(self, *names: str) -> float:
        """Return the median share of the wall time that these metrics (seconds) have together."""
        shares = []
        for row, wall in zip(self.rows, self.walls, strict=True):
            seconds = sum(row[name] for name in names)
            shares.append(seconds / wall)
        return median(shares)

    def tokens_per_second(self, name: str) -> float:
        """Return the median of the tokens per second of a metric (seconds)."""
        seconds = [row[name] for row in self.rows]
        return median(map(operator.truediv, self.tokens, seconds))

    def seconds_per_token(self) -> float:
        """Return the median of the wall seconds per token."""
        return median(map(operator.truediv, self.walls, self.tokens))

    def apply_rate(self) -> float:
        """Return the median of the gigabytes per second at which actors load new weights."""
        return median(row["publish/bytes"] / 1e9 / row["publish/apply_seconds"] for row in self.rows)

    def phase_seconds(self) -> dict[str, float]:
        """Return the median seconds of every phase that the metrics have."""
        seconds = {}
        for phase in PHASES:
            # Which phases there are depends on options, such as checkpoints.
            if f"time/{phase}" in self.rows[-1]:
                seconds[f"seconds_{phase}"] = self.median_of(f"time/{phase}")
        return seconds


def ppo_figures(rows: Sequence[dict], baseline: Sequence[Times], samples: int) -> dict[str, float]:
    """Return everything that the benchmark reports.

    Args:
        rows: of metrics.jsonl.
        baseline: the times of the baseline's iterations.
        samples: answers of one iteration.
    """
    run, baseline = _Iterations.of(rows, samples), baseline[1:]
    busy = {
        "rollout": run.share_of_wall("time/rollout"),
        "reward": run.share_of_wall("time/reward_busy"),
        "learner": 1 - run.share_of_wall("time/wait_for_samples"),
    }
    rollout_rate = run.tokens_per_second("time/rollout")
    baseline_rate = median(times.tokens / times.seconds["rollout"] for times in baseline)
    # The baseline samples other lengths, so that iterations are compared by the time per token.
    baseline_per_token = median(sum(times.seconds.values()) / times.tokens for times in baseline)
    last = run.rows[-1]
    figures = {
        "rollout_speedup": rollout_rate / baseline_rate,
        "iteration_speedup": baseline_per_token / run.seconds_per_token(),
        "padding_waste": run.median_of("waste/padding"),
        "vision_passes_per_key": run.median_of("vision/passes_per_key"),
        "decodes_per_video": last["frames/decodes"] / last["frames/videos"],
        "publish_share": run.share_of_wall("publish/seconds", "publish/apply_seconds"),
        "idle_share": 1 - max(busy.values()),
        "rollout_tokens_per_s": rollout_rate,
        "update_tokens_per_s": run.tokens_per_second("time/update"),
        "forwards_per_sample": run.median_of("waste/forwards_per_sample"),
        "iteration_seconds": median(run.walls),
        "tokens_per_iteration": median(run.tokens),
        "publish_bytes": run.median_of("publish/bytes"),
        "publish_gb_per_s": run.apply_rate(),
    }
    figures |= run.phase_seconds()
    # `publish` is a phase of the learner's time too; here it is sending and loading together.
    figures["seconds_publish"] = run.median_of("publish/seconds") + run.median_of("publish/apply_seconds")
    for role, share in busy.items():
        figures[f"waiting_{role}"] = 1 - share
    for name in baseline[0].seconds:
        figures[f"baseline_seconds_{name}"] = median(times.seconds[name] for times in baseline)
    figures["baseline_tokens_per_iteration"] = median(times.tokens for times in baseline)
    return figures


def figures_table(found: dict) -> str:
    """Return the figures as a Markdown table."""
    rows = [(name, f"{value:.3g}") for name, value in found.items() if not isinstance(value, str)]
    return markdown_table(["figure", "median"], rows)
