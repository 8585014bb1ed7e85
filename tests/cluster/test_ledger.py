"""The ledger: its transitions, the steps that it refuses, and its state in a checkpoint."""

from __future__ import annotations

import json

import pytest

from cluster.ledger import Ledger
from rlaif.errors import ContractError

KEYS = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def rewarded(ledger: Ledger, iteration: int, keys=KEYS) -> Ledger:
    """Move samples of an iteration to `rewarded`."""
    for key in keys:
        ledger.move(iteration, key, "generated")
        ledger.move(iteration, key, "rewarded")
    return ledger


def issued(iteration: int = 0) -> Ledger:
    """Return a ledger with one iteration, all of whose samples are issued."""
    ledger = Ledger()
    ledger.issue(iteration, KEYS)
    return ledger


def test_an_iteration_counts_trained_and_masked_samples():
    ledger = issued()
    rewarded(ledger, 0, KEYS[:2])
    ledger.move(0, KEYS[2], "generated")
    ledger.mask(0, KEYS[2])  # no reward
    ledger.mask(0, KEYS[3])  # no answer
    assert ledger.metrics()["ledger/open"] == 2
    for key in KEYS[:2]:
        ledger.move(0, key, "trained")
    ledger.settle(0)
    assert ledger.metrics() == {
        "ledger/trained": 2,
        "ledger/masked": 2,
        "ledger/reissued": 0,
        "ledger/open": 0,
    }


@pytest.mark.parametrize(
    "step, names",
    [
        (lambda ledger: ledger.move(0, KEYS[0], "trained"), "issued"),
        (lambda ledger: ledger.move(0, KEYS[0], "rewarded"), "issued"),
        (lambda ledger: ledger.move(0, ("c", 0), "generated"), "no such open sample"),
        (lambda ledger: ledger.move(1, KEYS[0], "generated"), "no such open sample"),
        (lambda ledger: ledger.mask(0, ("c", 0)), "no such open sample"),
        (lambda ledger: rewarded(ledger, 0).mask(0, KEYS[0]), "rewarded"),
        (lambda ledger: rewarded(ledger, 0).move(0, KEYS[0], "generated"), "rewarded"),
        (lambda ledger: ledger.settle(0), "4 open"),
        (lambda ledger: ledger.issue(0, KEYS[:3]), "others"),
    ],
)
def test_a_step_that_would_lose_or_repeat_a_sample_is_refused(step, names):
    ledger = issued()
    with pytest.raises(ContractError, match=names):
        step(ledger)


def test_iterations_settle_in_order_and_once():
    ledger = issued(0)
    ledger.issue(1, KEYS)
    with pytest.raises(ContractError, match="8 open|4 open"):
        ledger.settle(1)
    for iteration in (0, 1):
        rewarded(ledger, iteration)
        for key in KEYS:
            ledger.move(iteration, key, "trained")
        with pytest.raises(ContractError, match="no such open sample"):
            ledger.move(iteration, KEYS[0], "trained")
        ledger.settle(iteration)
    with pytest.raises(ContractError, match="once more"):
        ledger.issue(0, KEYS)
    with pytest.raises(ContractError, match="iteration 5"):
        ledger.settle(5)


def test_samples_in_flight_are_restored_as_issued_and_count_as_reissued():
    ledger = rewarded(issued(0), 0)
    ledger.issue(1, KEYS)
    ledger.move(1, KEYS[0], "generated")
    for key in KEYS:
        ledger.move(0, key, "trained")
    ledger.settle(0)
    ledger.reissue(3)
    saved = json.loads(json.dumps(ledger.state_dict()))

    back = Ledger()
    back.load_state_dict(saved)
    assert back.state_dict() == ledger.state_dict() and back.metrics()["ledger/open"] == 4
    with pytest.raises(ContractError, match="issued"):
        back.move(1, KEYS[0], "rewarded")  # the generated text was lost with the run
    back.issue(1, KEYS)
    assert back.metrics()["ledger/reissued"] == 3 + 4
    rewarded(back, 1)
    for key in KEYS:
        back.move(1, key, "trained")
    back.settle(1)
    assert back.metrics() == {"ledger/trained": 8, "ledger/masked": 0, "ledger/reissued": 7, "ledger/open": 0}


def test_samples_can_be_added_only_to_an_open_iteration():
    ledger = issued()
    ledger.mask(0, ("a", 0))
    ledger.extend(0, [("c", 0)])
    rewarded(ledger, 0, [("a", 1), ("b", 0), ("b", 1), ("c", 0)])
    with pytest.raises(ContractError, match="iteration 1 open for more samples"):
        ledger.extend(1, [("c", 0)])


def test_a_restored_ledger_knows_the_next_iteration_and_what_is_in_flight():
    ledger = issued()
    ledger.issue(1, KEYS[:1])
    resumed = Ledger.of(json.loads(json.dumps(ledger.state_dict())))
    assert resumed.next_iteration == 2 and Ledger().next_iteration == 0
    assert sorted(resumed.in_flight()) == [(0, key) for key in KEYS] + [(1, KEYS[0])]
