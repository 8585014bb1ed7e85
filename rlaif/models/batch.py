"""Encoded sequences -> one padded batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rlaif.models.encode import Encoded
from rlaif.models.vision import Vision


@dataclass
class Batch:
    """B sequences padded to L positions; responses are re-aligned to [B, T] whatever the padding side."""

    ids: Tensor  # [B, L] int64
    attention: Tensor  # [B, L] int64, 0 on padding
    positions: Tensor  # [B, L] or [3, B, L] int64
    video: dict[str, Tensor]  # processor outputs, concatenated over the batch
    index: Tensor  # [B, T] int64: position of each response token in L
    targets: Tensor  # [B, T] int64: the response tokens
    valid: Tensor  # [B, T] float32: 1 on response tokens, 0 after the end
    mask: Tensor  # [B, T] float32: 1 on response tokens that are trained on
    extras: dict[str, Tensor]  # [B, T], or [B, S] for arrays longer than the responses, or [B]; float32 each
    vision: Vision | None = None  # the output of tower and projector for the videos, if it is known already

    @property
    def last(self) -> Tensor:
        """Return [B] int64: position in L of each sequence's last token."""
        counts = self.valid.sum(1).long()
        last = (counts - 1).clamp(min=0)
        return self.index.gather(1, last[:, None])[:, 0]


def collate(
    items: Sequence[Encoded],
    pad_id: int,
    device: str = "cpu",
    side: Literal["right", "left"] = "right",
    vision: Vision | None = None,
) -> Batch:
    """Pad to the longest sequence. Padding never changes a value: positions and response indices are explicit.

    vision: replaces the videos, whose pixels are then not copied.
    """
    length = max(map(_length, items))
    width = max(map(_response_length, items))
    ids = np.full((len(items), length), pad_id, np.int64)
    attention = np.zeros((len(items), length), np.int64)
    # one axis, or three of them in front for M-RoPE
    axes = items[0].positions.shape[:-1]
    positions = np.zeros((*axes, len(items), length), np.int64)
    index = np.zeros((len(items), width), np.int64)
    valid, mask = np.zeros((2, len(items), width), np.float32)
    for row, item in enumerate(items):
        shift = length - len(item.ids) if side == "left" else 0
        span = slice(shift, shift + len(item.ids))
        ids[row, span] = item.ids
        # padding tokens of the item itself are read but not attended to
        attention[row, shift : shift + len(item.ids) - item.padding] = 1
        positions[..., row, span] = item.positions
        count = _response_length(item)
        index[row, :count] = np.arange(count) + item.start + shift
        valid[row, :count], mask[row, :count] = 1.0, item.mask
    arrays = {"ids": ids, "attention": attention, "positions": positions, "index": index, "valid": valid, "mask": mask}
    tensors = {}
    for name, array in arrays.items():
        tensors[name] = torch.from_numpy(array).to(device)
    targets = tensors["ids"].gather(1, tensors["index"])
    video = _videos(items, device) if vision is None else {}
    return Batch(**tensors, targets=targets, video=video, extras=_extras(items, width, device), vision=vision)


def _length(item: Encoded) -> int:
    return len(item.ids)


def _response_length(item: Encoded) -> int:
    return len(item.ids) - item.start


def _videos(items: Sequence[Encoded], device: str) -> dict[str, Tensor]:
    """Return the model inputs of all videos, concatenated along axis 0."""
    videos = [item.video for item in items if item.video is not None]
    tensors = {}
    for name in videos[0].tensors if videos else ():
        joined = np.concatenate([video.tensors[name] for video in videos])
        tensors[name] = torch.from_numpy(joined).to(device)
    return tensors


def _extras(items: Sequence[Encoded], width: int, device: str) -> dict[str, Tensor]:
    """Return scalars as [B], arrays padded with zeros to [B, width], or to the longest if that is longer."""
    extras = {}
    for name, first in items[0].extras.items():
        if np.ndim(first) == 0:
            values = [float(item.extras[name]) for item in items]
            extras[name] = torch.tensor(values, device=device)
            continue
        longest = max(len(item.extras[name]) for item in items)
        rows = np.zeros((len(items), max(width, longest)), np.float32)
        for row, item in enumerate(items):
            rows[row, : len(item.extras[name])] = item.extras[name]
        extras[name] = torch.from_numpy(rows).to(device)
    return extras
