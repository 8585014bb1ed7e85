"""Options of the stages that make feedback: captions, answers, a judge's labels, pairs, and what measures them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator

from rlaif.config.section import Function, Section, off
from rlaif.config.server import Server


class Caption(Section):
    """Dense captions: what happens in each part of a video, in a model's words (`rlaif caption`)."""

    model: str = "{run}/sft/export"
    """The captioner: a Hugging Face directory, URI or hub name, or a LoRA adapter's folder or URI (docs/feedback-files.md)."""
    of: tuple[str, ...] = ("prompts.jsonl", "eval.jsonl")
    """Prompt files whose videos are captioned; of these, those that are there. So are the videos of `data.pairs` and
    `data.pairs_eval`, where these are there."""
    unit: Literal["clip", "frame"] = "clip"
    """What one caption covers; `clips` in rlaif/feedback/narrative.py has the rules."""
    count: int = Field(3, ge=1)
    """Clips, or frames, of a video."""
    frames: int = Field(20, ge=1)
    """Frames of one clip, at most."""
    dependent: bool = False
    """Each caption is asked for with the one before it."""
    conditioned: bool = False
    """Each caption is asked for with the prompt's question."""
    aggregate: Literal["concat", "summarise"] = "concat"
    """A video's narrative: its captions in time order, or the captioner's summary of them."""
    prompt: str = "{previous}{question}Describe in detail what can be seen in this part of the video."
    """May hold {previous} and {question}, filled by the two templates below, or by nothing."""
    previous_slot: str = "Just before this part: {previous}\n"
    """What fills {previous}."""
    question_slot: str = "What will be asked about the video: {question}\n"
    """What fills {question}."""
    summary_prompt: str = (
        "Parts of one video, in order: {captions}\n{question}Tell in detail what happens in the video."
    )
    """Of `summarise`; may hold {question}."""
    max_caption_tokens: int = Field(1024, ge=1)
    """Of a video's captions in `summary_prompt`; those beyond this budget are left out whole, never cut, and counted."""
    max_tokens: int = Field(256, ge=1)
    """Of one caption, and of a summary."""
    cut: Literal["mask", "keep"] = "mask"
    """What becomes of a video with a caption that ends at `max_tokens`: masked with that reason, or kept and marked."""
    temperature: float = Field(0.0, ge=0, le=2)
    """Of sampling; 0 takes the most likely token."""


class Candidates(Section):
    """Answers to be judged (`rlaif sample`)."""

    models: tuple[str, ...] = Field(("{run}/sft/export",), min_length=1)
    """Who answers: one model many times, or several models; adapters too, such as `{run}/export` of PPO."""
    prompts: tuple[str, ...] = ("prompts.jsonl",)
    """Prompt files that are answered."""
    per_model: int = Field(4, ge=1)
    """Answers of each model to each prompt, with different seeds."""
    temperature: float = Field(1.0, ge=0, le=2)
    """Of sampling."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the most likely tokens that make up this probability (1: all)."""
    max_tokens: int = Field(256, ge=1)
    """Longest answer, in tokens."""


class Label(Section):
    """AI feedback on the candidates (`rlaif label`)."""

    method: Literal["pairwise", "claims"] = "pairwise"
    """Two answers side by side, in both orders; or every claim of an answer by itself."""
    judge: str | Server | Function = "{run}/sft/export"
    """A model on vLLM (the policy itself, a peer, a larger one), a server, or a function (a world's own checker)."""
    context: Literal["captions", "none", "shuffled"] = "captions"
    """What the judge reads beside the answers: the video's dense captions, nothing, or another video's (a control)."""
    show_video: bool = True
    """Whether the judge sees the video, beside what it reads."""
    num_frames: int | None = Field(None, ge=1)
    """Frames of a video that the judge sees, chosen as `video.num_frames` is; None: as many as that."""
    captions_template: str = "What happens in the video: {captions}\n"
    """How the captions enter the judge's prompt."""
    captions_separator: str = " "
    """What stands between two captions."""
    max_caption_tokens: int = Field(1024, ge=0)
    """Captions beyond this budget are left out whole, never cut."""
    pairwise_prompt: str = (
        "{context}Question: {question}\nFirst answer: {a}\nSecond answer: {b}\nWhich answer is more accurate and helpful? "
        "Reply with one word, first or second."
    )
    """What is asked with `method: pairwise`; holds {context}, {question}, {a} and {b}."""
    choices: tuple[str, str] = ("first", "second")
    """How the reply to it begins."""
    flips: Literal["tie", "average"] = "tie"
    """What becomes of two answers whose order decided."""
    comparisons: int | None = Field(None, ge=1)
    """Pairs of answers compared per prompt, drawn by seed; None: all."""
    split: str = "sentences"
    """How an answer becomes claims: `sentences`, `model` (the judge lists them), or `package.module:function`."""
    split_prompt: str = (
        "Question: {question}\nAnswer: {answer}\nList every statement of fact in the answer, one per line, each line "
        "beginning with a dash and understandable by itself."
    )
    """What the judge is asked with `split: model`; holds {question} and {answer}."""
    split_tokens: int = Field(512, ge=1)
    """Tokens of such a list at most; an answer whose list is longer is masked as `cut`."""
    claim_prompt: str = "{context}{claim} Is that so? Please answer yes or no."
    """What is asked about each claim with `method: claims`; holds {context}, {question} and {claim}."""
    yes_no: tuple[str, str] = ("yes", "no")
    """How the reply to it begins."""
    reject_at: float = Field(0.5, ge=0.5, lt=1)
    """A claim is rejected where the judge gives `no` at least this share of the probability of yes and no together. Above
    0.5, claims that it is unsure of are not held against an answer."""
    reference: str | None = None
    """`package.module:function` called as f(prompt, a, b) -> 1, -1 or 0: agreement of the labels with it is reported."""

    @field_validator("judge", mode="before")
    @classmethod
    def _one_of_three(cls, value: object) -> object:
        """The options say which of them is meant, so that what is wrong is said of that one alone."""
        for section in (Server, Function):
            if isinstance(value, Mapping) and not section.model_fields.keys().isdisjoint(value):
                return section.model_validate(value)
        if not isinstance(value, str | Server | Function):
            raise ValueError("needs a model (text), a server ({url: ..., model: ...}) or a function ({path: ...})")
        return value


class Pairs(Section):
    """Preference pairs out of labelled answers (`rlaif pairs`)."""

    choose: Literal["best_worst", "all"] = "all"
    """The best against the worst answer of each prompt, or all pairs of answers."""
    margin: float | None = Field(None, ge=0)
    """Least difference of scores: rejected claims, or mean win probability; None: 1 claim, or 0.2 of probability."""
    per_prompt: int | None = Field(2, ge=1)
    """Most pairs of one prompt; None: no limit."""
    min_words: int = Field(1, ge=0)
    """Answers with fewer words are in no pair."""
    lengths: Literal["off", "rejected", "symmetric"] = "rejected"
    """Drop pairs whose one side is much longer, so that mean lengths come close: see rlaif/feedback/lengths.py."""
    eval_fraction: float = Field(0.05, gt=0, lt=1)
    """Share of the videos, at least one, whose pairs go to `data.pairs_eval`, where that is set."""

    @field_validator("lengths", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return off(value)


class Agreement(Section):
    """How often a judge or a reward model prefers what `data.pairs_eval` prefers (`rlaif eval agreement`)."""

    by: Literal["reward", "judge"] = "reward"
    """Who is compared: the reward model `ppo.reward`, or the judge of `label`, asked anew."""
    dimensions: tuple[str, ...] = ()
    """Dimensions that the file must have and that are told apart; none: every one it has."""
    videos_prompt: str = (
        "Two videos were made for this text: {question}\nFirst video: {a}\nSecond video: {b}\nWhich video is better? "
        "Reply with one word, first or second."
    )
    """What a pairwise judge is asked where the candidates are videos; {a} and {b} become `images 1 to 8`, `images 9 to 16`."""
    media: str = "{run}/feedback/media"
    """Where images inside the file, and links to the frames that a row lists, are put to be opened; every node must see it."""

    @field_validator("videos_prompt")
    @classmethod
    def _slots(cls, value: str) -> str:
        if missing := [slot for slot in ("{question}", "{a}", "{b}") if slot not in value]:
            raise ValueError(f"needs {' and '.join(missing)}")
        return value


class Winrate(Section):
    """Whose answers win, out of those that `rlaif sample` made (`rlaif eval winrate`)."""

    models: dict[str, str] = {}
    """Two or more: a short name, and the model as `candidates.models` has it; none: all of these."""
    prompts: tuple[str, ...] = ()
    """Prompt files whose answers count; none: `candidates.prompts`."""
    by: Literal["reward", "judge"] = "reward"
    """Who decides: the reward model `ppo.reward`, or the judge of `label`."""


class Bench(Section):
    """Size of `rlaif bench label`."""

    rounds: int = Field(4, ge=2)
    """Medians are over all but the first, which warms up."""
    prompts: int = Field(8, ge=1)
    """Prompts, each about another video, judged in one round."""
    narrative_words: int = Field(160, ge=0)
    """Words of a video's captions."""
    answer_words: int = Field(32, ge=1)
    """Words of an answer."""


class Score(Section):
    """What reward models say of every answer in a preference file (`rlaif score`)."""

    models: tuple[str, ...] = Field(("{run}/reward/export",), min_length=1)
    """Exports of `rlaif reward`, each called by itself."""
    file: str | None = None
    """The preferences; None: `data.pairs`."""
    out: str = "{run}/feedback/scored.jsonl"
    """The same rows with more `scores`; may be `file` itself."""
    tokens_per_microbatch: int = Field(16384, ge=1)
    """Padded positions per forward."""


class Context(Section):
    """Does context help? (`rlaif eval context`)"""

    seeds: int = Field(3, ge=1)
    """Times that answers are sampled, labelled and learned from anew, from `seed` on."""
    num_frames: int | None = Field(None, ge=1)
    """Frames of a video that its judge sees, with each context; None: as many as `label` says. Captions can only tell a
    judge what it does not see."""
    reward_steps: int = Field(0, ge=0)
    """Steps of each of its reward models, three per seed (0: `reward.steps`)."""
