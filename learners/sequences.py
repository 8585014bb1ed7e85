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
from rlaif.models.encode import Encoded, Encoder
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.models.video_features import VideoFeatures


def conversation_units(
    encoder: Encoder, rows: Sequence[Conversation], limit: int, prompt_weight: float = 0.0
) -> tuple[list[Unit], list[str]]:
    """Return one sequence per conversation (the assistant's turns are trained on), and why any row was left out.

    limit: longest sequence in positions; a longer one is left out, because cutting it could cut the video.
    prompt_weight: see `Encoder.conversation`.
    """

    def make_unit(row: Conversation, features: VideoFeatures | None) -> Unit:
        item = encoder.conversation(row.messages, features, prompt_weight=prompt_weight)
        return (replace(item, name=row.id),)

    return _units(encoder, rows, make_unit, limit)


def preference_units(
    encoder: Encoder,
    prompt: RewardPrompt,
    rows: Sequence[PreferencePair],
    limit: int,
    dimensions: Sequence[str] = (OVERALL,),
) -> tuple[list[Unit], list[str]]:
    """Return (chosen, rejected) of each pair under the same context, and why any row was left out.

    Each is named by its pair and has the extras that `losses.preference_objective` reads of the dimensions.
    limit: longest sequence in positions, of either answer.
    """

    def make_unit(row: PreferencePair, features: VideoFeatures | None) -> Unit:
        extras = _pair_extras(row, dimensions)

        def make_member(text: str, video: VideoFeatures | None) -> Encoded:
            item = prompt.encode(encoder, row.question, row.captions, text, video)
            return replace(item, name=row.pair_id, extras=extras)

        rejected_features = features
        if row.rejected_video:
            rejected_features = encoder.video(row.rejected_video)
        return make_member(row.chosen, features), make_member(row.rejected, rejected_features)

    return _units(encoder, rows, make_unit, limit)


def _pair_extras(row: PreferencePair, dimensions: Sequence[str]) -> dict[str, np.float32]:
    """Return the sign of the comparison in each dimension, and the margin of the one that the row's margin is about."""
    extras: dict[str, np.float32] = {}
    for name in dimensions:
        sign = row.signs.get(name, 0)
        margin = row.margin if name == row.dimension else None
        extras[f"sign/{name}"] = np.float32(sign)
        extras[f"margin/{name}"] = np.float32(margin or 0.0)
    return extras


def _row_name(row: Conversation | PreferencePair) -> str:
    """Return how a message names a row: its id, and its video if it has one."""
    name, videos = repr(id_of(row)), videos_of(row)
    return f"{name} ({videos[0]})" if videos else name


def _units(
    encoder: Encoder, rows: Sequence, make_unit: Callable[..., Unit], limit: int
) -> tuple[list[Unit], list[str]]:
    """Return the units of the rows that can be encoded within the limit, and the reason for each of the others."""
    units: list[Unit] = []
    skipped: list[str] = []
    for row in rows:
        try:
            videos = videos_of(row)
            features = encoder.video(videos[0]) if videos else None
            unit = make_unit(row, features)
        except (DataError, ContractError) as error:
            skipped.append(f"{_row_name(row)}: {error.found}, not {error.expected}")
            continue
        # of a pair, both answers must fit: one without the other teaches nothing
        longest = max(len(item.ids) for item in unit)
        if longest > limit:
            skipped.append(f"{_row_name(row)}: {longest} positions, over the limit of {limit}")
        else:
            units.append(unit)
    return units, skipped
