"""The byte-bounded cache."""

from rlaif.byte_cache import ByteCache


def test_the_least_recently_used_value_is_evicted_first():
    cache = ByteCache(budget=10)
    cache.put("a", "A", 4)
    cache.put("b", "B", 4)
    assert cache.get("a") == "A"
    cache.put("c", "C", 4)
    assert list(cache) == ["a", "c"]
    assert (cache.nbytes, cache.evictions, len(cache)) == (8, 1, 2)


def test_peek_and_membership_leave_the_age_unchanged():
    cache = ByteCache(budget=8)
    cache.put("a", "A", 4)
    cache.put("b", "B", 4)
    assert "a" in cache
    assert cache.peek("a") == "A"
    cache.put("c", "C", 4)
    assert list(cache) == ["b", "c"]


def test_a_value_larger_than_the_budget_stays_until_the_next_one():
    cache = ByteCache(budget=3)
    cache.put("a", "A", 1)
    cache.put("large", "L", 100)
    assert (list(cache), cache.nbytes) == (["large"], 100)
    cache.put("b", "B", 1)
    assert (list(cache), cache.nbytes, cache.evictions) == (["b"], 1, 2)


def test_a_second_put_under_one_key_replaces_value_and_size():
    cache = ByteCache(budget=10)
    cache.put("a", "old", 6)
    cache.put("a", "new", 2)
    assert (cache.get("a"), cache.nbytes, cache.evictions) == ("new", 2, 0)


def test_remove_returns_the_value_and_frees_its_bytes():
    cache = ByteCache(budget=10)
    cache.put("a", "A", 6)
    assert cache.remove("a") == "A"
    assert (cache.remove("a"), cache.get("a"), cache.peek("a")) == (None, None, None)
    assert (cache.nbytes, cache.evictions, len(cache)) == (0, 0, 0)
