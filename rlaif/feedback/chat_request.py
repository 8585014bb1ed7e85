"""What a judge is asked: turns of text and frames, as OpenAI's chat completions take them, and the hash that names it."""

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


@dataclass(frozen=True)
class Turn:
    """One message. Its frames come before its text."""

    text: str
    role: str = "user"
    images: tuple[bytes, ...] = field(default=(), repr=False)
    """PNG or JPEG files in time order (`encode_frames`)."""


@dataclass(frozen=True)
class Ask:
    """One question to a judge."""

    key: Hashable
    """What the caller knows it by; it is neither sent nor hashed."""
    turns: tuple[Turn, ...]
    choices: tuple[str, ...] = ()
    """Answers of one token each whose log-probs as the first token are wanted, such as ("A", "B")."""
    seed: int = 0

    def __post_init__(self) -> None:
        if "" in self.choices or len({choice.strip() for choice in self.choices}) < len(self.choices):
            raise ContractError(
                "choices that differ by more than spaces", repr(self.choices), f"Change the choices of {self.key!r}"
            )


@dataclass(frozen=True)
class EndpointOptions:
    """The user's options of a server, and what a stage adds to them."""

    server: Server
    max_tokens: int = 256
    """Of a reply in free text."""
    temperature: float = 0.0
    cache: str | None = None
    """Folder, or a bucket's URI, in which answers are kept; None: only in memory."""

    def sampling(self, seed: int, first_token: bool) -> dict[str, Any]:
        """Every field of a request but its messages. `first_token`: its log-probs are wanted, and nothing behind it."""
        fields = {
            "model": self.server.model,
            "max_tokens": 1 if first_token else self.max_tokens,
            "temperature": self.temperature,
            "seed": seed,
            **({"logprobs": True, "top_logprobs": self.server.top_logprobs} if first_token else {}),
            **self.server.extra,
        }
        return {name: value for name, value in fields.items() if value is not None}


def encode_frames(frames: np.ndarray, jpeg_quality: int | None = None) -> tuple[bytes, ...]:
    """[T, H, W, 3] uint8 -> one file per frame: PNG, which loses nothing, or JPEG of a quality from 1 to 95."""
    return tuple(_encode(Image.fromarray(frame), jpeg_quality) for frame in np.asarray(frames))


def _encode(image: Image.Image, jpeg_quality: int | None) -> bytes:
    file = io.BytesIO()
    if jpeg_quality is None:
        image.save(file, "PNG")
    else:
        image.save(file, "JPEG", quality=jpeg_quality)
    return file.getvalue()


def data_url(image: bytes) -> str:
    """A PNG or JPEG file as a data URL; ContractError for anything else."""
    return f"data:{media_type(image)};base64,{base64.b64encode(image).decode()}"


def media_type(image: bytes) -> str:
    for magic, name in MAGIC.items():
        if image.startswith(magic):
            return name
    raise ContractError("a PNG or JPEG file", f"{len(image)} bytes that begin with {image[:8]!r}", "Use encode_frames")


def messages(turns: Sequence[Turn]) -> list[dict]:
    """The turns as they are sent, images inside as data URLs."""
    return _messages(turns, data_url)


def digested(turns: Sequence[Turn]) -> list[dict]:
    """The same with the SHA-256 of its bytes in place of every image."""
    return _messages(turns, lambda image: f"{media_type(image)} {hashlib.sha256(image).hexdigest()}")


def _messages(turns: Sequence[Turn], image: Callable[[bytes], str]) -> list[dict]:
    return [{"role": turn.role, "content": _content(turn, image)} for turn in turns]


def _content(turn: Turn, image: Callable[[bytes], str]) -> str | list[dict]:
    parts: list[dict] = [{"type": "image_url", "image_url": {"url": image(one)}} for one in turn.images]
    # servers of text models often take plain text only
    return [*parts, {"type": "text", "text": turn.text}] if parts else turn.text


def canonical(origin: str, sampling: dict, turns: Sequence[Turn]) -> str:
    """Everything that decides the answer, as JSON with sorted keys: what the prompt hash covers."""
    asked = {"origin": origin, **sampling, "messages": digested(turns)}
    return json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def prompt_hash(asked: str) -> str:
    """64 hex digits over the canonical JSON."""
    return hashlib.sha256(asked.encode()).hexdigest()
