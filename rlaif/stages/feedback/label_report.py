"""The report on a set of labels: what was masked, how far order decides, what a server took, agreement with a reference."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from rlaif.config.schema import Config
from rlaif.config.server import Server
from rlaif.evaluation.agreement import ComparedPair, agreement_rates, prompt_type_of
from rlaif.feedback.budget import cost
from rlaif.feedback.chat_response import Usage
from rlaif.feedback.pairwise import OrderOdds, Verdict
from rlaif.feedback.position import position_bias
from rlaif.functions import load_function
from rlaif.records import Masked
from rlaif.stages.feedback.judge_inputs import Case

Rows = Sequence[dict]
"""Rows of labels, one per case."""


def label_report(config: Config, cases: Sequence[Case], rows: Rows, spent: Mapping[str, dict]) -> dict:
    """Return the counts over answers, a pairwise judge's order bias, agreement with a reference, and a server's usage.

    `again`: prompts that the next run asks about once more. `without_context`: prompts whose videos have no captions.
    """
    answers = left_out = again = 0
    masked: Counter[str] = Counter()
    for row in rows:
        answers += len(row["scores"])
        left_out += row.get("captions_left_out", 0)
        again += row.get("again", False)
        for score in row["scores"]:
            if "masked" in score:
                masked[score["masked"]] += 1
    report: dict = {"prompts": len(rows), "answers": answers, "masked": dict(masked)}
    if left_out:
        report["captions_left_out"] = left_out
    report["again"] = again
    if config.label.context != "none":
        report["without_context"] = sum(not case.captions for case in cases)
    if any("pairs" in row for row in rows):
        outcomes = _verdicts(rows)
        report |= {"position": position_bias(outcomes), "flips": flip_rates(config.label.flips, outcomes)}
    if any("claims" in row for row in rows):
        report |= _claim_counts(rows)
    report |= server_usage(config, rows, spent)
    if config.label.reference:
        report |= _reference_agreement(config, cases, rows)
    return report


def _verdicts(rows: Rows) -> list[Verdict | Masked]:
    outcomes: list[Verdict | Masked] = []
    for row in rows:
        outcomes += map(_verdict, row.get("pairs", ()))
    return outcomes


def _claim_counts(rows: Rows) -> dict[str, int]:
    """Return the numbers of claims, of rejected claims, and of answers without claims (`empty`)."""
    count = rejected = empty = 0
    for row in rows:
        for claims in row.get("claims", ()):
            if claims == []:
                empty += 1
            for claim in claims or ():
                count += 1
                rejected += not claim["accepted"]
    return {"claims": count, "rejected": rejected, "empty": empty}


def _reference_agreement(config: Config, cases: Sequence[Case], rows: Rows) -> dict:
    pairs: list[ComparedPair] = []
    failures: Counter[str] = Counter()
    for pair, failure in compare_with_reference(config, cases, rows):
        pairs.append(pair)
        if failure is not None:
            failures[failure] += 1
    fields = {"agreement": agreement_rates(pairs) | {"reference": config.label.reference}}
    if failures:
        fields["reference_failed"] = dict(failures)
    return fields


def server_usage(config: Config, rows: Rows, spent: Mapping[str, dict]) -> dict:
    """Return what a server was asked and spent, as the field `server`; empty for another judge.

    It has `this_command` and `this_run` of `spent`, and `labels` for all the rows.
    """
    judge = config.label.judge
    if not isinstance(judge, Server):
        return {}
    return {"server": {**spent, "labels": reply_usage(judge, rows)}}


def reply_usage(server: Server, rows: Rows) -> dict:
    """Return the tokens and cost of the replies behind all the rows, whichever run asked; each reply counts once."""
    replies: dict[str, dict] = {}
    for row in rows:
        for reply in row.get("replies", ()):
            # A cached reply may be behind several rows; it was paid for once.
            replies[reply["prompt_hash"]] = reply
    prompt_tokens = completion_tokens = 0
    for reply in replies.values():
        prompt_tokens += reply["prompt_tokens"]
        completion_tokens += reply["completion_tokens"]
    used = Usage(prompt_tokens, completion_tokens)
    usage = {"replies": len(replies), **asdict(used)}
    return usage | {"cost": cost(server, used)}


def flip_rates(policy: str, outcomes: Sequence[Verdict | Masked]) -> dict:
    """Return the counts and shares of pairs whose two orders prefer different answers.

    The shares are of all verdicts: `before` counts the flipped pairs as the judge gave them, `after` those of them that
    still decide for one answer under the policy. Both are None without verdicts.
    """
    verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
    flipped = [verdict for verdict in verdicts if verdict.flipped]
    decided = sum(verdict.winner != 0 for verdict in flipped)
    count = len(verdicts)
    return {
        "policy": policy,
        "verdicts": count,
        "flipped": len(flipped),
        "flipped_decided": decided,
        "before": len(flipped) / count if count else None,
        "after": decided / count if count else None,
    }


def label_warnings(report: dict) -> list[str]:
    """Return what a user should read of a report before anything is built on the labels."""
    warnings = []
    bias = report.get("position", {}).get("warning")
    if bias:
        warnings.append(bias)
    if report["again"]:
        warnings.append(
            f"{report['again']} of {report['prompts']} prompts could not be judged, wholly or in part "
            f"({report_reasons(report)[0]}): run `rlaif label` again to ask about these once more"
        )
    failures = report.get("reference_failed")
    if failures:
        count = sum(failures.values())
        warnings.append(f"label.reference gave no result for {count} pairs of answers: {next(iter(failures))}")
    return warnings


def report_reasons(report: dict) -> list[str]:
    """Return the reasons of what is masked in a report, at least one."""
    of_pairs = report.get("position", {}).get("masked", {})
    reasons = of_pairs or report["masked"]
    return list(reasons) or ["some comparisons failed"]


def compare_with_reference(
    config: Config, cases: Sequence[Case], rows: Rows
) -> Iterator[tuple[ComparedPair, str | None]]:
    """Yield every two different answers to a prompt, as the labels and `label.reference` order them.

    The second item is None, or the reason why the reference failed: the pair has no sign then.
    """
    prefer = load_function(config.label.reference)
    for case, row in zip(cases, rows, strict=True):
        prompt, answers = case.prompt, case.answers
        scores = [score.get("score") for score in row["scores"]]
        for a, b in itertools.combinations(range(len(scores)), 2):
            if answers[a] == answers[b]:
                continue
            margin = None
            if scores[a] is not None and scores[b] is not None:
                margin = scores[a] - scores[b]
            sign = failure = None
            try:
                sign = prefer(prompt, answers[a], answers[b])
            except Exception as error:
                # The reference is the user's own code, and runs after everything has been asked and paid for.
                failure = f"{type(error).__name__}: {error}"
            yield ComparedPair(margin, sign, prompt_type=prompt_type_of(prompt.extra)), failure


def _verdict(pair: dict) -> Verdict | Masked:
    if "masked" in pair:
        return Masked(pair["masked"])
    first, second = (OrderOdds(**order) for order in pair["orders"])
    return Verdict(pair["p"], pair["winner"], pair["flipped"], (first, second))
