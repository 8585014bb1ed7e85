"""CUDA graphs are used on a GPU, unless the configuration disables them."""

from __future__ import annotations

import pytest

from actors.engine import runs_eagerly
from rlaif.config.cluster import Rollout


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("option", ["auto", True, False])
def test_enforce_eager_auto_is_eager_only_on_a_cpu(option, cuda):
    expected = {"auto": not cuda}.get(option, option)
    assert runs_eagerly(Rollout(enforce_eager=option), cuda) is expected
    if option == "auto":
        assert runs_eagerly(Rollout(), cuda) is expected
