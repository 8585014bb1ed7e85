"""One request to a judge: turns of text and frames in the form of OpenAI's chat completions, and the hash that names it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from rlaif.config.server import Server
from rlaif.errors import ContractError

MAGIC = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}
"""First bytes of a file -> media type."""


@dataclass(frozen=True)
class Turn:
    """One message. Its frames come before its text."""

    text: str
    role: str = "user"
    images: tuple[bytes, ...] = field(default=(), repr=False)
    """PNG or JPEG files in time order (`encode_frames`)."""


@dataclass(frozen=True)
class ChatRequest:
    """One question to a judge. Raises ContractError for choices that differ by spaces alone, and for empty ones."""

    key: Hashable
    """The caller's own name for the question; it is neither sent nor hashed."""
    turns: tuple[Turn, ...]
    choices: tuple[str, ...] = ()
    """Answers of one token each, such as ("A", "B"), whose log-probs as the first token are requested."""
    seed: int = 0

    def __post_init__(self) -> None:
        distinct = {choice.strip() for choice in self.choices}
        if "" in self.choices or len(distinct) < len(self.choices):
            raise ContractError(
                "choices that differ by more than spaces", repr(self.choices), f"Change the choices of {self.key!r}."
            )


@dataclass(frozen=True)
class EndpointOptions:
    """The user's options of a server, and those that a stage adds."""

    server: Server
    max_tokens: int = 256
    """Longest reply in free text, in tokens."""
    temperature: float = 0.0
    cache: str | None = None
    """Folder, or a bucket's URI, that stores the answers; None keeps them in memory only."""

    def sampling(self, seed: int, first_token: bool) -> dict[str, Any]:
        """Return every field of a request except its messages.

        `first_token`: request the log-probs of the first token, and no token after it.
        """
        # With `first_token` one token is enough: its log-probs are the answer.
        fields: dict[str, Any] = {
            "model": self.server.model,
            "max_tokens": 1 if first_token else self.max_tokens,
            "temperature": self.temperature,
            "seed": seed,
        }
        if first_token:
            fields |= {"logprobs": True, "top_logprobs": self.server.top_logprobs}
        # `extra` comes last: it may replace `max_tokens`, and a field that is None there is left out.
        fields |= self.server.extra
        return {name: value for name, value in fields.items() if value is not None}


def encode_frames(frames: np.ndarray, jpeg_quality: int | None = None) -> tuple[bytes, ...]:
    """Return one file per frame of [T, H, W, 3] uint8: lossless PNG, or JPEG of a quality from 1 to 95."""
    return tuple(_encode(Image.fromarray(frame), jpeg_quality) for frame in np.asarray(frames))


def _encode(image: Image.Image, jpeg_quality: int | None) -> bytes:
    file = io.BytesIO()
    if jpeg_quality is None:
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=jpeg_quality)
    return file.getvalue()


def data_url(image: bytes) -> str:
    """Return a PNG or JPEG file as a data URL. Raises ContractError for any other file."""
    return f"data:{media_type(image)};base64,{base64.b64encode(image).decode()}"


def media_type(image: bytes) -> str:
    """Return `image/png` or `image/jpeg`. Raises ContractError for any other file."""
    for magic, name in MAGIC.items():
        if image.startswith(magic):
            return name
    content = f"{len(image)} bytes that begin with {image[:8]!r}"
    raise ContractError("a PNG or JPEG file", content, "Encode the frames with `encode_frames`.")


def messages(turns: Sequence[Turn]) -> list[dict]:
    """Return the turns in the form in which they are sent, with images as data URLs."""
    return _messages(turns, data_url)


def digested(turns: Sequence[Turn]) -> list[dict]:
    """Return the same as `messages`, with the SHA-256 of its bytes in place of every image."""
    return _messages(turns, _digest)


def _digest(image: bytes) -> str:
    return f"{media_type(image)} {hashlib.sha256(image).hexdigest()}"


def _messages(turns: Sequence[Turn], url_of: Callable[[bytes], str]) -> list[dict]:
    return [{"role": turn.role, "content": _content(turn, url_of)} for turn in turns]


def _content(turn: Turn, url_of: Callable[[bytes], str]) -> str | list[dict]:
    # A turn without images stays plain text: servers of text models often accept nothing else.
    if not turn.images:
        return turn.text
    parts: list[dict] = [{"type": "image_url", "image_url": {"url": url_of(image)}} for image in turn.images]
    parts.append({"type": "text", "text": turn.text})
    return parts


def canonical(origin: str, sampling: dict, turns: Sequence[Turn]) -> str:
    """Return everything that decides the answer as JSON with sorted keys; the prompt hash covers this text."""
    content = {"origin": origin, **sampling, "messages": digested(turns)}
    # Answers of earlier releases are stored under the hash of this text: any change of its form pays for them again.
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def prompt_hash(canonical_text: str) -> str:
    """Return 64 hex digits: the SHA-256 of the canonical JSON."""
    return hashlib.sha256(canonical_text.encode()).hexdigest()
