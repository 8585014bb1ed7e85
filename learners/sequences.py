"""Dataset rows -> the units a learner steps on. A bad video or text costs its row, not the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from learners.learner import Unit
from rlaif.data import Conversation, Pair
from rlaif.errors import ContractError, DataError
from rlaif.models.encode import Encoder, VideoFeatures
from rlaif.models.reward_prompt import RewardPrompt


def conversations(encoder: Encoder, rows: Sequence[Conversation], limit: int) -> tuple[list[Unit], list[str]]:
    """One sequence per conversation (the assistant's turns are trained on), and why any row was left out.

    limit: longest sequence in positions; a longer one is left out, because cutting it could cut the video.
    """

    def unit(row: Conversation, features: VideoFeatures | None) -> Unit:
        return (replace(encoder.conversation(row.messages, features), name=row.id),)

    return _units(encoder, rows, unit, limit)


def preferences(
    encoder: Encoder, prompt: RewardPrompt, rows: Sequence[Pair], limit: int
) -> tuple[list[Unit], list[str]]:
    """(preferred, other) of each pair under the same context, and why any row was left out."""

    def unit(row: Pair, features: VideoFeatures | None) -> Unit:
        return tuple(
            replace(prompt.encode(encoder, row.question, row.captions, text, features), name=row.pair_id)
            for text in (row.chosen, row.rejected)
        )

    return _units(encoder, rows, unit, limit)


def _units(encoder: Encoder, rows: Sequence, unit: Callable[..., Unit], limit: int) -> tuple[list[Unit], list[str]]:
    units, skipped = [], []
    for row in rows:
        try:
            made = unit(row, encoder.video(row.video) if row.video else None)
        except (DataError, ContractError) as error:
            skipped.append(f"{row.video}: {error.found}, not {error.expected}")
            continue
        longest = max(len(item.ids) for item in made)
        if longest > limit:
            skipped.append(f"{row.video}: {longest} positions, over the limit of {limit}")
        else:
            units.append(made)
    return units, skipped
