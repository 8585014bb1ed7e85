"""Keyed rows that survive a kill."""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.errors import ConfigError, ContractError, DataError
from rlaif.feedback.store import Store, caption_key
from rlaif.io.storage import locate


def open_store(folder) -> Store:
    return Store(folder / "captions.jsonl", key=lambda row: row["key"])


def row(key, text="x"):
    return {"key": key, "text": text}


def test_rows_are_read_again_after_reopening(tmp_path):
    store = open_store(tmp_path / "new")
    store.append([row("b"), row("a")])
    store.append([row("c")])
    assert "a" in store and "d" not in store and store["b"] == row("b") and len(store) == 3
    again = open_store(tmp_path / "new")
    assert again.rows() == store.rows() == [row("a"), row("b"), row("c")]
    assert again.missing(["d", "a", "e", "d"]) == ["d", "e"] and again.torn == 0


def test_opening_a_store_writes_nothing(tmp_path):
    store = open_store(tmp_path)
    assert len(store) == 0 and not list(tmp_path.iterdir())
    store.append([])
    assert not list(tmp_path.iterdir())


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdef"), unique=True), st.data())
def test_a_kill_at_any_byte_loses_the_cut_row_alone(keys, data):
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        open_store(folder).append([row(key, "ä\n" + key) for key in keys])
        path = folder / "captions.jsonl"
        whole = path.read_bytes() if keys else b""
        at = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:at])
        store = open_store(folder)
        lost = store.missing(keys)
        assert lost == keys[len(keys) - len(lost) :]
        assert len(keys) - len(lost) >= whole[:at].count(b"\n")
        assert path.read_bytes() == whole[:at]
        store.append([row(key, "ä\n" + key) for key in lost])
        assert path.read_bytes() in (whole, whole[:-1])  # cut just before its last newline, nothing was missing
        assert open_store(folder).rows() == store.rows() == [row(key, "ä\n" + key) for key in sorted(keys)]


def test_a_torn_line_is_counted(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_bytes(b'{"key": "a"}\n{"key": "b", "te')
    store = open_store(tmp_path)
    assert store.torn == 1 and store.missing("ab") == ["b"]
    store.append([row("c")])
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]
    assert open_store(tmp_path).torn == 0


def test_a_whole_last_row_without_its_newline_stays(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_bytes(b'{"key": "a"}')
    store = open_store(tmp_path)
    assert store.torn == 0 and "a" in store
    store.append([row("b")])
    store.append([row("c")])
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"key": "a"}\n{"key": "b"\n{"key": "c"}\n', "line 2"),
        ('{"key": "a"}\n[1]\n', "line 2"),
        ('{"key": "a"}\n\n{"other": "b"}\n', "line 3"),
        ('{"key": "a"}\n{"key": "b"}\n{"key": "a"}\n', "line 3 repeats 'a' of line 1"),
        ('{"key": "a"}\n{"key": "a"}', "line 2 repeats"),
    ],
)
def test_a_bad_line_before_the_last_one_is_an_error_with_its_number(tmp_path, text, message):
    (tmp_path / "captions.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        open_store(tmp_path)


@pytest.mark.parametrize("keys", ["a", "bb", "cab"])
def test_a_duplicate_is_refused_and_nothing_is_written(tmp_path, keys):
    store = open_store(tmp_path)
    store.append([row("a")])
    before = store.path.read_bytes()
    with pytest.raises(ContractError, match="again"):
        store.append([row(key, "other") for key in keys])
    assert store.path.read_bytes() == before and len(store) == 1 and store["a"] == row("a")


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    store.append([row("a")])
    before = store.path.read_bytes()

    def full(handle):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            store.append([row("b")])
    assert store.path.read_bytes() == before and "b" not in store
    store.append([row("b")])
    assert open_store(tmp_path).rows() == [row("a"), row("b")]


def test_every_append_is_flushed_to_disk(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda handle: sizes.append(os.fstat(handle).st_size))
    store = open_store(tmp_path)
    store.append([row("a")])
    assert store.path.stat().st_size in sizes


def test_a_second_writer_is_an_error(tmp_path):
    one, two = open_store(tmp_path), open_store(tmp_path)
    two.append([row("a")])
    with pytest.raises(ContractError, match="no other process"):
        one.append([row("b")])
    assert open_store(tmp_path).rows() == [row("a")]


def test_appended_rows_equal_the_rows_read_later(tmp_path):
    store = Store(tmp_path / "rows.jsonl", key=lambda row: tuple(row["key"]))
    store.append([{"key": ("p", 1), "logprob": float("-inf")}])
    assert store[("p", 1)] == {"key": ["p", 1], "logprob": None}
    assert Store(tmp_path / "rows.jsonl", key=lambda row: tuple(row["key"])).rows() == store.rows()


def test_a_store_in_a_bucket_is_refused(tmp_path):
    for place in ("s3://bucket/run", locate("mock://bucket") / "run"):
        with pytest.raises(ConfigError, match="appended"):
            Store(place, key=lambda row: row["key"])
    assert len(Store(f"file://{tmp_path}/rows.jsonl", key=lambda row: row["key"])) == 0


def test_caption_keys_differ_in_every_part():
    parts = ["video", "frames", "captioner", "prompt", "what ?"]
    keys = {caption_key(*parts), caption_key(*parts[:4])}
    for number, part in enumerate(parts):
        keys.add(caption_key(*parts[:number], part + "x", *parts[number + 1 :]))
    keys.add(caption_key("videof", "rames", "captioner", "prompt", "what ?"))
    assert len(keys) == 8 and all(len(key) == 32 for key in keys)


def test_a_caption_key_with_an_empty_part_is_refused():
    with pytest.raises(ContractError, match="captioner"):
        caption_key("video", "frames", "", "prompt")


def test_an_unfinished_row_is_missing_until_a_better_one_takes_its_place(tmp_path):
    def opened() -> Store:
        return Store(
            tmp_path / "labels.jsonl", key=lambda row: row["key"], unfinished=lambda row: row["text"] == "down"
        )

    store = opened()
    store.append([row("a"), row("b", "down")])
    assert store.missing("abc") == ["b", "c"] and "b" in store
    store.append([row("b", "down")])
    store.append([row("b", "fine")])
    for one in (store, opened()):
        assert one.missing("ab") == [] and one["b"] == row("b", "fine") and len(one) == 2
    with pytest.raises(ContractError, match="'b' again"):
        store.append([row("b", "other")])
    with pytest.raises(DataError, match="each key once"):
        Store(tmp_path / "labels.jsonl", key=lambda row: row["key"])
