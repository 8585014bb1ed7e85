"""Dataset rows -> the units a learner steps on. A bad video or text costs its row, not the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from learners.learner import Unit
from rlaif.data.own_rows import id_of
from rlaif.data.preference import PreferencePair
from rlaif.data.rows import OVERALL, Conversation
from rlaif.data.videos import videos_of
from rlaif.errors import ContractError, DataError
from rlaif.models.encode import Encoder, VideoFeatures
from rlaif.models.reward_prompt import RewardPrompt


def conversations(
    encoder: Encoder, rows: Sequence[Conversation], limit: int, prompt_weight: float = 0.0
) -> tuple[list[Unit], list[str]]:
    """One sequence per conversation (the assistant's turns are trained on), and why any row was left out.

    limit: longest sequence in positions; a longer one is left out, because cutting it could cut the video.
    prompt_weight: see `Encoder.conversation`.
    """

    def unit(row: Conversation, features: VideoFeatures | None) -> Unit:
        return (replace(encoder.conversation(row.messages, features, prompt_weight=prompt_weight), name=row.id),)

    return _units(encoder, rows, unit, limit)


def preferences(
    encoder: Encoder,
    prompt: RewardPrompt,
    rows: Sequence[PreferencePair],
    limit: int,
    dimensions: Sequence[str] = (OVERALL,),
) -> tuple[list[Unit], list[str]]:
    """(chosen, rejected) of each pair under the same context, and why any row was left out.

    Each is named by its pair and has the extras that `losses.preference` reads of the dimensions.
    """

    def unit(row: PreferencePair, features: VideoFeatures | None) -> Unit:
        extras = {f"sign/{name}": np.float32(row.signs.get(name, 0)) for name in dimensions}
        margin = lambda name: row.margin or 0.0 if name == row.dimension else 0.0  # noqa: E731
        extras |= {f"margin/{name}": np.float32(margin(name)) for name in dimensions}
        other = encoder.video(row.rejected_video) if row.rejected_video else features
        return tuple(
            replace(prompt.encode(encoder, row.question, row.captions, text, video), name=row.pair_id, extras=extras)
            for text, video in ((row.chosen, features), (row.rejected, other))
        )

    return _units(encoder, rows, unit, limit)


def _name(row: Conversation | PreferencePair) -> str:
    """How a message names a row: its id, and its video if it has one."""
    name, videos = repr(id_of(row)), videos_of(row)
    return f"{name} ({videos[0]})" if videos else name


def _units(encoder: Encoder, rows: Sequence, unit: Callable[..., Unit], limit: int) -> tuple[list[Unit], list[str]]:
    units, skipped = [], []
    for row in rows:
        try:
            videos = videos_of(row)
            made = unit(row, encoder.video(videos[0]) if videos else None)
        except (DataError, ContractError) as error:
            skipped.append(f"{_name(row)}: {error.found}, not {error.expected}")
            continue
        longest = max(len(item.ids) for item in made)
        if longest > limit:
            skipped.append(f"{_name(row)}: {longest} positions, over the limit of {limit}")
        else:
            units.append(made)
    return units, skipped
