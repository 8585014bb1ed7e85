"""An answer's claims, each of them true or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rlaif.config.schema import Config
from rlaif.feedback import claims
from rlaif.functions import load_function
from rlaif.models.templates import fill
from rlaif.records import Masked
from rlaif.stages.feedback.judge_inputs import Case, again, context_text, row_of
from rlaif.stages.feedback.judges import Judge, Question


def by_claims(config: Config, judge: Judge, cases: Sequence[Case]) -> list[dict]:
    """Every claim of every answer, each once per prompt."""
    options = config.label
    divided = divide(config, judge, cases)
    questions: dict[str, Question] = {}
    for number, (case, tallies) in enumerate(zip(cases, divided, strict=True)):
        context = context_text(config, judge, case)
        for claim in sorted({claim for tally in tallies if not isinstance(tally, Masked) for claim in tally}):
            text = fill(options.claim_prompt, context=context, claim=claim, question=case.prompt.question)
            key = f"{number}:{claim}"
            questions[key] = Question(key, text, case.prompt.video if options.show_video else "")
    found = judge.choose(list(questions.values()), options.yes_no)
    read = {
        key: tokens if isinstance(tokens, Masked) else claims.judge_claim(tokens, *options.yes_no, options.reject_at)
        for key, tokens in found.items()
    }
    rows = []
    for number, (case, tallies) in enumerate(zip(cases, divided, strict=True)):
        scored = [
            tally
            if isinstance(tally, Masked)
            else claims.claim_score(tally, [read[f"{number}:{claim}"] for claim in tally])
            for tally in tallies
        ]
        values = [_value(score) for score in scored]
        evidence = [None if isinstance(score, Masked) else _evidence(score) for score in scored]
        asked = {claim for tally in tallies if not isinstance(tally, Masked) for claim in tally}
        failed = again([*tallies, *(found[f"{number}:{claim}"] for claim in asked)])
        rows.append(row_of(case, values, claims=evidence) | failed)
    return rows


def divide(config: Config, judge: Judge, cases: Sequence[Case]) -> list[list[dict[str, int] | Masked]]:
    """The claims of each answer of each case, with how often it makes each."""
    how = config.label.split
    if how == "model":
        return _divided_by(judge, config.label.split_prompt, cases)
    split = claims.split_claims if how == "sentences" else load_function(how)
    return [[claims.count_claims(split(answer)) for answer in case.answers] for case in cases]


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
        return claims.count_claims(claims.parse_list(reply)) or Masked(
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
