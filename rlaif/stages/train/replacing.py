"""Prompts that cannot be answered: other ones take their place, and they are left out from then on."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from actors.rollout import Failure
from cluster.checkpoint import CheckpointRef
from cluster.ledger import Ledger
from rlaif.config.schema import Config
from rlaif.errors import DataError, named
from rlaif.records import Prompt
from rlaif.seeds import derive
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.train.deck import Deck
from rlaif.stages.train.pending import Arriving

if TYPE_CHECKING:
    from rlaif.stages.train.workers import Roles

log = logging.getLogger(__name__)


def open_deck(config: Config, run: Run, prompts: Sequence[Prompt], newest: CheckpointRef | None) -> Deck:
    """Return the run's prompts in order, as its checkpoint knows them, after decoding the videos that come first.

    A new run leaves out at once those that do not decode. A resumed run meets them where it would have met them, and so
    does a deterministic one: how many videos are decoded in time depends on the machine.
    """
    deck = Deck(prompts, config.ppo.prompts_per_iteration, config.seed)
    if newest is not None and (state := newest.meta.get("deck")):
        deck.load_state_dict(state)
        _part_from_gone(config, deck, Ledger.of(newest.meta["ledger"]).next_iteration)
    first = newest.iteration if newest else 0
    in_order = itertools.chain.from_iterable(map(deck.of, range(first, first + len(prompts))))
    bad = datasets.decode_first(run, itertools.islice(in_order, len(prompts)))
    if newest is None and not config.deterministic:
        for prompt in prompts:
            if prompt.video in bad:
                deck.leave_out(prompt.prompt_id, 0, bad[prompt.video])
        _check_share(config, deck)
    return deck


def _part_from_gone(config: Config, deck: Deck, since: int) -> None:
    for name in deck.gone:
        deck.leave_out(name, since, "not among the usable prompts any more")
    if deck.gone:
        text = "%d prompts of this run are not usable any more and are left out: %s"
        log.warning(text, len(deck.gone), named(deck.gone))
    if deck.unknown:
        text = "%d prompts are not used, because the run began without them: %s"
        log.warning(text, len(deck.unknown), named(sorted(deck.unknown)))
    _check_share(config, deck)


def mask_gone(ledger: Ledger, deck: Deck) -> None:
    """Mask the samples in flight of prompts that are gone: a resume cannot ask for them again."""
    gone = set(deck.gone)
    for iteration, key in ledger.in_flight():
        if key[0] in gone:
            ledger.mask(iteration, key)


def replace_failed(config: Config, roles: Roles, iteration: int, arriving: Arriving) -> None:
    """Answer other prompts in the place of those that failed, until the iteration is full or no prompts are left.

    Raises DataError when more than `ppo.max_prompt_failures` of the run's prompts are left out.
    """
    ppo, deck = config.ppo, roles.deck
    since = max(roles.arriving) + 1  # iterations up to there have been asked for with these prompts
    asked = [prompt.prompt_id for prompt in deck.of(iteration)]
    failed = list(arriving.failures)
    for turn in itertools.count():
        if not failed:
            return
        leave_out(config, roles, failed, since)
        others = deck.substitutes(iteration, asked, len(failed))
        if not others:
            return
        asked += [prompt.prompt_id for prompt in others]
        keys = [(prompt.prompt_id, index) for prompt in others for index in range(ppo.samples_per_prompt)]
        roles.ledger.extend(iteration, keys)
        batch, seed = ("instead", iteration, turn), derive(config.seed, "rollout", iteration)
        roles.rollouts.submit(batch, others, ppo.samples_per_prompt, seed, ppo.sampling)
        before = len(arriving.failures)
        for answers in roles.rollouts.results(batch, roles.deadline_s):
            arriving.take(roles, answers)
        failed = arriving.failures[before:]


def leave_out(config: Config, roles: Roles, failed: Sequence[Failure], since: int) -> None:
    """Leave prompts out of all iterations from `since` on, and name them."""
    for failure in failed:
        roles.deck.leave_out(failure.prompt_id, since, failure.reason)
    log.warning(
        "%d prompts cannot be answered and are left out from now on (%d of %d so far): %s; first reason: %s",
        len(failed),
        len(roles.deck.left_out),
        len(roles.deck.order),
        named(roles.run.placed([failure.prompt_id for failure in failed])),
        failed[0].reason,
    )
    _check_share(config, roles.deck)


def _check_share(config: Config, deck: Deck) -> None:
    most = config.ppo.max_prompt_failures
    if deck.share_left_out <= most and deck.share_left_out < 1:
        return
    name, why = next(iter(deck.left_out.items()))
    raise DataError(
        f"at most {most:.0%} of the prompts unusable (ppo.max_prompt_failures)",
        f"{len(deck.left_out)} of {len(deck.order)}: {named(list(deck.left_out))}; first reason, of {name!r}: {why.reason}",
        "Mend what the reason names, or raise ppo.max_prompt_failures; --resume continues from the last checkpoint",
    )
