"""The conditions under which a cluster's head counts as lost."""

from __future__ import annotations

import socket

import pytest

from cluster.health import Patience, answers


def test_a_head_is_lost_after_the_limit_and_not_after_one_failure():
    times = iter([0.0, 0.0, 2.0, 10.0, 10.0, 12.0, 13.0])
    patience = Patience(3.0, lambda: next(times))
    assert not patience.lost(False)
    assert not patience.lost(False)
    assert not patience.lost(True)
    assert not patience.lost(False)
    assert not patience.lost(False)
    assert patience.lost(False)


@pytest.mark.parametrize("host", ["127.0.0.1", "[127.0.0.1]"])
def test_answers_is_true_while_a_server_listens(host):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{host}:{server.getsockname()[1]}"
        assert answers(address)
    assert not answers(address, 1.0)
