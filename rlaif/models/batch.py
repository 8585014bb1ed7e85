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
    vision: Vision | None = None  # what tower and projector make of the videos, where that is known already

    @property
    def last(self) -> Tensor:
        """[B] int64: position in L of each sequence's last token."""
        return self.index.gather(1, (self.valid.sum(1).long() - 1).clamp(min=0)[:, None])[:, 0]


def collate(
    items: Sequence[Encoded],
    pad_id: int,
    device: str = "cpu",
    side: Literal["right", "left"] = "right",
    vision: Vision | None = None,
) -> Batch:
    """Pad to the longest sequence. Padding never changes a value: positions and response indices are explicit.

    vision: stands for the videos, whose pixels then stay where they are.
    """
    length = max(len(item.ids) for item in items)
    width = max(len(item.ids) - item.start for item in items)
    shifts = [length - len(item.ids) if side == "left" else 0 for item in items]
    ids = np.full((len(items), length), pad_id, np.int64)
    attention = np.zeros((len(items), length), np.int64)
    positions = np.zeros((*items[0].positions.shape[:-1], len(items), length), np.int64)
    index = np.zeros((len(items), width), np.int64)
    valid, mask = np.zeros((2, len(items), width), np.float32)
    for row, (item, shift) in enumerate(zip(items, shifts, strict=True)):
        span = slice(shift, shift + len(item.ids))
        ids[row, span] = item.ids
        attention[row, shift : shift + len(item.ids) - item.padding] = 1
        positions[..., row, span] = item.positions
        count = len(item.ids) - item.start
        index[row, :count] = np.arange(count) + item.start + shift
        valid[row, :count], mask[row, :count] = 1.0, item.mask
    tensors = {"ids": ids, "attention": attention, "positions": positions, "index": index, "valid": valid, "mask": mask}
    made = {name: torch.from_numpy(array).to(device) for name, array in tensors.items()}
    targets = made["ids"].gather(1, made["index"])
    video = _videos(items, device) if vision is None else {}
    return Batch(**made, targets=targets, video=video, extras=_extras(items, width, device), vision=vision)


def _videos(items: Sequence[Encoded], device: str) -> dict[str, Tensor]:
    shown = [item.video for item in items if item.video is not None]
    if not shown:
        return {}
    return {
        name: torch.from_numpy(np.concatenate([v.tensors[name] for v in shown])).to(device) for name in shown[0].tensors
    }


def _extras(items: Sequence[Encoded], width: int, device: str) -> dict[str, Tensor]:
    out = {}
    for name, first in items[0].extras.items():
        if np.ndim(first) == 0:
            out[name] = torch.tensor([float(item.extras[name]) for item in items], device=device)
            continue
        longest = max(len(item.extras[name]) for item in items)
        rows = np.zeros((len(items), max(width, longest)), np.float32)
        for row, item in enumerate(items):
            rows[row, : len(item.extras[name])] = item.extras[name]
        out[name] = torch.from_numpy(rows).to(device)
    return out
