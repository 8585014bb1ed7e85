"""`rlaif eval agreement CONFIG`: how often a reward model or a judge prefers what a file of preferences prefers."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.config.server import Server
from rlaif.data.preference import SIDES, PreferencePair
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation import agreement as rates
from rlaif.evaluation.agreement import ComparedPair
from rlaif.io.rundir import RunDir, typed_command
from rlaif.markdown import markdown_table
from rlaif.records import Masked, Outcome, Prompt
from rlaif.stages.feedback.ask_reward import judge_cases, require_reward, reward_answers
from rlaif.stages.feedback.judge_inputs import AnsweredPrompt, Case, cases_of, masked_reasons
from rlaif.stages.feedback.judges import frames_shown
from rlaif.stages.feedback.label_report import server_usage
from rlaif.stages.preflight.files import check_file
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.preflight.judges import check_judge_or_reward
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.run.summary import Summary

log = logging.getLogger(__name__)

Margin = Callable[[str], float | None]
"""Takes a dimension; returns above 0 if the chosen answer is judged better, 0 for a tie, None without a verdict."""


@dataclass(frozen=True)
class PairVerdicts:
    """The verdicts of a reward model or a judge on every pair."""

    name: str
    margins: list[Margin]
    """One per pair."""
    masked: dict[str, int]
    """Reasons of missing verdicts, with counts."""
    usage: dict
    """What a server spent; empty for others."""


def agreement(config: Config, run: Run) -> dict:
    """Compute agreement overall, by dimension and by prompt type, with 95 % intervals; `eval/agreement.json` holds it too.

    Raises:
        ConfigError: without `data.pairs_eval`.
        DataError: if no pair of the file can be used, or if the file lacks a dimension of `agreement.dimensions`.
    """
    if config.data.pairs_eval is None:
        raise ConfigError(
            "data.pairs_eval, the preferences to compare with", "none", "Set data.pairs_eval to a file of pairs."
        )
    if config.agreement.by == "reward":
        require_reward(config)
    records, report = datasets.load_with_report(run, config.data.pairs_eval, "preferences")
    check_dimensions(config, records)
    measure = {"reward": reward_margins, "judge": judge_margins}[config.agreement.by]
    verdicts = measure(config, run, records)
    result = {
        "command": typed_command(),
        "by": verdicts.name,
        "file": report.path,
        "rows": report.counts,
        "masked": verdicts.masked,
        **verdicts.usage,
        **rates_by_group(records, verdicts.margins, config.agreement.dimensions),
    }
    if verdicts.masked:
        missing = result["overall"]["no_verdict"]
        log.warning("%d of %d pairs have no verdict: %s", missing, len(records), verdicts.masked)
    run.directory.write_eval("agreement", result)
    return result


def check_dimensions(config: Config, records: Sequence[PreferencePair]) -> None:
    """Raise DataError if no pair is compared in one of `agreement.dimensions`."""
    present: set[str] = set()
    for record in records:
        present.update(record.signs)
    missing = [name for name in config.agreement.dimensions if name not in present]
    if missing:
        raise DataError(
            f"pairs that are compared in {', '.join(missing)} in {config.data.pairs_eval}",
            f"the dimensions {', '.join(sorted(present))}",
            "Correct agreement.dimensions.",
        )


def rates_by_group(
    records: Sequence[PreferencePair], margins: Sequence[Margin], dimensions: Sequence[str] = ()
) -> dict:
    """Return the rates of `overall`, of each `prompt_type` and of each `dimension`.

    The first two count every pair once, in its own dimension; the last counts it in all dimensions that it is compared in.
    `dimensions` limits which of them are returned.
    """
    own, further = [], []
    for record, margin in zip(records, margins, strict=True):
        for pair in compared_dimensions(record, margin):
            group = own if pair.dimension == record.dimension else further
            group.append(pair)
    result = rates.agreement_rates(own)
    by_dimension = rates.agreement_rates(own + further)["dimension"]
    if dimensions:
        by_dimension = {name: rate for name, rate in by_dimension.items() if name in dimensions}
    return result | {"dimension": by_dimension}


def compared_dimensions(record: PreferencePair, margin: Margin) -> Iterator[ComparedPair]:
    """Yield the record in its own dimension and in every further one, with the opinions of both sides."""
    for dimension, sign in record.signs.items():
        yield ComparedPair(margin(dimension), sign, dimension, pair_prompt_type(record))


def pair_prompt_type(record: PreferencePair) -> str:
    """Return the group of prompts that a pair belongs to."""
    fields = {"safety": record.safety, "provenance": record.provenance}
    return rates.prompt_type_of(record.native.get("rlaif", {}) | fields)


# -- the side that is compared with the preferences


def reward_margins(config: Config, run: Run, records: Sequence[PreferencePair]) -> PairVerdicts:
    """Return the score differences of `ppo.reward`; in a dimension that is a part of the score, that part's difference.

    A candidate that is a video is scored as `rlaif reward` reads it: with an empty answer.
    """
    reward = config.ppo.reward
    name = reward if isinstance(reward, str) else reward.path
    sides = list(map(_sides, records))
    answers = list(itertools.chain.from_iterable(sides))
    scores = iter(reward_answers(config, run, answers))
    margins: list[Margin] = []
    masked: Counter[str] = Counter()
    for of_record in sides:
        # Two texts are two answers to one prompt; two videos are two prompts with one answer each.
        own = itertools.islice(scores, len(of_record))
        chosen, rejected = itertools.chain.from_iterable(own)
        margins.append(_score_margin(chosen, rejected))
        for score in (chosen, rejected):
            if isinstance(score, Masked):
                masked[score.reason] += 1
    return PairVerdicts(name, margins, dict(masked), {})


def _sides(record: PreferencePair) -> list[tuple[Prompt, tuple[str, ...]]]:
    """Return two answers to one prompt, or one prompt for each of two videos."""
    prompt = _prompt(record)
    if not record.chosen_video:
        return [(prompt, (record.chosen, record.rejected))]
    sides = []
    for side, video in zip(SIDES, _candidates(record), strict=True):
        # The id says which side it is: outcomes are collected by prompt, and both sides have one pair.
        own = replace(prompt, prompt_id=f"{record.pair_id}\n{side}", video=video)
        sides.append((own, (getattr(record, side),)))
    return sides


def _candidates(record: PreferencePair) -> tuple[str, str]:
    """Return the videos that are compared, the chosen one first."""
    return record.chosen_video or "", record.rejected_video or ""


def _score_margin(chosen: Outcome, rejected: Outcome) -> Margin:
    def margin(dimension: str) -> float | None:
        if isinstance(chosen, Masked) or isinstance(rejected, Masked):
            return None
        better = chosen.parts.get(dimension, chosen.value)
        return better - rejected.parts.get(dimension, rejected.value)

    return margin


def judge_margins(config: Config, run: Run, records: Sequence[PreferencePair]) -> PairVerdicts:
    """Return the label differences of `label.judge` between the candidates; a judge has one opinion for all dimensions.

    Two videos are shown side by side (`pairwise`), or the judge is asked about each with the claims of the text that it was
    made from.
    """
    check_judge_sees_videos(config, records)
    cases = _record_cases(config, run, records)
    # Two pairs may be about the same answers or videos; a judge is asked once.
    unique = {case.key: case for case in itertools.chain.from_iterable(cases)}
    name, rows, spent = judge_cases(config, run, list(unique.values()), "agreement")
    by_key = dict(zip(unique, rows, strict=True))
    margins: list[Margin] = []
    for own in cases:
        labels = [by_key[case.key] for case in own]
        margins.append(_label_margin(labels))
    masked: Counter[str] = Counter()
    for row in rows:
        masked.update(masked_reasons(row))
    return PairVerdicts(name, margins, dict(masked), server_usage(config, rows, spent))


def _record_cases(config: Config, run: Run, records: Sequence[PreferencePair]) -> list[list[Case]]:
    """Return what the judge reads of each record: one case, or one per video if it is asked about claims."""
    by_claims = config.label.method == "claims"
    texts: list[AnsweredPrompt] = []
    for record in records:
        if not record.chosen_video:
            texts.append((_prompt(record), (record.chosen, record.rejected)))
    # All texts at once: a shuffled context takes its captions from the other prompts.
    text_cases = iter(cases_of(config, texts))
    video_cases = claim_cases(config, run, records) if by_claims else {}
    cases: list[list[Case]] = []
    for record in records:
        videos = _candidates(record)
        if not record.chosen_video:
            own = [next(text_cases)]
        elif by_claims:
            own = [video_cases[video, record.question] for video in videos]
        else:
            # The videos are the answers here; the prompt has none of its own, and no captions, which fit one video only.
            prompt = replace(_prompt(record), video="")
            own = [Case(prompt, videos, (), config.agreement.videos_prompt)]
        cases.append([_with_contents(run, case) for case in own])
    return cases


def check_judge_sees_videos(config: Config, records: Sequence[PreferencePair]) -> None:
    """Raise ConfigError if the judge could not see videos that are compared, before it is asked anything."""
    label = config.label
    videos = sum(bool(record.chosen_video) for record in records)
    if not videos or isinstance(label.judge, Function):
        return
    if not label.show_video:
        raise ConfigError(
            f"a judge that sees the videos of {videos} pairs", "label.show_video=false", "Set label.show_video=true."
        )
    # Claims are asked about one video at a time, which every judge can read.
    if label.method == "claims":
        return
    if not isinstance(label.judge, Server):
        raise ConfigError(
            f"a judge that can be shown two videos at once, for {videos} pairs of videos",
            f"{label.judge}, a model on the rollout actors, which read one",
            "Set label.method=claims, which asks about each video by itself, label.judge to a server, or agreement.by=reward.",
        )
    images = 2 * frames_shown(config)
    if images > label.judge.max_images:
        raise ConfigError(
            f"at most {label.judge.max_images} images in a question (label.judge.max_images)",
            f"{images}: two videos of {frames_shown(config)} frames each",
            "Raise label.judge.max_images (and the server's own limit), or lower label.num_frames "
            "(if it is null, video.num_frames).",
        )


def claim_cases(config: Config, run: Run, records: Sequence[PreferencePair]) -> dict[tuple[str, str], Case]:
    """Return, by (video, text), a case whose only answer is the text: its claims are asked about the video."""
    prompts: dict[tuple[str, str], Prompt] = {}
    for record in records:
        if not record.chosen_video:
            continue
        for video in _candidates(record):
            prompts[video, record.question] = Prompt(video, video, record.question)
    captioned = datasets.captioned(run, list(prompts.values()))
    cases = cases_of(config, [(prompt, (prompt.question,)) for prompt in captioned])
    return dict(zip(prompts, cases, strict=True))


def _with_contents(run: Run, case: Case) -> Case:
    """Return the case with the hash of its video's file, or of both files if two videos are compared."""
    videos = case.answers if case.videos_prompt else (case.prompt.video,)
    hashes = " ".join(map(datasets.contents_of(run), videos)).strip()
    return replace(case, prompt=replace(case.prompt, video_sha256=hashes))


def _label_margin(rows: Sequence[dict]) -> Margin:
    # One row with two answers, or two rows with one each: the chosen side comes first in both.
    chosen, rejected = itertools.chain.from_iterable(map(_row_scores, rows))
    value = None if chosen is None or rejected is None else chosen - rejected
    return lambda dimension: value


def _row_scores(row: dict) -> list[float | None]:
    return [score.get("score") for score in row["scores"]]


def _prompt(record: PreferencePair) -> Prompt:
    return Prompt(
        record.pair_id,
        record.video or "",
        record.question,
        captions=record.captions,
        extra=record.native.get("rlaif", {}),
    )


# -- what is printed


def agreement_table(found: dict) -> str:
    """Return a Markdown table with a line per group."""
    groups = [("overall", found["overall"]), *rates.named_groups(found)]
    header = ["", "agreement", "95 % interval", "pairs", "ties", "no verdict"]
    rows = []
    for name, rate in groups:
        share = "" if rate["agreement"] is None else f"{rate['agreement']:.3f}"
        interval = "" if rate["low"] is None else f"{rate['low']:.3f} to {rate['high']:.3f}"
        counts = [str(rate[count]) for count in ("pairs", "ties", "no_verdict")]
        rows.append([name, share, interval, *counts])
    title = f"agreement of {found['by']} with {found['file']}"
    return f"{title}\n\n{markdown_table(header, rows)}"


def check_eval_agreement(inquiry: Inquiry) -> None:
    """Check the judge or the reward model, and the preferences to compare with."""
    config = inquiry.config
    option = "data.pairs_eval"
    check_judge_or_reward(inquiry, config.agreement.by)
    if config.data.pairs_eval is None:
        inquiry.report(option, "the preferences to compare with", "none", f"Set {option} to a file of pairs")
    else:
        check_file(inquiry, option, config.data.pairs_eval)


def summarise_eval_agreement(config: Config, directory: RunDir, report: dict) -> Summary:
    """Return the table of agreement rates."""
    return Summary({}, {"report": directory.path / "eval" / "agreement.json"}, agreement_table(report))
