"""A conversation as token segments, cut at the places at which generation would start, so that training sees what sampling sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlaif.errors import ConfigError, ContractError

Message = tuple[str, str]
"""(role, content), role `system`, `user` or `assistant`; the video belongs to the first user message."""


class ChatEncoder(Protocol):
    """What the segments need of an encoder (`rlaif.models.encode.Encoder`)."""

    eos: str
    eos_id: int
    special_ids: set[int]

    def chat(self, messages: Sequence[Message], video: bool = True, generate: bool = False) -> str:
        """Return the messages as the chat template sets them."""

    def opening(self, text: str) -> list[int]:
        """Return the tokens of a text that begins the sequence."""

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a text inside the sequence."""


@dataclass(frozen=True)
class Segment:
    """Tokens of a conversation that are all trained on, or none of them."""

    ids: list[int]
    is_trained: bool


def conversation_segments(
    encoder: ChatEncoder, messages: Sequence[Message], has_video: bool, reply_begins: str = ""
) -> list[Segment]:
    """Return the segments in turn order: a prompt, the answer to it with its end-of-turn token, and so on.

    The end-of-sequence token ends an answer also if the template writes no mark there (LLaVA's do not). After a last
    message by the user there is a segment up to the place of the reply, or with the first words of it, `reply_begins`.

    Raises:
        ContractError: an answer contains the end-of-sequence token.
        ConfigError: the chat template does not append turns, or there is no answer at all.
    """
    segments: list[Segment] = []
    rendered = ""
    tokens: Callable[[str], list[int]] = encoder.opening  # only the first text begins the sequence
    for index, (role, content) in enumerate(messages):
        if role != "assistant":
            continue
        if encoder.eos in content:  # the text after it would be neither trained on nor scored
            raise ContractError("no end of a turn inside an answer", repr(encoder.eos), "Remove it from the text.")
        # rendered twice: templates may write something between a prompt and its answer only when generation starts
        before = encoder.chat(messages[:index], has_video, generate=True)
        after = encoder.chat(messages[: index + 1], has_video)
        body, ending = _split_answer(encoder, rendered, before, after)
        prompt = before[len(rendered) :]
        segments.append(Segment(tokens(prompt), False))
        segments.append(Segment([*encoder.tokens(body), encoder.eos_id], True))
        rendered, tokens = before + body + ending, encoder.tokens
    if not segments:
        raise ConfigError("at least one assistant turn", "none", "Correct the conversation.")
    if messages[-1][0] == "user":  # a turn that asks for a verdict: read at the place of the answer
        text = text_until_reply(encoder, messages, has_video, reply_begins)
        segments.append(Segment(encoder.tokens(text[len(rendered) :]), False))
    return segments


def _split_answer(encoder: ChatEncoder, rendered: str, before: str, after: str) -> tuple[str, str]:
    """Return (answer, the end-of-sequence token after it or nothing) of the last turn in `after`."""
    body, ending, _ = after[len(before) :].partition(encoder.eos)
    if not ending:
        body = body.rstrip()
    # a template with its own mark for the end of a turn would put that mark into the answer
    is_plain = bool(ending) or not encoder.special_ids.intersection(encoder.tokens(body))
    if not before.startswith(rendered) or not after.startswith(before) or not is_plain:
        raise ConfigError(
            "a chat template that appends turns and ends each answer with the end-of-sequence token or nothing",
            f"{after!r}",
            "Correct the chat template or eos_token in the model directory.",
        )
    return body, ending


def text_until_reply(encoder: ChatEncoder, messages: Sequence[Message], has_video: bool, reply_begins: str) -> str:
    """Return the text up to a reply, or up to and with its first words, as the template sets them."""
    if not reply_begins:
        return encoder.chat(messages, has_video, generate=True)
    text = encoder.chat([*messages, ("assistant", reply_begins)], has_video)
    before, separator, _ = text.rpartition(reply_begins)
    if not separator:
        raise ConfigError(
            "a chat template that keeps a reply as it is", repr(reply_begins), "Set reward.verdict to another text."
        )
    return before + separator


def split_after_video(segments: Sequence[Segment], media_ids: Sequence[int]) -> list[Segment]:
    """Return the segments with the first one in two: up to the last mark of the video (or the first token), and the rest."""
    first = segments[0]
    marks = [place for place, token in enumerate(first.ids) if token in media_ids]
    end = max(marks, default=0) + 1
    until_video = Segment(first.ids[:end], first.is_trained)
    after_video = Segment(first.ids[end:], first.is_trained)
    return [until_video, after_video, *segments[1:]]
