"""AI feedback: a judge's verdicts on the candidates, `rlaif label CONFIG`. What is there already is not asked again."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from actors.reward import load_function
from rlaif.config.schema import Config, Function, Label
from rlaif.errors import ContractError
from rlaif.feedback import claims, pairwise
from rlaif.feedback.pairing import win_scores
from rlaif.feedback.store import Store
from rlaif.models.reward_prompt import contexts
from rlaif.progress import Progress
from rlaif.records import Masked, Prompt
from rlaif.seeds import derive
from rlaif.stages import candidates, data
from rlaif.stages.evaluate import command
from rlaif.stages.judges import Judge, Question, make_judge
from rlaif.stages.label_report import report
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

    @property
    def key(self) -> tuple[str, str]:
        text = json.dumps([self.prompt.question, *self.answers])
        return self.prompt.prompt_id, hashlib.sha256(text.encode()).hexdigest()[:16]


def label(config: Config, run: Run) -> dict:
    """Judge every prompt's answers; returns the report, which is `eval/label.json` too."""
    options, cases = config.label, read_cases(config, run)
    judge = None if isinstance(options.judge, Function) else make_judge(config, run, options.judge)
    name = options.judge.path if judge is None else judge.name
    store = open_labels(config)
    kind = kind_of(options, name)
    check_kind(store, kind)
    missing = set(store.missing([case.key for case in cases]))
    todo = [case for case in cases if case.key in missing]
    log.info("%s: %d of %d prompts are labelled already", store.path, len(cases) - len(todo), len(cases))
    shown = Progress(len(todo), "labels")
    for start in range(0, len(todo), AT_ONCE):
        part = todo[start : start + AT_ONCE]
        rows = judged(config, judge, part)
        store.append([{**row, "kind": kind, "judge": name} for row in rows])
        shown.to(start + len(part))
    shown.close()
    rows = [store[case.key] for case in cases]
    found = {"command": command(), "judge": name, **report(config, cases, rows)}
    run.directory.write_eval("label", found)
    return found


def read_cases(config: Config, run: Run) -> list[Case]:
    """Prompts that have answers, in file order, with the captions that `label.context` asks for."""
    answers = candidates.by_prompt(config)
    prompts = [p for file in config.candidates.prompts for p in data.prompts(run, file) if p.prompt_id in answers]
    found = contexts(config.label.context, [(p.video, p.captions) for p in prompts], config.seed)
    empty = sum(not captions for captions in found)
    if config.label.context != "none" and empty:
        log.warning("%d of %d prompts have no captions: the judge reads no context there", empty, len(prompts))
    return [Case(p, tuple(answers[p.prompt_id]), c) for p, c in zip(prompts, found, strict=True)]


def open_labels(config: Config) -> Store[tuple[str, str]]:
    return Store(data.data_path(config, config.data.labels), key=lambda row: (row["prompt_id"], row["answers_hash"]))


def kind_of(options: Label, judge: str) -> str:
    """16 hex digits over everything that a label depends on beside prompt, captions and answers."""
    asked = options.model_dump(mode="json", exclude={"judge", "reference"}) | {"judge": judge}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def check_kind(store: Store, kind: str) -> None:
    """Raises ContractError where a file holds labels of another judge or another way of asking."""
    others = sorted({row["judge"] for row in store.rows() if row["kind"] != kind})
    if others:
        raise ContractError(
            f"labels in {store.path} that were made with the options of `label` as they are now",
            f"some by {', '.join(others)} with other options",
            "data.labels: another file for other options, or remove this one",
        )


def judged(config: Config, judge: Judge | None, cases: Sequence[Case]) -> list[dict]:
    """One row per case; a judgement that failed is masked with its reason, and nothing else is lost."""
    if judge is None:
        return [by_function(config, case) for case in cases]
    method = by_claims if config.label.method == "claims" else by_pairs
    return method(config, judge, cases)


# -- pairwise


def compared(config: Config, case: Case) -> list[tuple[int, int]]:
    """Indices of different answers that are compared: all, or `label.comparisons` of them, drawn by seed."""
    answers = case.answers
    pairs = [(a, b) for a, b in itertools.combinations(range(len(answers)), 2) if answers[a] != answers[b]]
    drawn = sorted(pairs, key=lambda pair: derive(config.seed, "compare", case.prompt.prompt_id, *pair))
    return sorted(drawn[: config.label.comparisons])


def by_pairs(config: Config, judge: Judge, cases: Sequence[Case]) -> list[dict]:
    """Every chosen pair of answers, in both orders."""
    options, questions, places = config.label, [], {}
    for number, case in enumerate(cases):
        context = _context(config, judge, case)
        for a, b in compared(config, case):
            for first, second in ((a, b), (b, a)):
                key = f"{number}:{first}:{second}"
                text = fill(
                    options.pairwise_prompt,
                    context=context,
                    question=case.prompt.question,
                    a=case.answers[first],
                    b=case.answers[second],
                )
                questions.append(Question(key, text, case.prompt.video if options.show_video else ""))
            places.setdefault(number, []).append((a, b))
    found = judge.choose(questions, options.choices)
    rows = []
    for number, case in enumerate(cases):
        outcomes = {}
        for a, b in places.get(number, []):
            one, other = found[f"{number}:{a}:{b}"], found[f"{number}:{b}:{a}"]
            masked = next((part for part in (one, other) if isinstance(part, Masked)), None)
            outcomes[a, b] = masked or pairwise.judge(one, other, options.choices, options.flips)
        rows.append(_pair_row(case, outcomes))
    return rows


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
        values = [score if isinstance(score, Masked) else float(score.score) for score in scored]
        evidence = [None if isinstance(score, Masked) else _evidence(score) for score in scored]
        rows.append(_row(case, values, claims=evidence))
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
        Question(f"{number}:{place}", fill(prompt, question=case.prompt.question, answer=answer))
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

    return [[read(f"{n}:{place}", text) for place, text in enumerate(case.answers)] for n, case in enumerate(cases)]


def _evidence(score: claims.ClaimScore) -> list[dict]:
    return [{"claim": e.claim, "times": e.times, **asdict(e.judged)} for e in score.evidence]


# -- both


def _context(config: Config, judge: Judge, case: Case) -> str:
    """The caption slot: whole captions within the budget, or nothing."""
    options = config.label
    if options.context == "none":
        return ""
    kept, _ = within_budget(case.captions, judge.count, options.max_caption_tokens)
    return fill(options.captions_template, captions=options.captions_separator.join(kept)) if kept else ""


def _row(case: Case, scores: Sequence[float | Masked], **evidence: list) -> dict:
    told = [{"masked": score.reason} if isinstance(score, Masked) else {"score": score} for score in scores]
    prompt_id, answers_hash = case.key
    return {"prompt_id": prompt_id, "answers_hash": answers_hash, "scores": told, **evidence}
