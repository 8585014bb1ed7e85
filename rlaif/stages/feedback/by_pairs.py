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
    answers, prompt_id = case.answers, case.prompt.prompt_id
    pairs: list[IndexPair] = []
    for a, b in itertools.combinations(range(len(answers)), 2):
        if answers[a] != answers[b]:
            pairs.append((a, b))

    def rank(pair: IndexPair) -> int:
        return derive(config.seed, "compare", prompt_id, *pair)

    # Sorting by a hash of the pair draws without replacement, and a larger number adds to the pairs of a smaller one.
    drawn = sorted(pairs, key=rank)[: config.label.comparisons]
    return sorted(drawn)


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
            one = replies[_order_key(number, a, b)]
            other = replies[_order_key(number, b, a)]
            masked = [reply for reply in (one, other) if isinstance(reply, Masked)]
            if masked:
                # One order alone would carry the judge's bias for the first or the second place.
                outcomes[a, b] = masked[0]
                failures += masked
            else:
                outcomes[a, b] = pairwise.judge_pair(one, other, options.choices, options.flips)
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
    options, prompt = config.label, case.prompt
    slots = {
        "context": context,
        "question": prompt.question,
        "a": case.answers[order[0]],
        "b": case.answers[order[1]],
    }
    text = fill(options.pairwise_prompt, **slots)
    return Question(key, text, prompt.video if options.show_video else "")


def _ask_about_videos(config: Config, case: Case, key: str, order: IndexPair) -> Question:
    """Return a question about two videos; a server receives the frames of both as images, one video after the other."""
    size = frames_shown(config)
    first, second = "image 1", "image 2"
    if size > 1:
        first, second = f"images 1 to {size}", f"images {size + 1} to {2 * size}"
    text = fill(case.videos_prompt, question=case.prompt.question, a=first, b=second)
    videos = [case.answers[index] for index in order]
    return Question(key, text, *videos)


def by_function(config: Config, case: Case) -> dict:
    """Label one case by a function's verdicts, for a world in which code can check answers."""
    prefer = load_function(config.label.judge.path)
    outcomes: dict[IndexPair, pairwise.Verdict | Masked] = {}
    prompt, answers = case.prompt, case.answers
    for a, b in drawn_pairs(config, case):
        try:
            sign = int(prefer(prompt, answers[a], answers[b]))
        except Exception as error:
            # The function is the user's own code and may raise anything: this pair is masked with the reason.
            outcomes[a, b] = Masked(f"{type(error).__name__}: {error}")
            continue
        # A function is certain and does not depend on the order.
        one = pairwise.OrderOdds(float(sign), 1.0)
        other = pairwise.OrderOdds(float(-sign), 1.0)
        probability = (1 + sign) / 2
        outcomes[a, b] = pairwise.Verdict(probability, sign, False, (one, other))
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
            pair["orders"] = list(map(asdict, outcome.orders))
        pairs.append(pair)
    return label_row(case, [scores[index] for index in indices], pairs=pairs)
