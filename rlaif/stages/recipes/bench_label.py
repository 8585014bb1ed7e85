"""`rlaif bench label CONFIG`: answers judged per second by the judge on vLLM, and by the same model with transformers."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch

from actors.frames import LocalFrames
from cluster.remote import ask
from rlaif.config.schema import Config
from rlaif.errors import ConfigError
from rlaif.feedback.tokens import Tokens
from rlaif.io.terminal import headline, say
from rlaif.models.batch import collate
from rlaif.models.encode import Encoded, Encoder
from rlaif.models.merged import whole_model
from rlaif.models.model_dir import ModelDir
from rlaif.models.tiny import build_tiny
from rlaif.models.vlm import VideoLM, load_vlm
from rlaif.models.vocabulary import spellings
from rlaif.records import Prompt
from rlaif.seeds import derive
from rlaif.stages.feedback import label
from rlaif.stages.feedback.judge_inputs import Case
from rlaif.stages.feedback.judges import Judge, ModelJudge, Question, frames_of
from rlaif.stages.recipes.bench_ppo import MODEL
from rlaif.stages.recipes.bench_ppo import report as table
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run, open_run, require_below_run
from rlaif.stages.train.evaluate import command
from rlaif.worlds.shapes.dataset import write_dataset
from rlaif.worlds.shapes.language import WORDS

Round = dict[str, float]


class PlainJudge:
    """The same questions, each prompt computed whole, in padded batches of one forward; every row brings its pixels."""

    name = "transformers"

    def __init__(self, config: Config, model: str, frames: LocalFrames):
        torch.set_num_threads(os.cpu_count() or 1)
        model = whole_model(ModelDir(model), config.model.dtype)
        self._encoder = Encoder(model, frames, config.video.feature_cache_bytes, config.model.dtype)
        self._model = VideoLM(load_vlm(model, config.model.dtype, config.model.attention)).eval()
        self._size, self._frames = config.rollout.max_num_seqs, frames_of(config, frames)

    @torch.no_grad()
    def choose(self, questions: Sequence[Question], words: Sequence[str]) -> dict[str, Tokens]:
        groups, found = [spellings(self._encoder.tokenizer, word) for word in words], {}
        for start in range(0, len(questions), self._size):
            part = questions[start : start + self._size]
            logprobs = self._first([self._item(question) for question in part])
            for question, row in zip(part, logprobs, strict=True):
                summed = [float(row[group].logsumexp(0)) for group in groups]
                found[question.key] = list(zip(words, summed, strict=True))
        return found

    def count(self, text: str) -> int:
        return len(self._encoder.tokens(text))

    def _item(self, question: Question) -> Encoded:
        features = self._encoder.video(question.video, self._frames(question.video)) if question.video else None
        return self._encoder.prompt_and_response(question.text, [], features)

    def _first(self, items: Sequence[Encoded]) -> torch.Tensor:
        """[B, V]: log-probs of the reply's first token; the output head sees the last position only."""
        batch = collate(items, self._encoder.tokenizer.pad_token_id, side="left")
        hidden = self._model.causal.model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            position_ids=batch.positions,
            use_cache=False,
            **batch.video,
        ).last_hidden_state[:, -1]
        logits = self._model.causal.lm_head(hidden).float()
        logits[:, list(self._model.banned_ids)] = -torch.inf
        return logits.log_softmax(-1)


def bench(config: Config, file: Path | None = None) -> dict:
    """Rounds of the same questions to both judges, in turn; prints and returns medians over all rounds but the first.

    Every round is about videos that no round before has shown. `file`: where the figures go as JSON.
    """
    if config.label.method != "pairwise" or not isinstance(config.label.judge, str):
        raise ConfigError(
            "label.method=pairwise and a model as label.judge",
            "others",
            "Set both options as in configs/bench_label.yaml",
        )
    written = {"data.root": config.data.root, "label.judge": config.label.judge}
    require_below_run(config, "configs/bench_label.yaml", **written)
    with open_run(config) as run:
        headline("world and model")
        rounds = prepare(config, run)
        judges = {"here": ModelJudge(config, run, config.label.judge)}
        judges["plain"] = PlainJudge(config, config.label.judge, LocalFrames(config.data.root, config.video.num_frames))
        measured = []
        for number, cases in enumerate(rounds):
            headline(f"round {number + 1} of {len(rounds)}")
            measured.append(measure(config, run, judges, cases))
            say(", ".join(f"{name} {value:.3g}" for name, value in measured[-1].items()))
    found = figures(measured) | {"command": command()}
    say("\n" + table(found))
    if file is not None:
        file.write_text(json.dumps(found, indent=1) + "\n")
    return found


def prepare(config: Config, run: Run) -> list[list[Case]]:
    """Videos, a random model, and the cases of each round: answers and narratives of random words, as long as configured."""
    bench = config.bench
    count = bench.rounds * bench.prompts
    write_dataset(Path(config.data.root), {"train": 2, "prompt": count, "test": 1}, config.seed)
    build_tiny(Path(config.label.judge), WORDS, config.seed, size=MODEL)
    prompts = [prompt for name in config.candidates.prompts for prompt in datasets.load(run, name, "prompts")][:count]
    cases = [_case(config, prompt) for prompt in prompts]
    return [cases[start : start + bench.prompts] for start in range(0, count, bench.prompts)]


def _case(config: Config, prompt: Prompt) -> Case:
    bench, rng = config.bench, random.Random(derive(config.seed, "bench", prompt.prompt_id))
    plain = [word for word in WORDS if word.isalpha()]

    def text(words: int) -> str:
        return " ".join(rng.choices(plain, k=words))

    answers = tuple(text(bench.answer_words) for _ in range(config.candidates.per_model))
    return Case(prompt, answers, (text(bench.narrative_words),) if bench.narrative_words else ())


def measure(config: Config, run: Run, judges: dict[str, Judge], cases: Sequence[Case]) -> Round:
    """Seconds of both judges for the same cases, and how far apart their log-odds are."""
    before, rows, seconds = _engine(config, run), {}, {}
    for name, judge in judges.items():
        began = time.perf_counter()
        rows[name] = label.by_pairs(config, judge, cases)
        seconds[name] = time.perf_counter() - began
    after = _engine(config, run)
    asked, cached = (after[name] - before[name] for name in ("prompt_tokens", "cached_tokens"))
    here, plain = (_log_odds(rows[name]) for name in ("here", "plain"))
    return {
        "answers": sum(len(case.answers) for case in cases),
        "questions": len(here),
        "seconds": seconds["here"],
        "baseline_seconds": seconds["plain"],
        "prompt_tokens": asked,
        "cached_tokens": cached,
        "log_odds_difference": float(np.max(np.abs(np.subtract(here, plain)))),  # NaN if any is: max() could drop it
    }


def _log_odds(rows: Sequence[dict]) -> list[float]:
    return [order["log_odds"] for row in rows for pair in row["pairs"] for order in pair["orders"]]


def _engine(config: Config, run: Run) -> dict[str, float]:
    """Counters of all engines, added up."""
    handles = run.topology.engines(config.label.judge).fleet.handles.values()
    found = ask([actor.stats.remote() for actor in handles], config.cluster.collective_timeout_s, "the rollout actors")
    return {name: sum(one[name] for one in found) for name in ("prompt_tokens", "cached_tokens")}


def figures(rounds: Sequence[Round]) -> dict[str, float]:
    """Everything the benchmark reports; the first round warms up and does not count.

    The speedup is taken in each round, where both sides have the machine in the same state.
    """
    rounds = rounds[1:]
    of: Callable[[Callable[[Round], float]], float] = lambda rate: median(map(rate, rounds))  # noqa: E731
    speedups = [r["baseline_seconds"] / r["seconds"] for r in rounds]
    return {
        "label_speedup": median(speedups),
        "label_speedup_lowest": min(speedups),
        "label_speedup_highest": max(speedups),
        "answers_per_s": of(lambda r: r["answers"] / r["seconds"]),
        "baseline_answers_per_s": of(lambda r: r["answers"] / r["baseline_seconds"]),
        "questions_per_s": of(lambda r: r["questions"] / r["seconds"]),
        "baseline_questions_per_s": of(lambda r: r["questions"] / r["baseline_seconds"]),
        "cached_share": of(lambda r: r["cached_tokens"] / r["prompt_tokens"]),
        "tokens_per_question": of(lambda r: r["prompt_tokens"] / r["questions"]),
        "questions_per_answer": of(lambda r: r["questions"] / r["answers"]),
        "log_odds_difference": float(np.max([r["log_odds_difference"] for r in rounds])),
        "rounds": len(rounds),
    }
