"""Which prompts a PPO run uses: those that a checkpoint knows, without those that turn out to be unusable."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence

from actors.rollout import Failure
from cluster.checkpoint import CheckpointRef
from cluster.ledger import Ledger
from rlaif.config.schema import Config
from rlaif.errors import DataError, named
from rlaif.records import Prompt
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.train.deck import Deck

log = logging.getLogger(__name__)


def open_deck(config: Config, run: Run, prompts: Sequence[Prompt], newest: CheckpointRef | None) -> Deck:
    """Return the run's prompts in order, as its checkpoint knows them, after decoding the videos that come first.

    A new run leaves out prompts whose videos do not decode. A resumed run meets them at the iteration where the first one
    would have, and so does a deterministic run: how many videos are decoded in time depends on the machine.
    """
    deck = Deck(prompts, config.ppo.prompts_per_iteration, config.seed)
    first = 0
    if newest is not None:
        first = newest.iteration
        state = newest.meta.get("deck")
        if state:
            deck.load_state_dict(state)
            _leave_out_missing(config, deck, Ledger.of(newest.meta["ledger"]).next_iteration)
    upcoming = _prompts_in_order(deck, first, len(prompts))
    bad = datasets.decode_first(run, itertools.islice(upcoming, len(prompts)))
    if newest is None and not config.deterministic:
        for prompt in prompts:
            if prompt.video in bad:
                deck.leave_out(prompt.prompt_id, 0, bad[prompt.video])
        check_share_left_out(config, deck)
    return deck


def _prompts_in_order(deck: Deck, first: int, iterations: int) -> Iterator[Prompt]:
    for iteration in range(first, first + iterations):
        yield from deck.of(iteration)


def _leave_out_missing(config: Config, deck: Deck, since: int) -> None:
    """Leave out the checkpoint's prompts that are not usable now, and name them and those that are new."""
    for name in deck.gone:
        deck.leave_out(name, since, "not among the usable prompts any more")
    if deck.gone:
        text = "%d prompts of this run are not usable any more and are left out: %s"
        log.warning(text, len(deck.gone), named(deck.gone))
    if deck.unknown:
        text = "%d prompts are not used, because the run began without them: %s"
        log.warning(text, len(deck.unknown), named(sorted(deck.unknown)))
    check_share_left_out(config, deck)


def resumed_ledger(newest: CheckpointRef | None, deck: Deck) -> Ledger:
    """Return the ledger to continue with: a new one, or the checkpoint's.

    Samples in flight of prompts that are gone are masked: a resume cannot request them again.
    """
    if newest is None:
        return Ledger()
    ledger = Ledger.of(newest.meta["ledger"])
    mask_gone(ledger, deck)
    return ledger


def mask_gone(ledger: Ledger, deck: Deck) -> None:
    """Mask the samples in flight of prompts that are gone."""
    gone = set(deck.gone)
    for iteration, key in ledger.in_flight():
        if key[0] in gone:
            ledger.mask(iteration, key)


def leave_out(config: Config, run: Run, deck: Deck, failures: Sequence[Failure], since: int) -> None:
    """Leave prompts out of all iterations from `since` on, and name them.

    Raises DataError if more than `ppo.max_prompt_failures` of the run's prompts are left out.
    """
    for failure in failures:
        deck.leave_out(failure.prompt_id, since, failure.reason)
    places = run.placed([failure.prompt_id for failure in failures])
    log.warning(
        "%d prompts cannot be answered and are left out from now on (%d of %d so far): %s; first reason: %s",
        len(failures),
        len(deck.left_out),
        len(deck.order),
        named(places),
        failures[0].reason,
    )
    check_share_left_out(config, deck)


def check_share_left_out(config: Config, deck: Deck) -> None:
    """Raise DataError if more than `ppo.max_prompt_failures` of the prompts, or all of them, are left out."""
    limit = config.ppo.max_prompt_failures
    if deck.share_left_out <= limit and deck.share_left_out < 1:
        return
    name, why = next(iter(deck.left_out.items()))
    names = named(list(deck.left_out))
    raise DataError(
        f"at most {limit:.0%} of the prompts unusable (ppo.max_prompt_failures)",
        f"{len(deck.left_out)} of {len(deck.order)}: {names}; first reason, of {name!r}: {why.reason}",
        "Mend what the reason names, or raise ppo.max_prompt_failures; --resume continues from the last checkpoint.",
    )
