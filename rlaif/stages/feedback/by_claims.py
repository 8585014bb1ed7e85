"""Labels by claims: an answer is split into claims, and the judge accepts or rejects each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from rlaif.config.schema import Config
from rlaif.feedback import claims
from rlaif.functions import load_function
from rlaif.models.templates import fill
from rlaif.records import Masked
from rlaif.stages.feedback.judge_inputs import Case, context_text, label_row, retry_field
from rlaif.stages.feedback.judges import Judge, Question

Tally = dict[str, int]
"""How often an answer makes each of its claims, by claim."""
AnswerClaims = list[Tally | Masked]
"""The claims of each answer to a prompt, or why they are not known."""


def by_claims(config: Config, judge: Judge, cases: Sequence[Case]) -> list[dict]:
    """Label every answer by its claims. A claim is asked about once per prompt, even if several answers make it."""
    options = config.label
    tallies = split_answers(config, judge, cases)
    questions: list[Question] = []
    for number, case in enumerate(cases):
        questions += _claim_questions(config, judge, case, number, _claims_of(tallies[number]))
    replies = judge.choose(questions, options.yes_no)
    verdicts: dict[str, claims.ClaimVerdict | Masked] = {}
    for key, tokens in replies.items():
        if isinstance(tokens, Masked):
            verdicts[key] = tokens
        else:
            verdicts[key] = claims.judge_claim(tokens, *options.yes_no, options.reject_at)
    rows = []
    for number, case in enumerate(cases):
        own = tallies[number]
        scores = [_claim_score(tally, verdicts, number) for tally in own]
        values = list(map(_value, scores))
        row = label_row(case, values, claims=list(map(_evidence, scores)))
        # Whether a prompt is asked about again depends on what failed, not on the masked scores that follow from it.
        outcomes: list = list(own)
        for claim in _claims_of(own):
            outcomes.append(replies[_claim_key(number, claim)])
        rows.append(row | retry_field(outcomes))
    return rows


def _claims_of(tallies: AnswerClaims) -> list[str]:
    """Return the claims of all answers to a prompt, each once, sorted."""
    distinct: set[str] = set()
    for tally in tallies:
        if not isinstance(tally, Masked):
            distinct.update(tally)
    return sorted(distinct)


def _claim_key(number: int, claim: str) -> str:
    return f"{number}:{claim}"


def _claim_questions(
    config: Config, judge: Judge, case: Case, number: int, distinct: Sequence[str]
) -> Iterator[Question]:
    options = config.label
    context = context_text(config, judge, case)
    prompt = case.prompt
    video = prompt.video if options.show_video else ""
    for claim in distinct:
        text = fill(options.claim_prompt, context=context, claim=claim, question=prompt.question)
        yield Question(_claim_key(number, claim), text, video)


def _claim_score(
    tally: Tally | Masked, verdicts: Mapping[str, claims.ClaimVerdict | Masked], number: int
) -> claims.ClaimScore | Masked:
    if isinstance(tally, Masked):
        return tally
    own = [verdicts[_claim_key(number, claim)] for claim in tally]
    return claims.claim_score(tally, own)


def split_answers(config: Config, judge: Judge, cases: Sequence[Case]) -> list[AnswerClaims]:
    """Return the claims of each answer of each case, with how often the answer makes each."""
    method = config.label.split
    if method == "model":
        return _split_by_model(judge, config.label.split_prompt, cases)
    split = claims.split_claims if method == "sentences" else load_function(method)
    tallies: list[AnswerClaims] = []
    for case in cases:
        # Splitting needs no judge here, so that it cannot fail for a reason that may pass.
        own: AnswerClaims = []
        for answer in case.answers:
            own.append(claims.count_claims(split(answer)))
        tallies.append(own)
    return tallies


def _split_by_model(judge: Judge, prompt: str, cases: Sequence[Case]) -> list[AnswerClaims]:
    questions = []
    for number, case in enumerate(cases):
        for index, answer in enumerate(case.answers):
            if answer.strip():
                text = fill(prompt, question=case.prompt.question, answer=answer)
                questions.append(Question(_split_key(number, index), text))
    replies = judge.write(questions)
    tallies: list[AnswerClaims] = []
    for number, case in enumerate(cases):
        own: AnswerClaims = []
        for index, answer in enumerate(case.answers):
            # An answer without text makes no claims, and the judge was not asked about it.
            if answer.strip():
                own.append(_listed_claims(replies[_split_key(number, index)]))
            else:
                own.append({})
        tallies.append(own)
    return tallies


def _split_key(number: int, index: int) -> str:
    return f"{number}:claims of {index}"


def _listed_claims(reply: str | Masked) -> Tally | Masked:
    """Return the claims that the judge listed for an answer that has text; a list without any is masked."""
    if isinstance(reply, Masked):
        return reply
    tally = claims.count_claims(claims.parse_list(reply))
    return tally or Masked("the judge listed no claims of an answer that is not empty")


def _value(score: claims.ClaimScore | Masked) -> float | Masked:
    """Return the score as a number; an answer without claims is masked.

    It has no rejected claims either, and must not be the best answer for that.
    """
    if isinstance(score, Masked):
        return score
    return Masked("it makes no claims") if score.empty else float(score.score)


def _evidence(score: claims.ClaimScore | Masked) -> list[dict] | None:
    if isinstance(score, Masked):
        return None
    records = []
    for part in score.evidence:
        records.append({"claim": part.claim, "times": part.times, **asdict(part.judged)})
    return records
