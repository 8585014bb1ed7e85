"""What a judge is asked about: prompts with answers and captions, and the row that becomes of each."""

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
    """One prompt with everything the judge reads."""

    prompt: Prompt
    answers: tuple[str, ...]
    captions: tuple[str, ...]
    """Those that are read; none with `label.context: none`."""
    videos_prompt: str = ""
    """Where the answers are videos (their paths): what a pairwise judge is asked, instead of `label.pairwise_prompt`."""

    @property
    def key(self) -> tuple[str, str]:
        """Other answers, other captions and another video file make another label; how its frames are chosen is part of the
        file's kind."""
        told = [one for one in (self.videos_prompt, self.prompt.video_sha256) if one]
        text = json.dumps([self.prompt.question, *self.captions, "", *self.answers, *told])
        return self.prompt.prompt_id, hashlib.sha256(text.encode()).hexdigest()[:16]


def read_cases(config: Config, run: Run) -> tuple[list[Case], int]:
    """Prompts that have answers, in file order, with the captions that `label.context` asks for; how many have none."""
    every = datasets.load_prompts(run, config.candidates.prompts)
    answers = sample.by_prompt(config, every)
    prompts = [prompt for prompt in every if answers.get(prompt.prompt_id)]
    if unanswered := len(every) - len(prompts):
        log.warning("%d of %d prompts have no answers in %s", unanswered, len(every), config.data.candidates)
    answered = [(prompt, answers[prompt.prompt_id]) for prompt in prompts]
    cases = cases_of(config, without_marks(run, answered, config.data.candidates))
    empty = sum(not case.captions for case in cases)
    if config.label.context != "none" and config.data.captions and empty == len(cases):
        raise datasets.no_captions(
            config, f"{empty} prompts", f"label.context={config.label.context} gives them to the judge"
        )
    if config.label.context != "none" and empty:
        log.warning("%d of %d prompts have no captions: the judge reads no context there", empty, len(prompts))
    return cases, unanswered


def without_marks(
    run: Run, answered: Sequence[tuple[Prompt, Sequence[str]]], file: str
) -> list[tuple[Prompt, Sequence[str]]]:
    """Return the prompts none of whose answers holds a media mark; the others are counted and named."""
    bad = [prompt.prompt_id for prompt, answers in answered if any(map(media_marks, answers))]
    if not bad:
        return list(answered)
    text = "%s: %d prompts have answers with a media mark, which no judge or reward model can read: %s"
    log.warning(text, file, len(bad), named(run.placed(bad)))
    if len(bad) == len(answered):
        raise DataError(f"answers without media marks in {file}", f"none for {len(bad)} prompts", "remove the marks")
    return [(prompt, answers) for prompt, answers in answered if prompt.prompt_id not in set(bad)]


def cases_of(config: Config, answered: Sequence[tuple[Prompt, Sequence[str]]]) -> list[Case]:
    """Prompts and answers with what `label.context` gives the judge to read."""
    if config.label.context == "none":
        return [Case(prompt, tuple(answers), ()) for prompt, answers in answered]
    read = contexts(config.label.context, [(prompt.video, prompt.captions) for prompt, _ in answered], config.seed)
    return [Case(prompt, tuple(answers), told) for (prompt, answers), told in zip(answered, read, strict=True)]


def context_text(config: Config, judge: Judge, case: Case) -> str:
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


def row_of(case: Case, scores: Sequence[float | Masked], **evidence: list) -> dict:
    told = [{"masked": score.reason} if isinstance(score, Masked) else {"score": score} for score in scores]
    prompt_id, answers_hash = case.key
    return {"prompt_id": prompt_id, "answers_hash": answers_hash, "scores": told, **evidence}


def again(outcomes: Iterable) -> dict:
    """What a row says where anything it is made of failed for a reason that may pass."""
    return {"again": True} if any(isinstance(one, Masked) and one.again for one in outcomes) else {}


def reasons(row: dict) -> list[str]:
    """Why a row lacks a verdict."""
    of_pairs = [pair["masked"] for pair in row.get("pairs", ()) if "masked" in pair]
    return of_pairs or list(dict.fromkeys(score["masked"] for score in row["scores"] if "masked" in score))
