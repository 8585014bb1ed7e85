import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preference_rows import value

from rlaif.data.formats.roundtrip import difference, restore
from rlaif.data.rows import RowError

rows = st.dictionaries(st.sampled_from("abcd"), value, max_size=4)
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure


@UNHURRIED
@given(rows, rows)
def test_restore_reverses_difference(row, bare):
    before = copy.deepcopy(bare)
    patch = json.loads(json.dumps(difference(row, bare)))
    assert json.dumps(restore(bare, patch), sort_keys=True) == json.dumps(row, sort_keys=True)
    assert bare == before


@UNHURRIED
@given(rows)
def test_equal_rows_have_no_difference(row):
    assert difference(row, json.loads(json.dumps(row))) == {}


def test_each_part_is_restored_only_while_the_record_says_the_same():
    source = {"id": 7, "turns": [{"v": "a "}, {"v": "b "}], "x": {"y": 1, "z": None}, "new": [1]}
    bare = {"id": "7", "turns": [{"v": "a"}, {"v": "b"}], "x": {"y": 1}, "more": 2}
    patch = difference(source, bare)
    assert restore(bare, patch) == source
    edited = {"id": "8", "turns": [{"v": "a"}, {"v": "c"}], "x": {"y": 1}, "more": 3, "new": [2]}
    turns = [{"v": "a "}, {"v": "c"}]
    assert restore(edited, patch) == {"id": "8", "turns": turns, "x": {"y": 1, "z": None}, "more": 3, "new": [2]}
    assert restore({"a": [3, 2, [4, 5]]}, difference({"a": [1, 2, [6, 5]]}, {"a": [3, 2, [4, 5]]})) == {
        "a": [1, 2, [6, 5]]
    }
    longer = bare | {"turns": [{"v": "a"}]}
    assert restore(longer, patch)["turns"] == [{"v": "a"}]


@pytest.mark.parametrize("patch", [None, [], "x", {"a": 1}, {"a": {}}, {"b": {"in": 3}}, {"c": {"at": {"0": 1}}}])
def test_restore_ignores_malformed_patches(patch):
    bare = {"a": 1, "b": {"c": 1}, "c": [1, 2]}
    assert restore(bare, patch) == bare


@pytest.mark.parametrize("wrong", [b"bytes", float("nan"), {1, 2}])
def test_difference_rejects_values_that_json_cannot_hold(wrong):
    with pytest.raises(RowError, match="wrong type"):
        difference({"column": wrong}, {})
    with pytest.raises(RowError, match="column"):
        difference({"column": {"column": wrong}}, {"column": {"column": 1}})
