"""`rlaif bench ppo CONFIG`: where the time of a PPO iteration goes, what is wasted, and how it compares with one process."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from actors.frames import LocalFrames
from rlaif.config.schema import Config
from rlaif.data.files import write_rows
from rlaif.io.progress import progress
from rlaif.io.terminal import headline, say
from rlaif.markdown import markdown_table
from rlaif.models.tiny import Size, build_tiny
from rlaif.stages.recipes.bench_baseline import Baseline, Times
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run, open_run, require_below_run
from rlaif.stages.train import ppo, reward
from rlaif.stages.train.deck import Deck
from rlaif.stages.train.evaluate import command
from rlaif.worlds.shapes.dataset import add_captions, write_dataset
from rlaif.worlds.shapes.language import WORDS

MODEL = Size(
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
"""56 million parameters. Nothing is trained before: with a vocabulary of a hundred words it ends an answer at random, after
about a hundred tokens, so that lengths spread from a few to `ppo.sampling.max_tokens`."""

PHASES = ("rollout", "reward_busy", "experience", "forward", "backward", "optimizer", "publish", "checkpoint")


def bench(config: Config, file: Path | None = None) -> dict:
    """Run PPO, then the baseline on the same prompts and model; print and return medians over the iterations.

    The first iteration of each warms up and does not count. `file`: where the figures go as JSON.
    """
    written = {"data.root": config.data.root, "ppo.policy": config.ppo.policy}
    require_below_run(config, "configs/bench.yaml", **written)
    with open_run(config) as run:
        headline("1/3 world, model and reward model")
        prepare(config, run)
        headline("2/3 PPO on the cluster")
        ppo.train(config, run, "fresh")
        memory = run.topology.peak_memory()
        prompts = datasets.load(run, config.data.prompts, "prompts")
        rows = run.directory.read_metrics("ppo")
    headline("3/3 the same in one process, in turn")
    baseline = Baseline(config, LocalFrames(config.data.root, config.video.num_frames))
    deck, numbers = Deck(prompts, config.ppo.prompts_per_iteration, config.seed), range(config.ppo.iterations - 1)
    times = [baseline.iterate(deck.of(n)) for n in progress(numbers, "one process", len(numbers))]
    found = figures(rows, times, config.ppo.prompts_per_iteration * config.ppo.samples_per_prompt)
    found |= {f"peak_gib_{name}": value / 2**30 for name, value in memory.items()} | {"command": command()}
    say("\n" + report(found))
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n")
    return found


def prepare(config: Config, run: Run) -> None:
    """Videos, a random model, and a reward model of one step: what it says does not matter, what it costs does."""
    count = config.ppo.prompts_per_iteration * config.ppo.iterations
    write_dataset(Path(config.data.root), {"train": 2, "prompt": count, "test": 1}, config.seed)
    add_captions(datasets.data_path(config, config.data.prompts))
    build_tiny(Path(config.ppo.policy), WORDS, config.seed, size=MODEL)
    asked = datasets.load(run, config.data.prompts, "prompts")
    kept = [{"video": p.video, "question": p.question, "captions": list(p.captions), "chosen": p.answer} for p in asked]
    write_rows(
        datasets.data_path(config, config.data.pairs),
        [row | {"pair_id": str(number), "rejected": "no"} for number, row in enumerate(kept)],
    )
    reward.train(config, run, "fresh")


def figures(rows: Sequence[dict], baseline: Sequence[Times], samples: int) -> dict[str, float]:
    """Everything the benchmark reports, from the rows of metrics.jsonl and the baseline's times."""
    walls = [
        after["timeline/waited_from"] - row["timeline/waited_from"] for row, after in zip(rows, rows[1:], strict=False)
    ]
    rows, walls, baseline = rows[1:-1], walls[1:], baseline[1:]
    of: Callable[[str], float] = lambda name: median(row[name] for row in rows)  # noqa: E731
    wall, tokens = median(walls), [row["response/length"] * samples for row in rows]
    busy = {
        "rollout": median(row["time/rollout"] / w for row, w in zip(rows, walls, strict=True)),
        "reward": median(row["time/reward_busy"] / w for row, w in zip(rows, walls, strict=True)),
        "learner": 1 - median(row["time/wait_for_samples"] / w for row, w in zip(rows, walls, strict=True)),
    }
    per_token = median(w / t for w, t in zip(walls, tokens, strict=True))
    rollout_rate = median(t / row["time/rollout"] for row, t in zip(rows, tokens, strict=True))
    alone = median(sum(t.seconds.values()) / t.tokens for t in baseline)
    return {
        "rollout_speedup": rollout_rate / median(t.tokens / t.seconds["rollout"] for t in baseline),
        "iteration_speedup": alone / per_token,
        "padding_waste": of("waste/padding"),
        "vision_passes_per_key": of("vision/passes_per_key"),
        "decodes_per_video": rows[-1]["frames/decodes"] / rows[-1]["frames/videos"],
        "publish_share": median(
            (row["publish/seconds"] + row["publish/apply_seconds"]) / w for row, w in zip(rows, walls, strict=True)
        ),
        "idle_share": 1 - max(busy.values()),
        "rollout_tokens_per_s": rollout_rate,
        "update_tokens_per_s": median(t / row["time/update"] for row, t in zip(rows, tokens, strict=True)),
        "forwards_per_sample": of("waste/forwards_per_sample"),
        "iteration_seconds": wall,
        "tokens_per_iteration": median(tokens),
        "publish_bytes": of("publish/bytes"),
        "publish_gb_per_s": median(row["publish/bytes"] / 1e9 / row["publish/apply_seconds"] for row in rows),
        **{f"seconds_{phase}": of(f"time/{phase}") for phase in PHASES if f"time/{phase}" in rows[-1]},
        "seconds_publish": of("publish/seconds") + of("publish/apply_seconds"),
        **{f"waiting_{role}": 1 - share for role, share in busy.items()},
        **{f"baseline_seconds_{name}": median(t.seconds[name] for t in baseline) for name in baseline[0].seconds},
        "baseline_tokens_per_iteration": median(t.tokens for t in baseline),
    }


def report(found: dict) -> str:
    """The figures as a Markdown table."""
    rows = [(name, f"{value:.3g}") for name, value in found.items() if not isinstance(value, str)]
    return markdown_table(["figure", "median"], rows)
