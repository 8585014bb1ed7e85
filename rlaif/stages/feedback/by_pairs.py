"""Two answers at a time, in both orders."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial

from rlaif.config.schema import Config
from rlaif.feedback import pairwise
from rlaif.feedback.pairing import win_scores
from rlaif.functions import load_function
from rlaif.models.templates import fill
from rlaif.records import Masked
from rlaif.seeds import derive
from rlaif.stages.feedback.judge_inputs import Case, again, context_text, row_of
from rlaif.stages.feedback.judges import Judge, Question, frames_shown


def compared(config: Config, case: Case) -> list[tuple[int, int]]:
    """Indices of different answers that are compared: all, or `label.comparisons` of them, drawn by seed."""
    answers = case.answers
    pairs = [(a, b) for a, b in itertools.combinations(range(len(answers)), 2) if answers[a] != answers[b]]
    drawn = sorted(pairs, key=lambda pair: derive(config.seed, "compare", case.prompt.prompt_id, *pair))
    return sorted(drawn[: config.label.comparisons])


def by_pairs(config: Config, judge: Judge, cases: Sequence[Case]) -> list[dict]:
    """Every chosen pair of answers, in both orders."""
    options = config.label
    questions, places = pair_questions(config, judge, cases)
    found = judge.choose(questions, options.choices)
    rows = []
    for number, case in enumerate(cases):
        outcomes, failed = {}, []
        for a, b in places.get(number, []):
            one, other = found[f"{number}:{a}:{b}"], found[f"{number}:{b}:{a}"]
            masked = [part for part in (one, other) if isinstance(part, Masked)]
            outcomes[a, b] = masked[0] if masked else pairwise.judge_pair(one, other, options.choices, options.flips)
            failed += masked
        rows.append(_pair_row(case, outcomes) | again(failed))
    return rows


def pair_questions(
    config: Config, judge: Judge, cases: Sequence[Case]
) -> tuple[list[Question], dict[int, list[tuple[int, int]]]]:
    """Both orders of every chosen pair as questions with the key `case:first:second`, and the pairs by number of the case.

    Sorted by key, all questions about a case are neighbours, and so are those with the same first answer: an engine that
    keeps prefixes computes video, narrative and question once for all of them.
    """
    questions, places = [], {}
    for number, case in enumerate(cases):
        ask = _of_videos if case.videos_prompt else partial(_of_answers, context=context_text(config, judge, case))
        for a, b in compared(config, case):
            for first, second in ((a, b), (b, a)):
                questions.append(ask(config, case, f"{number}:{first}:{second}", first, second))
            places.setdefault(number, []).append((a, b))
    return questions, places


def _of_answers(config: Config, case: Case, key: str, first: int, second: int, context: str) -> Question:
    options, answers = config.label, case.answers
    slots = {"context": context, "question": case.prompt.question, "a": answers[first], "b": answers[second]}
    return Question(key, fill(options.pairwise_prompt, **slots), case.prompt.video if options.show_video else "")


def _of_videos(config: Config, case: Case, key: str, first: int, second: int) -> Question:
    """Two videos, which a server gets as so many images each."""
    size = frames_shown(config)
    names = ("image 1", "image 2") if size == 1 else (f"images 1 to {size}", f"images {size + 1} to {2 * size}")
    text = fill(case.videos_prompt, question=case.prompt.question, a=names[0], b=names[1])
    return Question(key, text, case.answers[first], case.answers[second])


def by_function(config: Config, case: Case) -> dict:
    """A function's verdicts, for a world that can check answers itself."""
    prefer = load_function(config.label.judge.path)
    outcomes: dict[tuple[int, int], pairwise.Verdict | Masked] = {}
    for a, b in compared(config, case):
        try:
            sign = int(prefer(case.prompt, case.answers[a], case.answers[b]))
        except Exception as error:  # the user's own code: this pair's reason, counted
            outcomes[a, b] = Masked(f"{type(error).__name__}: {error}")
            continue
        certain = pairwise.OrderOdds(float(sign), 1.0), pairwise.OrderOdds(float(-sign), 1.0)
        outcomes[a, b] = pairwise.Verdict((1 + sign) / 2, sign, False, certain)
    return _pair_row(case, outcomes)


def _pair_row(case: Case, outcomes: Mapping[tuple[int, int], pairwise.Verdict | Masked]) -> dict:
    scores = win_scores(range(len(case.answers)), outcomes)
    told = []
    for (a, b), outcome in outcomes.items():
        if isinstance(outcome, Masked):
            told.append({"a": a, "b": b, "masked": outcome.reason})
            continue
        orders = [asdict(order) for order in outcome.orders]
        told.append(
            {"a": a, "b": b, "p": outcome.p, "winner": outcome.winner, "flipped": outcome.flipped, "orders": orders}
        )
    return row_of(case, [scores[index] for index in range(len(case.answers))], pairs=told)
