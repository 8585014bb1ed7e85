"""What a set of labels looks like: what was masked, how much the judge goes by the order, and whom it agrees with."""

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


def report(config: Config, cases: Sequence[Case], rows: Sequence[dict], spent: Mapping[str, dict]) -> dict:
    """Counts over answers, order bias of a pairwise judge, the share of pairs on which a reference agrees, and what a
    server took.

    `again`: prompts that the next run asks about once more. `without_context`: prompts whose videos have no captions.
    """
    scores = [score for row in rows for score in row["scores"]]
    masked = Counter(score["masked"] for score in scores if "masked" in score)
    found = {"prompts": len(rows), "answers": len(scores), "masked": dict(masked)}
    if beyond := sum(row.get("captions_left_out", 0) for row in rows):
        found["captions_left_out"] = beyond
    found["again"] = sum(row.get("again", False) for row in rows)
    if config.label.context != "none":
        found["without_context"] = sum(not case.captions for case in cases)
    if any("pairs" in row for row in rows):
        outcomes = [_verdict(pair) for row in rows for pair in row.get("pairs", ())]
        found |= {"position": position_bias(outcomes), "flips": flips(config.label.flips, outcomes)}
    if any("claims" in row for row in rows):
        judged = [claim for row in rows for answer in row.get("claims", ()) if answer for claim in answer]
        rejected = sum(not claim["accepted"] for claim in judged)
        found |= {"claims": len(judged), "rejected": rejected, "empty": _empty(rows)}
    found |= server(config, rows, spent)
    if config.label.reference:
        failed: Counter[str] = Counter()
        found["agreement"] = agreement_rates(list(compared(config, cases, rows, failed))) | {
            "reference": config.label.reference
        }
        found |= {"reference_failed": dict(failed)} if failed else {}
    return found


def server(config: Config, rows: Sequence[dict], spent: Mapping[str, dict]) -> dict:
    """What a judge's server was asked and took: by this command, by all of the run, and for all the rows; empty for another judge."""
    judge = config.label.judge
    return {"server": {**spent, "labels": behind(judge, rows)}} if isinstance(judge, Server) else {}


def behind(server: Server, rows: Sequence[dict]) -> dict:
    """What the replies behind all the rows took, whichever run asked for them; each counts once."""
    replies = {reply["prompt_hash"]: reply for row in rows for reply in row.get("replies", ())}.values()
    used = Usage(*(sum(reply[name] for reply in replies) for name in ("prompt_tokens", "completion_tokens")))
    return {"replies": len(replies), **asdict(used), "cost": cost(server, used)}


def flips(policy: str, outcomes: Sequence[Verdict | Masked]) -> dict:
    """Pairs whose two orders prefer different answers: their share of all verdicts before the policy (as the judge gave them)
    and after it (those that still decide for one answer). None without verdicts."""
    verdicts = [outcome for outcome in outcomes if isinstance(outcome, Verdict)]
    flipped = [verdict for verdict in verdicts if verdict.flipped]
    decided = sum(verdict.winner != 0 for verdict in flipped)
    share = {
        name: count / len(verdicts) if verdicts else None
        for name, count in (("before", len(flipped)), ("after", decided))
    }
    return {"policy": policy, "verdicts": len(verdicts), "flipped": len(flipped), "flipped_decided": decided, **share}


def warnings(found: dict) -> list[str]:
    """What a user should read of a report before anything is built on the labels."""
    told = [found["position"]["warning"]] if found.get("position", {}).get("warning") else []
    if found["again"]:
        told.append(
            f"{found['again']} of {found['prompts']} prompts could not be judged, wholly or in part ({why(found)[0]}): "
            "run `rlaif label` again to ask about these once more"
        )
    if failed := found.get("reference_failed"):
        told.append(f"label.reference said nothing of {sum(failed.values())} pairs of answers: {next(iter(failed))}")
    return told


def why(found: dict) -> list[str]:
    """Reasons of what is masked in a report."""
    return list(found.get("position", {}).get("masked", {}) or found["masked"]) or ["some comparisons failed"]


def compared(
    config: Config, cases: Sequence[Case], rows: Sequence[dict], failed: Counter[str]
) -> Iterator[ComparedPair]:
    """Every two answers to a prompt, as the labels and `label.reference` order them. Where that fails, it says nothing of
    the two, and `failed` counts its reasons."""
    prefer = load_function(config.label.reference)
    for case, row in zip(cases, rows, strict=True):
        scores = [score.get("score") for score in row["scores"]]
        for a, b in itertools.combinations(range(len(scores)), 2):
            if case.answers[a] != case.answers[b]:
                judged = None if None in (scores[a], scores[b]) else scores[a] - scores[b]
                try:
                    sign = prefer(case.prompt, case.answers[a], case.answers[b])
                except Exception as error:  # the user's own code, after everything has been asked and paid for
                    failed[f"{type(error).__name__}: {error}"] += 1
                    sign = None
                yield ComparedPair(judged, sign, prompt_type=prompt_type_of(case.prompt.extra))


def _empty(rows: Sequence[dict]) -> int:
    return sum(answer == [] for row in rows for answer in row.get("claims", ()))


def _verdict(pair: dict) -> Verdict | Masked:
    if "masked" in pair:
        return Masked(pair["masked"])
    first, second = (OrderOdds(**order) for order in pair["orders"])
    return Verdict(pair["p"], pair["winner"], pair["flipped"], (first, second))
