"""How often a reward model or a judge prefers what a file of preferences prefers: `rlaif eval agreement CONFIG`."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.config.server import Server
from rlaif.data.preference import SIDES, PreferencePair
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation import agreement as rates
from rlaif.evaluation.agreement import ComparedPair
from rlaif.markdown import markdown_table
from rlaif.records import Masked, Outcome, Prompt
from rlaif.stages.feedback.ask_reward import judged, require_reward, rewarded
from rlaif.stages.feedback.judge_inputs import Case, cases_of, reasons
from rlaif.stages.feedback.judges import frames_shown
from rlaif.stages.feedback.label_report import server
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.train.evaluate import command

log = logging.getLogger(__name__)

Margin = Callable[[str], float | None]
"""By dimension: above 0 where the chosen answer is judged better, 0 for a tie, None without a verdict."""


def agreement(config: Config, run: Run) -> dict:
    """Overall, by dimension and by prompt type, with 95 % intervals; `eval/agreement.json` too.

    Raises ConfigError without `data.pairs_eval`, DataError where no pair of the file can be used or it lacks a dimension
    of `agreement.dimensions`.
    """
    if config.data.pairs_eval is None:
        raise ConfigError(
            "data.pairs_eval, the preferences to compare with", "none", "Set data.pairs_eval to a file of pairs"
        )
    if config.agreement.by == "reward":
        require_reward(config)
    records, report = datasets.load_with_report(run, config.data.pairs_eval, "preferences")
    check_dimensions(config, records)
    measure = {"reward": by_reward, "judge": by_judge}[config.agreement.by]
    name, margins, masked, spent = measure(config, run, records)
    found = {
        "command": command(),
        "by": name,
        "file": report.path,
        "rows": report.counts,
        "masked": masked,
        **spent,
        **rates_of(records, margins, config.agreement.dimensions),
    }
    if masked:
        log.warning("%d of %d pairs have no verdict: %s", found["overall"]["no_verdict"], len(records), masked)
    run.directory.write_eval("agreement", found)
    return found


def check_dimensions(config: Config, records: Sequence[PreferencePair]) -> None:
    there = sorted({name for record in records for name in record.signs})
    if missing := [name for name in config.agreement.dimensions if name not in there]:
        raise DataError(
            f"pairs that are compared in {', '.join(missing)} in {config.data.pairs_eval}",
            f"the dimensions {', '.join(there)}",
            "Correct agreement.dimensions",
        )


def rates_of(records: Sequence[PreferencePair], margins: Sequence[Margin], dimensions: Sequence[str] = ()) -> dict:
    """`overall` and `prompt_type` count every pair once, in its own dimension; `dimension` in all that it is compared in."""
    own, further = [], []
    for record, margin in zip(records, margins, strict=True):
        for one in compared(record, margin):
            (own if one.dimension == record.dimension else further).append(one)
    found = rates.agreement_rates(own)
    by_dimension = rates.agreement_rates(own + further)["dimension"]
    kept = {name: rate for name, rate in by_dimension.items() if not dimensions or name in dimensions}
    return found | {"dimension": kept}


def compared(record: PreferencePair, margin: Margin) -> Iterator[ComparedPair]:
    """The record in its own dimension and in every further one, as both sides see it."""
    for dimension, sign in record.signs.items():
        yield ComparedPair(margin(dimension), sign, dimension, prompt_type(record))


def prompt_type(record: PreferencePair) -> str:
    fields = {"safety": record.safety, "provenance": record.provenance}
    return rates.prompt_type_of(record.native.get("rlaif", {}) | fields)


# -- who is compared

Measured = tuple[str, list[Margin], dict[str, int], dict]
"""Name, a margin per record, why some have none, and what a server took."""


def by_reward(config: Config, run: Run, records: Sequence[PreferencePair]) -> Measured:
    """Score differences of `ppo.reward`; in a dimension that is one of the score's parts, the difference of that part.

    A candidate that is a video is scored as `rlaif reward` reads it: with an empty answer.
    """
    reward = config.ppo.reward
    name = reward if isinstance(reward, str) else reward.path
    asked = [_sides(record) for record in records]
    found = iter(rewarded(config, run, [side for sides in asked for side in sides]))
    scores = [[score for _ in sides for score in next(found)] for sides in asked]
    masked = Counter(one.reason for pair in scores for one in pair if isinstance(one, Masked))
    return name, [_score_margin(*pair) for pair in scores], dict(masked), {}


def _sides(record: PreferencePair) -> list[tuple[Prompt, tuple[str, ...]]]:
    """Two answers to one prompt, or one prompt for each of two videos."""
    prompt = _prompt(record)
    if not record.chosen_video:
        return [(prompt, (record.chosen, record.rejected))]
    return [
        (replace(prompt, prompt_id=f"{record.pair_id}\n{side}", video=video), (getattr(record, side),))
        for side, video in zip(SIDES, _candidates(record), strict=True)
    ]


def _candidates(record: PreferencePair) -> tuple[str, str]:
    """The videos that are compared, the chosen one first."""
    return record.chosen_video or "", record.rejected_video or ""


def _score_margin(chosen: Outcome, rejected: Outcome) -> Margin:
    def margin(dimension: str) -> float | None:
        if isinstance(chosen, Masked) or isinstance(rejected, Masked):
            return None
        a, b = (one.parts.get(dimension, one.value) for one in (chosen, rejected))
        return a - b

    return margin


def by_judge(config: Config, run: Run, records: Sequence[PreferencePair]) -> Measured:
    """Labels of `label.judge` on the two candidates of each pair; a judge has one opinion, whatever the dimension.

    Two videos are shown side by side (`pairwise`), or each is asked about the claims of the text it was made from.
    """
    check_judge(config, records)
    by_claims = config.label.method == "claims"
    texts = [(_prompt(record), (record.chosen, record.rejected)) for record in records if not record.chosen_video]
    answers = iter(cases_of(config, texts))
    videos = claim_cases(config, run, records) if by_claims else {}
    cases = []
    for record in records:
        if not record.chosen_video:
            cases.append((next(answers),))
        elif by_claims:
            cases.append(tuple(videos[video, record.question] for video in _candidates(record)))
        else:
            prompt = replace(_prompt(record), video="")
            cases.append((Case(prompt, _candidates(record), (), config.agreement.videos_prompt),))
    cases = [tuple(_seen(run, case) for case in of_record) for of_record in cases]
    unique = {case.key: case for of_record in cases for case in of_record}
    name, rows, spent = judged(config, run, list(unique.values()), "agreement")
    by_key = dict(zip(unique, rows, strict=True))
    found = [[by_key[case.key] for case in of_record] for of_record in cases]
    masked = Counter(reason for row in rows for reason in reasons(row))
    return name, [_label_margin(of_record) for of_record in found], dict(masked), server(config, rows, spent)


def check_judge(config: Config, records: Sequence[PreferencePair]) -> None:
    """Raises ConfigError where the judge could not see videos that are compared, before it is asked anything."""
    label, videos = config.label, sum(bool(record.chosen_video) for record in records)
    if not videos or isinstance(label.judge, Function):
        return
    if not label.show_video:
        raise ConfigError(
            f"a judge that sees the videos of {videos} pairs", "label.show_video=false", "Set label.show_video=true"
        )
    if label.method == "claims":
        return
    if not isinstance(label.judge, Server):
        raise ConfigError(
            f"a judge that can be shown two videos at once, for {videos} pairs of videos",
            f"{label.judge}, a model on the rollout actors, which read one",
            "Set label.method=claims, which asks about each video by itself, label.judge to a server, or agreement.by=reward",
        )
    if (images := 2 * frames_shown(config)) > label.judge.max_images:
        raise ConfigError(
            f"at most {label.judge.max_images} images in a question (label.judge.max_images)",
            f"{images}: two videos of {frames_shown(config)} frames each",
            "Raise it (and the server's own limit), or lower label.num_frames (if it is null, video.num_frames)",
        )


def claim_cases(config: Config, run: Run, records: Sequence[PreferencePair]) -> dict[tuple[str, str], Case]:
    """By (video, text): a case whose one answer is the text, so that its claims are asked about the video."""
    compared = [record for record in records if record.chosen_video]
    wanted = {(video, record.question): None for record in compared for video in _candidates(record)}
    prompts = datasets.captioned(run, [Prompt(video, video, text) for video, text in wanted])
    cases = cases_of(config, [(prompt, (prompt.question,)) for prompt in prompts])
    return dict(zip(wanted, cases, strict=True))


def _seen(run: Run, case: Case) -> Case:
    """The case with what its video's name stands for, or both names where two are compared."""
    videos, contents = case.answers if case.videos_prompt else (case.prompt.video,), datasets.contents_of(run)
    return replace(case, prompt=replace(case.prompt, video_sha256=" ".join(map(contents, videos)).strip()))


def _label_margin(rows: Sequence[dict]) -> Margin:
    chosen, rejected = (score.get("score") for row in rows for score in row["scores"])
    value = None if chosen is None or rejected is None else chosen - rejected
    return lambda dimension: value


def _prompt(record: PreferencePair) -> Prompt:
    extra = record.native.get("rlaif", {})
    return Prompt(record.pair_id, record.video or "", record.question, captions=record.captions, extra=extra)


# -- what is printed


def table(found: dict) -> str:
    """A line per group as a Markdown table."""
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
