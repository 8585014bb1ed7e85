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


AnsweredPrompt = tuple[Prompt, Sequence[str]]
"""A prompt and its answers."""


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
        prompt = self.prompt
        content = [prompt.question, *self.captions, "", *self.answers]
        # Appended only if not empty, so that cases without them keep the keys of earlier labels.
        content += filter(None, (self.videos_prompt, prompt.video_sha256))
        digest = hashlib.sha256(json.dumps(content).encode())
        return prompt.prompt_id, digest.hexdigest()[:16]


def read_cases(config: Config, run: Run) -> tuple[list[Case], int]:
    """Return the prompts that have answers, in file order, and how many prompts have none.

    Each comes with the captions that `label.context` asks for.

    Raises:
        DataError: if `label.context` asks for captions and no prompt has any.
    """
    every = datasets.load_prompts(run, config.candidates.prompts)
    answers, file = sample.answers_by_prompt(config, every), config.data.candidates
    answered: list[AnsweredPrompt] = []
    for prompt in every:
        own = answers.get(prompt.prompt_id)
        if own:
            answered.append((prompt, own))
    unanswered = len(every) - len(answered)
    if unanswered:
        log.warning("%d of %d prompts have no answers in %s", unanswered, len(every), file)
    cases = cases_of(config, without_media_marks(run, answered, file))
    if config.label.context != "none":
        _check_captions(config, cases, len(answered))
    return cases, unanswered


def _check_captions(config: Config, cases: Sequence[Case], prompts: int) -> None:
    """Raise DataError if `data.captions` is set and no case has captions; warn if some have none."""
    empty = sum(not case.captions for case in cases)
    if config.data.captions and empty == len(cases):
        reader = f"label.context={config.label.context} gives them to the judge"
        raise datasets.no_captions(config, f"{empty} prompts", reader)
    if empty:
        log.warning("%d of %d prompts have no captions: the judge reads no context there", empty, prompts)


def without_media_marks(run: Run, answered: Sequence[AnsweredPrompt], file: str) -> list[AnsweredPrompt]:
    """Return the prompts whose answers hold no media mark; the others are counted and named.

    Raises:
        DataError: if every prompt has an answer with a media mark.
    """
    good: list[AnsweredPrompt] = []
    bad: list[str] = []
    for prompt, answers in answered:
        # The judge's prompt would have more placeholders than videos.
        if any(map(media_marks, answers)):
            bad.append(prompt.prompt_id)
        else:
            good.append((prompt, answers))
    if not bad:
        return good
    text = "%s: %d prompts have answers with a media mark, which no judge or reward model can read: %s"
    log.warning(text, file, len(bad), named(run.placed(bad)))
    if len(bad) == len(answered):
        raise DataError(
            f"answers without media marks in {file}", f"none for {len(bad)} prompts", "Remove the marks from the file."
        )
    return good


def cases_of(config: Config, answered: Sequence[AnsweredPrompt]) -> list[Case]:
    """Return prompts and answers with the captions that `label.context` gives the judge."""
    if config.label.context == "none":
        return [Case(prompt, tuple(answers), ()) for prompt, answers in answered]
    own = [(prompt.video, prompt.captions) for prompt, _ in answered]
    captions_by_prompt = contexts(config.label.context, own, config.seed)
    cases = []
    for (prompt, answers), captions in zip(answered, captions_by_prompt, strict=True):
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
    fields = []
    for score in scores:
        fields.append({"masked": score.reason} if isinstance(score, Masked) else {"score": score})
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
    of_pairs = _masked(row.get("pairs", ()))
    # The reason of a pair is its own; the scores of a pairwise judge only say that they have no verdict.
    return of_pairs or list(dict.fromkeys(_masked(row["scores"])))


def _masked(records: Iterable[dict]) -> list[str]:
    return [record["masked"] for record in records if "masked" in record]
