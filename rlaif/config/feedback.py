"""Options of the stages of AI feedback: captions, answers, a judge's labels, preference pairs, and their evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from rlaif.config.section import Function, Section, off
from rlaif.config.server import Server


class Caption(Section):
    """Dense captions: a model's description of each part of a video (`rlaif caption`)."""

    model: str = "{run}/sft/export"
    """Model that writes the captions: a Hugging Face directory, URI or hub name, or the folder or URI of a LoRA adapter
    (docs/feedback-files.md)."""
    of: tuple[str, ...] = ("prompts.jsonl", "eval.jsonl")
    """Prompt files whose videos are captioned; missing files are skipped. The videos of `data.pairs` and
    `data.pairs_eval` are captioned too if these files exist."""
    unit: Literal["clip", "frame"] = "clip"
    """Part of a video that one caption covers: a clip, or a single frame (rules in `clips` of rlaif/feedback/narrative.py)."""
    # Three clips of at most 20 frames did best in VLM-RLAIF (Ahn et al. 2024).
    count: int = Field(3, ge=1)
    """Number of clips, or of frames, per video."""
    frames: int = Field(20, ge=1)
    """Largest number of frames of one clip."""
    dependent: bool = False
    """Ask for each caption with the one before it."""
    conditioned: bool = False
    """Ask for each caption with the question of the prompt."""
    aggregate: Literal["concat", "summarise"] = "concat"
    """Narrative of a video: its captions in time order (concat), or the model's summary of them (summarise)."""
    prompt: str = "{previous}{question}Describe in detail what can be seen in this part of the video."
    """Prompt for one caption. `{previous}` and `{question}` are filled by the two templates below, or are empty."""
    previous_slot: str = "Just before this part: {previous}\n"
    """Text of `{previous}` in `prompt`, with `dependent`."""
    question_slot: str = "What will be asked about the video: {question}\n"
    """Text of `{question}` in `prompt`, with `conditioned`."""
    summary_prompt: str = (
        "Parts of one video, in order: {captions}\n{question}Tell in detail what happens in the video."
    )
    """Prompt for a summary, with `aggregate: summarise`. It must hold `{captions}` and may hold `{question}`."""
    max_caption_tokens: int = Field(1024, ge=1)
    """Token budget of a video's captions in `summary_prompt`. Captions beyond it are left out whole, never cut, and
    counted."""
    max_tokens: int = Field(256, ge=1)
    """Longest caption, and longest summary, in tokens."""
    cut: Literal["mask", "keep"] = "mask"
    """Treatment of a video with a caption that ends at `max_tokens`: mask it with that reason, or keep and mark it."""
    temperature: float = Field(0.0, ge=0, le=2)
    """Sampling temperature; 0 takes the most likely token."""


class Candidates(Section):
    """Answers for a judge to compare or verify (`rlaif sample`)."""

    models: tuple[str, ...] = Field(("{run}/sft/export",), min_length=1)
    """Models that answer: one model many times, or several models. Adapters are allowed, such as `{run}/export` of PPO."""
    prompts: tuple[str, ...] = ("prompts.jsonl",)
    """Files of the prompts to answer."""
    per_model: int = Field(4, ge=1)
    """Number of answers of each model to each prompt, with different seeds."""
    temperature: float = Field(1.0, ge=0, le=2)
    """Sampling temperature; 0 takes the most likely token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Probability of the most likely tokens that are sampled from; 1: all tokens."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer, in tokens."""


class Label(Section):
    """AI feedback on the candidates (`rlaif label`)."""

    method: Literal["pairwise", "claims"] = "pairwise"
    """pairwise: the judge compares two answers side by side, in both orders. claims: it verifies every claim of an
    answer by itself."""
    judge: str | Server | Function = "{run}/sft/export"
    """Judge: a model on vLLM (the policy itself, a peer, or a larger one), a server (`url` and `model`), or a function
    (`path`), such as a world's own checker."""
    context: Literal["captions", "none", "shuffled"] = "captions"
    """Text that the judge reads beside the answers: the dense captions of the video, nothing, or the captions of another
    video (a control)."""
    show_video: bool = True
    """Show the video to the judge, beside the text."""
    num_frames: int | None = Field(None, ge=1)
    """Number of frames of a video that the judge sees, evenly spaced as with `video.num_frames`; null: as many as that."""
    captions_template: str = "What happens in the video: {captions}\n"
    """Text of the captions in the judge's prompt; `{captions}` is the captions joined by `captions_separator`."""
    captions_separator: str = " "
    """Text between two captions."""
    max_caption_tokens: int = Field(1024, ge=0)
    """Token budget for captions. Those beyond it are left out whole, never cut."""
    pairwise_prompt: str = (
        "{context}Question: {question}\nFirst answer: {a}\nSecond answer: {b}\nWhich answer is more accurate and helpful? "
        "Reply with one word, first or second."
    )
    """Prompt with `method: pairwise`. It must hold `{a}`, `{b}` and, unless `context` is none, `{context}`; it may hold
    `{question}`."""
    choices: tuple[str, str] = ("first", "second")
    """Beginning of the reply to `pairwise_prompt` if the first answer is better, and if the second one is."""
    flips: Literal["tie", "average"] = "tie"
    """Verdict about two answers if it depends on their order: a tie, or the average of both orders."""
    comparisons: int | None = Field(None, ge=1)
    """Number of pairs of answers that are compared per prompt, drawn by seed; null: all pairs."""
    split: str = "sentences"
    """How an answer is divided into claims: by `sentences`, by the judge (`model`), or by a function
    (`package.module:function`)."""
    split_prompt: str = (
        "Question: {question}\nAnswer: {answer}\nList every statement of fact in the answer, one per line, each line "
        "beginning with a dash and understandable by itself."
    )
    """Prompt with `split: model`. It must hold `{answer}` and may hold `{question}`."""
    split_tokens: int = Field(512, ge=1)
    """Longest list of claims, in tokens. An answer with a longer list is masked as `cut`."""
    claim_prompt: str = "{context}{claim} Is that so? Please answer yes or no."
    """Prompt about each claim with `method: claims`. It must hold `{claim}` and, unless `context` is none, `{context}`;
    it may hold `{question}`."""
    yes_no: tuple[str, str] = ("yes", "no")
    """Beginning of the reply to `claim_prompt` if the claim is true, and if it is not."""
    # Below 0.5 a claim would be rejected although the judge finds it more likely true than not.
    reject_at: float = Field(0.5, ge=0.5, lt=1)
    """Probability of no, as a share of that of yes and no together, from which on a claim is rejected. Above 0.5, claims
    that the judge is unsure of do not count against an answer."""
    reference: str | None = None
    """Function that knows the better answer, `package.module:function`, called as f(prompt, a, b) -> 1, -1 or 0. The
    agreement of the labels with it is reported. null: no report."""

    @field_validator("judge", mode="before")
    @classmethod
    def _one_of_three(cls, value: object) -> object:
        """Choose between server and function by the names of the options, and validate as that one alone."""
        # pydantic tries all members of a union and would report the errors of each of them.
        for section in (Server, Function):
            if isinstance(value, Mapping) and not section.model_fields.keys().isdisjoint(value):
                return section.model_validate(value)
        if not isinstance(value, str | Server | Function):
            raise ValueError("needs a model (text), a server ({url: ..., model: ...}) or a function ({path: ...})")
        return value


class Pairs(Section):
    """Preference pairs from labelled answers (`rlaif pairs`)."""

    choose: Literal["best_worst", "all"] = "all"
    """Pair the best with the worst answer to each prompt, or all pairs of its answers."""
    margin: float | None = Field(None, ge=0)
    """Least difference of the scores of a pair, which are rejected claims or the mean win probability; null: 1 claim, or
    0.2 of probability."""
    per_prompt: int | None = Field(2, ge=1)
    """Largest number of pairs per prompt; null: no limit."""
    min_words: int = Field(1, ge=0)
    """Least number of words of an answer in a pair."""
    # A model trained on pairs with a longer side learns length instead of quality (RLAIF-V, Yu et al. 2024).
    lengths: Literal["off", "rejected", "symmetric"] = "rejected"
    """Drop pairs with one much longer side, so that the mean lengths of both sides come close: pairs whose rejected
    answer is longer, or whose longer side is the one that is longer on average (symmetric). Rules in
    rlaif/feedback/lengths.py."""
    eval_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of the videos, at least one, whose pairs go to `data.pairs_eval`, if that is set."""

    @field_validator("lengths", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return off(value)


class Agreement(Section):
    """Agreement of a judge or a reward model with the preferences in `data.pairs_eval` (`rlaif eval agreement`)."""

    by: Literal["reward", "judge"] = "reward"
    """Whose preferences are compared: the reward model `ppo.reward`, or the judge of `label`, which is asked again."""
    dimensions: tuple[str, ...] = ()
    """Dimensions that the file must have and that are reported separately; empty: all dimensions of the file."""
    videos_prompt: str = (
        "Two videos were made for this text: {question}\nFirst video: {a}\nSecond video: {b}\nWhich video is better? "
        "Reply with one word, first or second."
    )
    """Prompt of a pairwise judge if the candidates are videos. `{a}` and `{b}` become `images 1 to 8`, `images 9 to 16`."""
    media: str = "{run}/feedback/media"
    """Folder for images from inside the file and for links to listed frames, which are opened from there. Every node
    must see it."""

    @field_validator("videos_prompt")
    @classmethod
    def _slots(cls, value: str) -> str:
        if missing := [slot for slot in ("{question}", "{a}", "{b}") if slot not in value]:
            raise ValueError(f"needs {' and '.join(missing)}")
        return value


class Winrate(Section):
    """Win rates of models on the answers that `rlaif sample` wrote (`rlaif eval winrate`)."""

    models: dict[str, str] = {}
    """Two or more models, each a short name and the model as in `candidates.models`; empty: all of these."""
    prompts: tuple[str, ...] = ()
    """Prompt files whose answers count; empty: `candidates.prompts`."""
    by: Literal["reward", "judge"] = "reward"
    """What decides: the reward model `ppo.reward`, or the judge of `label`."""


class Bench(Section):
    """Size of `rlaif bench label`."""

    # At least 2: the first round warms up.
    rounds: int = Field(4, ge=2)
    """Number of rounds. Medians are over all but the first, which warms up."""
    prompts: int = Field(8, ge=1)
    """Number of prompts in a round, each about another video."""
    narrative_words: int = Field(160, ge=0)
    """Number of words in the captions of a video."""
    answer_words: int = Field(32, ge=1)
    """Number of words in an answer."""


class Score(Section):
    """Scores of reward models for every answer in a preference file (`rlaif score`)."""

    models: tuple[str, ...] = Field(("{run}/reward/export",), min_length=1)
    """Exports of `rlaif reward`, each applied by itself."""
    file: str | None = None
    """Preference file to score; null: `data.pairs`."""
    out: str = "{run}/feedback/scored.jsonl"
    """File for the same rows with more `scores`; it may be `file` itself."""
    tokens_per_microbatch: int = Field(16384, ge=1)
    """Largest number of positions, padding included, in one forward pass."""


class Context(Section):
    """Measurement of the effect of captions on judge and reward model (`rlaif eval context`)."""

    seeds: int = Field(3, ge=1)
    """Number of times that answers are sampled, labelled and learned from, each with a new seed, counted from `seed`."""
    num_frames: int | None = Field(None, ge=1)
    """Number of frames of a video that the judge sees, with each context; null: as many as `label` says. Captions can
    only help a judge with what it does not see."""
    reward_steps: int = Field(0, ge=0)
    """Number of steps of each of its reward models, three per seed; 0: `reward.steps`."""
