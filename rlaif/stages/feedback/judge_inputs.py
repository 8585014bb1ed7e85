"""What a judge reads: prompts with answers and captions; and the row of labels that each of them becomes."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlaif.config.schema import Config
from rlaif.data.misread import media_marks
from rlaif.errors import DataError, named
from rlaif.models.reward_prompt import contexts
from rlaif.models.templates import fill, within_budget
from rlaif.records import Masked, Prompt
from rlaif.stages.feedback import sample
from rlaif.stages.feedback.judges import Judge
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One prompt with everything that the judge reads."""

    prompt: Prompt
    answers: tuple[str, ...]
    captions: tuple[str, ...]
    """The captions that the judge reads; none with `label.context: none`."""
    videos_prompt: str = ""
    """The question to a pairwise judge if the answers are videos (their paths); it replaces `label.pairwise_prompt`."""

    @property
    def key(self) -> tuple[str, str]:
        """Return (prompt_id, 16 hex digits): other answers, other captions or another video file make another label.

        How the video's frames are chosen is part of the label hash of the file.
        """
        optional = [text for text in (self.videos_prompt, self.prompt.video_sha256) if text]
        text = json.dumps([self.prompt.question, *self.captions, "", *self.answers, *optional])
        return self.prompt.prompt_id, hashlib.sha256(text.encode()).hexdigest()[:16]


def read_cases(config: Config, run: Run) -> tuple[list[Case], int]:
    """Return the prompts that have answers, in file order, and how many prompts have none.

    Each comes with the captions that `label.context` asks for.

    Raises:
        DataError: if `label.context` asks for captions and no prompt has any.
    """
    every = datasets.prompts_of(run, config.candidates.prompts)
    answers = sample.answers_by_prompt(config, every)
    prompts = [prompt for prompt in every if answers.get(prompt.prompt_id)]
    unanswered = len(every) - len(prompts)
    if unanswered:
        log.warning("%d of %d prompts have no answers in %s", unanswered, len(every), config.data.candidates)
    answered = [(prompt, answers[prompt.prompt_id]) for prompt in prompts]
    cases = cases_of(config, without_media_marks(run, answered, config.data.candidates))
    empty = sum(not case.captions for case in cases)
    context = config.label.context
    if context != "none" and config.data.captions and empty == len(cases):
        raise datasets.no_captions(config, f"{empty} prompts", f"label.context={context} gives them to the judge")
    if context != "none" and empty:
        log.warning("%d of %d prompts have no captions: the judge reads no context there", empty, len(prompts))
    return cases, unanswered


def without_media_marks(
    run: Run, answered: Sequence[tuple[Prompt, Sequence[str]]], file: str
) -> list[tuple[Prompt, Sequence[str]]]:
    """Return the prompts whose answers hold no media mark; the others are counted and named.

    Raises:
        DataError: if every prompt has an answer with a media mark.
    """
    bad = [prompt.prompt_id for prompt, answers in answered if any(map(media_marks, answers))]
    if not bad:
        return list(answered)
    text = "%s: %d prompts have answers with a media mark, which no judge or reward model can read: %s"
    log.warning(text, file, len(bad), named(run.placed(bad)))
    if len(bad) == len(answered):
        raise DataError(
            f"answers without media marks in {file}", f"none for {len(bad)} prompts", "Remove the marks from the file"
        )
    return [(prompt, answers) for prompt, answers in answered if prompt.prompt_id not in set(bad)]


def cases_of(config: Config, answered: Sequence[tuple[Prompt, Sequence[str]]]) -> list[Case]:
    """Return prompts and answers with the captions that `label.context` gives the judge."""
    if config.label.context == "none":
        return [Case(prompt, tuple(answers), ()) for prompt, answers in answered]
    own = [(prompt.video, prompt.captions) for prompt, _ in answered]
    read = contexts(config.label.context, own, config.seed)
    cases = []
    for (prompt, answers), captions in zip(answered, read, strict=True):
        cases.append(Case(prompt, tuple(answers), captions))
    return cases


def context_text(config: Config, judge: Judge, case: Case) -> str:
    """Return the text of the caption slot: whole captions within `label.max_caption_tokens`, or an empty string."""
    options = config.label
    if options.context == "none":
        return ""
    within, _ = within_budget(case.captions, judge.count, options.max_caption_tokens)
    if not within:
        return ""
    return fill(options.captions_template, captions=options.captions_separator.join(within))


def left_out_field(config: Config, judge: Judge | None, case: Case) -> dict:
    """Return the field of a row that counts the captions beyond the budget; empty if there are none."""
    if judge is None or config.label.context == "none":
        return {}
    _, beyond = within_budget(case.captions, judge.count, config.label.max_caption_tokens)
    return {"captions_left_out": len(beyond)} if beyond else {}


def label_row(case: Case, scores: Sequence[float | Masked], **evidence: list) -> dict:
    """Return a case's row: its key, one score (or the reason why there is none) per answer, and the evidence."""
    fields = [{"masked": score.reason} if isinstance(score, Masked) else {"score": score} for score in scores]
    prompt_id, answers_hash = case.key
    return {"prompt_id": prompt_id, "answers_hash": answers_hash, "scores": fields, **evidence}


def retry_field(outcomes: Iterable) -> dict:
    """Return the field that has the next run ask again; empty unless one of `outcomes` failed for a reason that may pass."""
    for outcome in outcomes:
        if isinstance(outcome, Masked) and outcome.again:
            return {"again": True}
    return {}


def masked_reasons(row: dict) -> list[str]:
    """Return why a row lacks verdicts: the reasons of its pairs, else of its scores, each once."""
    of_pairs = [pair["masked"] for pair in row.get("pairs", ()) if "masked" in pair]
    of_scores = [score["masked"] for score in row["scores"] if "masked" in score]
    return of_pairs or list(dict.fromkeys(of_scores))
