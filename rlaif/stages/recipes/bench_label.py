"""`rlaif bench label CONFIG`: answers judged per second by the judge on vLLM, and by the same model with transformers."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch

from actors.frames import LocalFrames
from cluster.remote import ask
from rlaif.config.schema import Config
from rlaif.errors import ConfigError
from rlaif.feedback.tokens import Tokens
from rlaif.io.rundir import typed_command
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
from rlaif.stages.feedback.judges import Judge, ModelJudge, Question, judge_frames
from rlaif.stages.recipes.bench_ppo import BENCH_MODEL, figures_table
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run, open_run, require_below_run
from rlaif.worlds.shapes.dataset import write_dataset
from rlaif.worlds.shapes.language import WORDS

RoundFigures = dict[str, float]
"""Figures of one round by name."""

WORD_LIST = [word for word in WORDS if word.isalpha()]
"""What answers and narratives are drawn from."""


class PlainJudge:
    """The same model with transformers: each prompt is computed as a whole, in padded batches; every row brings its pixels."""

    name = "transformers"

    def __init__(self, config: Config, model: str, frames: LocalFrames):
        # Every core, as the engine has: this process waits while the engine works, and the other way round.
        torch.set_num_threads(os.cpu_count() or 1)
        options = config.model
        model = whole_model(ModelDir(model), options.dtype)
        self._encoder = Encoder(model, frames, config.video.feature_cache_bytes, options.dtype)
        causal = load_vlm(model, options.dtype, options.attention)
        self._model = VideoLM(causal).eval()
        self._size = config.rollout.max_num_seqs
        self._frames = judge_frames(config, frames)

    @torch.no_grad()
    def choose(self, questions: Sequence[Question], words: Sequence[str]) -> dict[str, Tokens]:
        """Return, by key, the log-prob of each of `words` as the first word of the reply, summed over its spellings."""
        ids_by_word = [spellings(self._encoder.tokenizer, word) for word in words]
        outcomes = {}
        for start in range(0, len(questions), self._size):
            part = questions[start : start + self._size]
            logprobs = self._first_token(list(map(self._encode, part)))
            for question, row in zip(part, logprobs, strict=True):
                values = [float(row[ids].logsumexp(0)) for ids in ids_by_word]
                outcomes[question.key] = list(zip(words, values, strict=True))
        return outcomes

    def count(self, text: str) -> int:
        """Return the number of tokens of a text."""
        return len(self._encoder.tokens(text))

    def _encode(self, question: Question) -> Encoded:
        features = None
        if question.video:
            features = self._encoder.video(question.video, self._frames(question.video))
        return self._encoder.prompt_and_response(question.text, [], features)

    def _first_token(self, items: Sequence[Encoded]) -> torch.Tensor:
        """Return [B, V]: log-probs of the reply's first token. The output head sees the last position only."""
        batch = collate(items, self._encoder.tokenizer.pad_token_id, side="left")
        output = self._model.causal.model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            position_ids=batch.positions,
            use_cache=False,
            **batch.video,
        )
        hidden = output.last_hidden_state[:, -1]
        logits = self._model.causal.lm_head(hidden).float()
        # The engine does not sample placeholders of media either, so that both normalise over the same tokens.
        logits[:, list(self._model.banned_ids)] = -torch.inf
        return logits.log_softmax(-1)


def bench(config: Config, file: Path | None = None) -> dict:
    """Put rounds of the same questions to both judges, in turn. Prints and returns medians over all rounds but the first.

    Every round is about videos that no earlier round has shown. `file`: the figures are written to it as JSON.
    """
    if config.label.method != "pairwise" or not isinstance(config.label.judge, str):
        raise ConfigError(
            "label.method=pairwise and a model as label.judge",
            "others",
            "Set both options as in configs/bench_label.yaml.",
        )
    paths = {"data.root": config.data.root, "label.judge": config.label.judge}
    require_below_run(config, "configs/bench_label.yaml", **paths)
    with open_run(config) as run:
        headline("world and model")
        rounds = prepare_label_bench(config, run)
        frames = LocalFrames(config.data.root, config.video.num_frames)
        judges = {
            "here": ModelJudge(config, run, config.label.judge),
            "plain": PlainJudge(config, config.label.judge, frames),
        }
        measured = []
        for number, cases in enumerate(rounds):
            headline(f"round {number + 1} of {len(rounds)}")
            figures = measure_round(config, run, judges, cases)
            say(", ".join(f"{name} {value:.3g}" for name, value in figures.items()))
            measured.append(figures)
    result = label_figures(measured) | {"command": typed_command()}
    say("\n" + figures_table(result))
    if file is not None:
        file.write_text(json.dumps(result, indent=1) + "\n")
    return result


def prepare_label_bench(config: Config, run: Run) -> list[list[Case]]:
    """Make videos and a random model. Returns the cases of each round, with answers and narratives of random words."""
    options = config.bench
    count = options.rounds * options.prompts
    # Only prompts are read; the other sets are as small as the world allows.
    sizes = {"train": 2, "prompt": count, "test": 1}
    write_dataset(Path(config.data.root), sizes, config.seed)
    build_tiny(Path(config.label.judge), WORDS, config.seed, size=BENCH_MODEL)
    prompts = [prompt for name in config.candidates.prompts for prompt in datasets.load(run, name, "prompts")][:count]
    cases = [_random_case(config, prompt) for prompt in prompts]
    rounds = []
    for start in range(0, count, options.prompts):
        rounds.append(cases[start : start + options.prompts])
    return rounds


def _random_case(config: Config, prompt: Prompt) -> Case:
    options = config.bench
    rng = random.Random(derive(config.seed, "bench", prompt.prompt_id))
    # The draws of one prompt come from one generator: answers first, then the narrative.
    answers = [_random_text(rng, options.answer_words) for _ in range(config.candidates.per_model)]
    narrative = [_random_text(rng, options.narrative_words)] if options.narrative_words else []
    return Case(prompt, tuple(answers), tuple(narrative))


def _random_text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORD_LIST, k=words))


def measure_round(config: Config, run: Run, judges: dict[str, Judge], cases: Sequence[Case]) -> RoundFigures:
    """Return the seconds of both judges for the same cases, and the largest difference of their log-odds."""
    rows, seconds = {}, {}
    before = _engine_counters(config, run)
    # In turn, never together: both use the whole machine.
    for name, judge in judges.items():
        start = time.perf_counter()
        rows[name] = label.by_pairs(config, judge, cases)
        seconds[name] = time.perf_counter() - start
    after = _engine_counters(config, run)
    here, plain = _log_odds(rows["here"]), _log_odds(rows["plain"])
    differences = np.abs(np.subtract(here, plain))
    return {
        "answers": sum(len(case.answers) for case in cases),
        "questions": len(here),
        "seconds": seconds["here"],
        "baseline_seconds": seconds["plain"],
        "prompt_tokens": after["prompt_tokens"] - before["prompt_tokens"],
        "cached_tokens": after["cached_tokens"] - before["cached_tokens"],
        # NumPy's maximum is NaN if any difference is; Python's max() could drop a NaN.
        "log_odds_difference": float(np.max(differences)),
    }


def _log_odds(rows: Sequence[dict]) -> list[float]:
    values = []
    for row in rows:
        for pair in row["pairs"]:
            values += [order["log_odds"] for order in pair["orders"]]
    return values


def _engine_counters(config: Config, run: Run) -> dict[str, float]:
    """Return the token counters of all engines, added up."""
    handles = run.topology.engines(config.label.judge).fleet.handles.values()
    calls = [actor.stats.remote() for actor in handles]
    totals: dict[str, float] = {"prompt_tokens": 0, "cached_tokens": 0}
    for counters in ask(calls, config.cluster.collective_timeout_s, "the rollout actors"):
        for name in totals:
            totals[name] += counters[name]
    return totals


def label_figures(rounds: Sequence[RoundFigures]) -> dict[str, float]:
    """Return everything that the benchmark reports. The first round warms up and does not count.

    The speedup is computed in each round, when both sides have the machine in the same state.
    """
    rounds = rounds[1:]

    def ratio(name: str, per: str) -> float:
        return median(figures[name] / figures[per] for figures in rounds)

    speedups = [figures["baseline_seconds"] / figures["seconds"] for figures in rounds]
    differences = [figures["log_odds_difference"] for figures in rounds]
    return {
        "label_speedup": median(speedups),
        "label_speedup_lowest": min(speedups),
        "label_speedup_highest": max(speedups),
        "answers_per_s": ratio("answers", "seconds"),
        "baseline_answers_per_s": ratio("answers", "baseline_seconds"),
        "questions_per_s": ratio("questions", "seconds"),
        "baseline_questions_per_s": ratio("questions", "baseline_seconds"),
        "cached_share": ratio("cached_tokens", "prompt_tokens"),
        "tokens_per_question": ratio("prompt_tokens", "questions"),
        "questions_per_answer": ratio("questions", "answers"),
        "log_odds_difference": float(np.max(differences)),
        "rounds": len(rounds),
    }
