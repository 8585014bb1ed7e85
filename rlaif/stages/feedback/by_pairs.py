"""Labels by pairs: the judge compares two answers at a time, in both orders."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from rlaif.config.schema import Config
from rlaif.feedback import pairwise
from rlaif.feedback.pairing import win_scores
from rlaif.functions import load_function
from rlaif.models.templates import fill
from rlaif.records import Masked
from rlaif.seeds import derive
from rlaif.stages.feedback.judge_inputs import Case, context_text, label_row, retry_field
from rlaif.stages.feedback.judges import Judge, Question, frames_shown

IndexPair = tuple[int, int]
"""Indices of two different answers to one prompt, the smaller index first."""


def drawn_pairs(config: Config, case: Case) -> list[IndexPair]:
    """Return the pairs of different answers to compare: all, or `label.comparisons` of them, drawn by seed."""
    answers = case.answers
    pairs = [(a, b) for a, b in itertools.combinations(range(len(answers)), 2) if answers[a] != answers[b]]
    drawn = sorted(pairs, key=lambda pair: derive(config.seed, "compare", case.prompt.prompt_id, *pair))
    return sorted(drawn[: config.label.comparisons])


def by_pairs(config: Config, judge: Judge, cases: Sequence[Case]) -> list[dict]:
    """Label the answers of every case by comparing each drawn pair in both orders."""
    options = config.label
    questions, pairs = pair_questions(config, judge, cases)
    replies = judge.choose(questions, options.choices)
    rows = []
    for number, case in enumerate(cases):
        outcomes: dict[IndexPair, pairwise.Verdict | Masked] = {}
        failures = []
        for a, b in pairs.get(number, []):
            orders = replies[_order_key(number, a, b)], replies[_order_key(number, b, a)]
            masked = [reply for reply in orders if isinstance(reply, Masked)]
            outcomes[a, b] = masked[0] if masked else pairwise.judge(*orders, options.choices, options.flips)
            failures += masked
        rows.append(_pair_row(case, outcomes) | retry_field(failures))
    return rows


def _order_key(number: int, first: int, second: int) -> str:
    return f"{number}:{first}:{second}"


def pair_questions(
    config: Config, judge: Judge, cases: Sequence[Case]
) -> tuple[list[Question], dict[int, list[IndexPair]]]:
    """Return both orders of every drawn pair as questions with the key `case:first:second`, and the pairs by case number.

    Sorted by key, all questions about a case are neighbours, and so are those with the same first answer: an engine that
    caches prefixes computes video, narrative and question once for all of them.
    """
    questions: list[Question] = []
    pairs: dict[int, list[IndexPair]] = {}
    for number, case in enumerate(cases):
        context = "" if case.videos_prompt else context_text(config, judge, case)
        for a, b in drawn_pairs(config, case):
            pairs.setdefault(number, []).append((a, b))
            for order in ((a, b), (b, a)):
                key = _order_key(number, *order)
                if case.videos_prompt:
                    questions.append(_ask_about_videos(config, case, key, order))
                else:
                    questions.append(_ask_about_answers(config, case, key, order, context))
    return questions, pairs


def _ask_about_answers(config: Config, case: Case, key: str, order: IndexPair, context: str) -> Question:
    options = config.label
    first, second = (case.answers[index] for index in order)
    text = fill(options.pairwise_prompt, context=context, question=case.prompt.question, a=first, b=second)
    return Question(key, text, case.prompt.video if options.show_video else "")


def _ask_about_videos(config: Config, case: Case, key: str, order: IndexPair) -> Question:
    """Return a question about two videos; a server receives the frames of both as images, one video after the other."""
    size = frames_shown(config)
    names = ("image 1", "image 2") if size == 1 else (f"images 1 to {size}", f"images {size + 1} to {2 * size}")
    text = fill(case.videos_prompt, question=case.prompt.question, a=names[0], b=names[1])
    first, second = (case.answers[index] for index in order)
    return Question(key, text, first, second)


def by_function(config: Config, case: Case) -> dict:
    """Label one case by a function's verdicts, for a world in which code can check answers."""
    prefer = load_function(config.label.judge.path)
    outcomes: dict[IndexPair, pairwise.Verdict | Masked] = {}
    for a, b in drawn_pairs(config, case):
        try:
            sign = int(prefer(case.prompt, case.answers[a], case.answers[b]))
        except Exception as error:
            # The function is the user's own code and may raise anything: this pair is masked with the reason.
            outcomes[a, b] = Masked(f"{type(error).__name__}: {error}")
            continue
        orders = pairwise.Asked(float(sign), 1.0), pairwise.Asked(float(-sign), 1.0)
        outcomes[a, b] = pairwise.Verdict((1 + sign) / 2, sign, False, orders)
    return _pair_row(case, outcomes)


def _pair_row(case: Case, outcomes: Mapping[IndexPair, pairwise.Verdict | Masked]) -> dict:
    indices = range(len(case.answers))
    scores = win_scores(indices, outcomes)
    pairs = []
    for (a, b), outcome in outcomes.items():
        pair: dict = {"a": a, "b": b}
        if isinstance(outcome, Masked):
            pair["masked"] = outcome.reason
        else:
            pair |= {"p": outcome.p, "winner": outcome.winner, "flipped": outcome.flipped}
            pair["orders"] = [asdict(order) for order in outcome.orders]
        pairs.append(pair)
    return label_row(case, [scores[index] for index in indices], pairs=pairs)
