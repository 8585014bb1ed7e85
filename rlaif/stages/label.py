"""AI feedback: a judge's verdicts on the candidates, `rlaif label CONFIG`. What is there already is not asked again.

A judgement that failed is a masked record with its reason. Where the reason may pass (a server that is down, a budget that
is used up), the row says `again` and the next run asks for that prompt once more; what the judge itself declined is done.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from actors.reward import load_function
from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.feedback import claims, pairwise
from rlaif.feedback.pairing import win_scores
from rlaif.feedback.store import Store
from rlaif.models.reward_prompt import contexts
from rlaif.progress import Progress
from rlaif.records import Masked, Prompt
from rlaif.seeds import derive
from rlaif.stages import candidates, data
from rlaif.stages.evaluate import command
from rlaif.stages.judges import Judge, Question, make_judge, name_of
from rlaif.stages.label_kind import check_kind, kind_of
from rlaif.stages.label_report import report, warnings
from rlaif.stages.run import Run
from rlaif.text import fill, within_budget

log = logging.getLogger(__name__)

AT_ONCE = 128
"""Prompts whose answers are judged, and then written down, together."""


@dataclass(frozen=True)
class Case:
    """One prompt with everything the judge reads."""

    prompt: Prompt
    answers: tuple[str, ...]
    captions: tuple[str, ...]
    """Those that are read; none with `label.context: none`."""
    videos_prompt: str = ""
    """Where the answers are videos (their paths): what a pairwise judge is asked, instead of `label.pairwise_prompt`."""

    @property
    def key(self) -> tuple[str, str]:
        """Other answers and other captions make another label."""
        told = [self.videos_prompt] if self.videos_prompt else []
        text = json.dumps([self.prompt.question, *self.captions, "", *self.answers, *told])
        return self.prompt.prompt_id, hashlib.sha256(text.encode()).hexdigest()[:16]


def label(config: Config, run: Run) -> dict:
    """Judge every prompt's answers; returns the report, which is `eval/label.json` too."""
    cases = read_cases(config, run)
    done = labelled(config, run, cases, open_labels(config))
    found = {"command": command(), "judge": done.judge, **report(config, cases, done.rows, done.spent)}
    for warning in warnings(found):
        log.warning("%s", warning)
    run.directory.write_eval("label", found)
    return found


class Labelled(NamedTuple):
    judge: str
    """Its name."""
    rows: list[dict]
    """One per case."""
    spent: dict
    """What asking took in this call, where the judge is a server."""


def labelled(config: Config, run: Run, cases: Sequence[Case], store: Store) -> Labelled:
    """The rows of the store, where the judge adds what is missing."""
    options = config.label
    judge = None if isinstance(options.judge, Function) else make_judge(config, run, options.judge)
    check_kind(store, config)
    missing = set(store.missing([case.key for case in cases]))
    todo = [case for case in cases if case.key in missing]
    log.info("%s: %d of %d prompts are labelled already", store.path, len(cases) - len(todo), len(cases))
    made = {"kind": kind_of(config), "judge": name_of(options.judge)}
    shown, silent = Progress(len(todo), "labels"), False
    for start in range(0, len(todo), AT_ONCE):
        part = todo[start : start + AT_ONCE]
        rows = [_not_asked(case) for case in part] if silent else judged(config, judge, part)
        silent = all(row.get("again") and all("masked" in score for score in row["scores"]) for row in rows)
        store.append([{**row, **left_out(config, judge, case), **made} for case, row in zip(part, rows, strict=True)])
        shown.to(start + len(part))
    shown.close()
    return Labelled(made["judge"], [store[case.key] for case in cases], judge.spent() if judge else {})


def read_cases(config: Config, run: Run) -> list[Case]:
    """Prompts that have answers, in file order, with the captions that `label.context` asks for."""
    prompts = data.prompts_of(run, config.candidates.prompts)
    answers = candidates.by_prompt(config, prompts)
    prompts = [prompt for prompt in prompts if prompt.prompt_id in answers]
    cases = cases_of(config, [(prompt, answers[prompt.prompt_id]) for prompt in prompts])
    empty = sum(not case.captions for case in cases)
    if config.label.context != "none" and empty:
        log.warning("%d of %d prompts have no captions: the judge reads no context there", empty, len(prompts))
    return cases


def cases_of(config: Config, answered: Sequence[tuple[Prompt, Sequence[str]]]) -> list[Case]:
    """Prompts and answers with what `label.context` gives the judge to read."""
    if config.label.context == "none":
        return [Case(prompt, tuple(answers), ()) for prompt, answers in answered]
    read = contexts(config.label.context, [(prompt.video, prompt.captions) for prompt, _ in answered], config.seed)
    return [Case(prompt, tuple(answers), told) for (prompt, answers), told in zip(answered, read, strict=True)]


def open_labels(config: Config) -> Store[tuple[str, str]]:
    return label_store(data.data_path(config, config.data.labels))


def label_store(path: str | Path) -> Store[tuple[str, str]]:
    """Labels in a file; a prompt that the judge could not be asked about counts as missing."""
    return Store(path, lambda row: (row["prompt_id"], row["answers_hash"]), lambda row: row.get("again", False))


def judged(config: Config, judge: Judge | None, cases: Sequence[Case]) -> list[dict]:
    """One row per case; a judgement that failed is masked with its reason, and nothing else is lost."""
    if judge is None:
        return [by_function(config, case) for case in cases]
    method = by_claims if config.label.method == "claims" else by_pairs
    return _with_replies(method(config, judge, cases), judge.replies())


def _with_replies(rows: list[dict], replies: Iterable[tuple[str, dict]]) -> list[dict]:
    """The rows with the records of a server's replies behind them, each once, by what was asked."""
    told: dict[int, list[dict]] = {}
    for key, record in replies:
        number, _, asked = key.partition(":")
        told.setdefault(int(number), []).append({"asked": asked, **record})
    return [row | ({"replies": told[number]} if number in told else {}) for number, row in enumerate(rows)]


# -- pairwise


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
            outcomes[a, b] = masked[0] if masked else pairwise.judge(one, other, options.choices, options.flips)
            failed += masked
        rows.append(_pair_row(case, outcomes) | _again(failed))
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
        ask = _of_videos if case.videos_prompt else partial(_of_answers, context=_context(config, judge, case))
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
    size = config.video.num_frames
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
        certain = pairwise.Asked(float(sign), 1.0), pairwise.Asked(float(-sign), 1.0)
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
    return _row(case, [scores[index] for index in range(len(case.answers))], pairs=told)


# -- claims


def by_claims(config: Config, judge: Judge, cases: Sequence[Case]) -> list[dict]:
    """Every claim of every answer, each once per prompt."""
    options = config.label
    divided = divide(config, judge, cases)
    questions: dict[str, Question] = {}
    for number, (case, tallies) in enumerate(zip(cases, divided, strict=True)):
        context = _context(config, judge, case)
        for claim in sorted({claim for tally in tallies if not isinstance(tally, Masked) for claim in tally}):
            text = fill(options.claim_prompt, context=context, claim=claim, question=case.prompt.question)
            key = f"{number}:{claim}"
            questions[key] = Question(key, text, case.prompt.video if options.show_video else "")
    found = judge.choose(list(questions.values()), options.yes_no)
    read = {
        key: tokens if isinstance(tokens, Masked) else claims.judge_claim(tokens, *options.yes_no)
        for key, tokens in found.items()
    }
    rows = []
    for number, (case, tallies) in enumerate(zip(cases, divided, strict=True)):
        scored = [
            tally if isinstance(tally, Masked) else claims.score(tally, [read[f"{number}:{claim}"] for claim in tally])
            for tally in tallies
        ]
        values = [_value(score) for score in scored]
        evidence = [None if isinstance(score, Masked) else _evidence(score) for score in scored]
        asked = {claim for tally in tallies if not isinstance(tally, Masked) for claim in tally}
        again = _again([*tallies, *(found[f"{number}:{claim}"] for claim in asked)])
        rows.append(_row(case, values, claims=evidence) | again)
    return rows


def divide(config: Config, judge: Judge, cases: Sequence[Case]) -> list[list[dict[str, int] | Masked]]:
    """The claims of each answer of each case, with how often it makes each."""
    how = config.label.split
    if how == "model":
        return _divided_by(judge, config.label.split_prompt, cases)
    split = claims.split if how == "sentences" else load_function(how)
    return [[claims.tally(split(answer)) for answer in case.answers] for case in cases]


def _divided_by(judge: Judge, prompt: str, cases: Sequence[Case]) -> list[list[dict[str, int] | Masked]]:
    questions = [
        Question(f"{number}:claims of {place}", fill(prompt, question=case.prompt.question, answer=answer))
        for number, case in enumerate(cases)
        for place, answer in enumerate(case.answers)
        if answer.strip()
    ]
    replies = judge.write(questions)

    def read(key: str, answer: str) -> dict[str, int] | Masked:
        if not answer.strip():
            return {}
        reply = replies[key]
        if isinstance(reply, Masked):
            return reply
        return claims.tally(claims.parse_list(reply)) or Masked(
            "the judge listed no claims of an answer that is not empty"
        )

    return [
        [read(f"{n}:claims of {place}", text) for place, text in enumerate(case.answers)]
        for n, case in enumerate(cases)
    ]


def _value(score: claims.ClaimScore | Masked) -> float | Masked:
    """An answer without claims has no rejected ones either, and is not the best for it."""
    if isinstance(score, Masked):
        return score
    return Masked("it makes no claims") if score.empty else float(score.score)


def _evidence(score: claims.ClaimScore) -> list[dict]:
    return [{"claim": e.claim, "times": e.times, **asdict(e.judged)} for e in score.evidence]


# -- both


def _again(outcomes: Iterable) -> dict:
    """What a row says where anything it is made of failed for a reason that may pass."""
    return {"again": True} if any(isinstance(one, Masked) and one.again for one in outcomes) else {}


def _not_asked(case: Case) -> dict:
    masked = Masked("not asked: the judge had answered nothing about the prompts before", again=True)
    return _row(case, [masked] * len(case.answers)) | _again([masked])


def _context(config: Config, judge: Judge, case: Case) -> str:
    """The caption slot: whole captions within the budget, or nothing."""
    options = config.label
    if options.context == "none":
        return ""
    kept, _ = within_budget(case.captions, judge.count, options.max_caption_tokens)
    return fill(options.captions_template, captions=options.captions_separator.join(kept)) if kept else ""


def left_out(config: Config, judge: Judge | None, case: Case) -> dict:
    """How many captions the budget left out, where it did."""
    if judge is None or config.label.context == "none":
        return {}
    _, beyond = within_budget(case.captions, judge.count, config.label.max_caption_tokens)
    return {"captions_left_out": len(beyond)} if beyond else {}


def _row(case: Case, scores: Sequence[float | Masked], **evidence: list) -> dict:
    told = [{"masked": score.reason} if isinstance(score, Masked) else {"score": score} for score in scores]
    prompt_id, answers_hash = case.key
    return {"prompt_id": prompt_id, "answers_hash": answers_hash, "scores": told, **evidence}
