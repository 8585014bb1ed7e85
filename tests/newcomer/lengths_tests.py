"""`rlaif lengths`: answers are counted by their words."""

from __future__ import annotations

import pytest
from rlaif.stages.feedback.lengths import count_lengths


@pytest.mark.parametrize(
    ("answer", "name"), [("", "short"), ("a cat", "short"), ("a cat sits", "medium"), ("a cat sits here", "long")]
)
def test_count_lengths_counts_words(answer, name):
    counts = count_lengths([answer], short=2, long=4)
    assert counts[name] == 1 and sum(counts.values()) == 1
