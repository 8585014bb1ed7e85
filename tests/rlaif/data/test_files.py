import gzip
import io
import json
import os
import random
import subprocess
import sys

import pytest

from rlaif.data import json_list
from rlaif.data.files import read_rows, write_rows
from rlaif.data.formats.table import FORMATS
from rlaif.data.rows import Report, Row, RowFailure, valid
from rlaif.errors import DataError

ROWS = [{"a": 1, "b": 'é中d"]', "c": [1.5, None, True]}, {"x": {"y": []}}, {}, {"t": "tail,"}]
SCHEMA = FORMATS["rlaif"].schema


def read(path):
    """(rows, counts by reason, first bad row)."""
    report = Report(str(path))
    rows = [row.fields for row in valid(read_rows(path), report)]
    return rows, report.counts, next((bad for found in report.skipped.values() for bad in found), None)


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".json", ".json.gz"])
def test_written_rows_are_read_back(tmp_path, ending):
    path = tmp_path / f"rows{ending}"
    assert write_rows(path, iter(ROWS)) == 4
    assert read(path) == (ROWS, {"kept": 4}, None)
    assert [row.number for row in read_rows(path)] == [1, 2, 3, 4]
    first = path.read_bytes()
    write_rows(path, ROWS)
    assert not ending.endswith(".gz") or first[4:8] == bytes(4)  # no time in the header
    assert path.read_bytes() == first and [file.name for file in tmp_path.iterdir()] == [path.name]
    assert write_rows(path, []) == 0 and read(path)[0] == []
    if ending.startswith(".json."):
        assert json.loads(gzip.decompress(first)) == ROWS


def test_parquet_is_read_in_batches(tmp_path):
    rows = [{"pair_id": str(n), "frames": ["a", str(n)], "margin": n / 7, "more": n} for n in range(600)]
    assert write_rows(tmp_path / "a.parquet", iter(rows), SCHEMA) == 600
    found, counts, _ = read(tmp_path / "a.parquet")
    assert counts == {"kept": 600} and [row["more"] for row in found] == list(range(600))
    assert all(row.items() <= other.items() for row, other in zip(rows, found, strict=True))
    with pytest.raises(DataError, match="columns \\['late'\\]"):
        write_rows(tmp_path / "b.parquet", [*rows, {"late": 1}], SCHEMA)
    with pytest.raises(DataError, match="Name the file .json or .jsonl"):
        write_rows(tmp_path / "b.parquet", rows)
    with pytest.raises(DataError, match="one type in column 'x'"):
        write_rows(tmp_path / "b.parquet", [{"x": object()}], SCHEMA)
    with pytest.raises(DataError, match="rows that fit the columns"):
        write_rows(tmp_path / "b.parquet", [{"x": 1}, {"x": "a"}], SCHEMA)
    with pytest.raises(DataError, match="rows that fit the columns"):
        write_rows(tmp_path / "b.parquet", [{"margin": "high"}], SCHEMA)
    assert [file.name for file in tmp_path.iterdir()] == ["a.parquet"]


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_a_writer_that_fails_leaves_the_old_file(tmp_path, ending):
    def broken():
        yield {"pair_id": "new"}
        raise RuntimeError("stop")

    path = tmp_path / f"a{ending}"
    write_rows(path, [{"pair_id": "old"}], SCHEMA)
    with pytest.raises(RuntimeError):
        write_rows(path, broken(), SCHEMA)
    assert read(path)[0][0]["pair_id"] == "old" and len(list(tmp_path.iterdir())) == 1


def test_rows_that_json_cannot_hold(tmp_path):
    for wrong in (b"bytes", float("nan")):
        with pytest.raises(DataError, match="rows that JSON can hold"):
            write_rows(tmp_path / "a.jsonl", [{"x": wrong}])


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 2**20])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_list_cut_anywhere_gives_every_whole_row(monkeypatch, chunk, indent):
    monkeypatch.setattr(json_list, "CHUNK", chunk)
    text = json.dumps(ROWS, ensure_ascii=False, indent=indent)
    data = text.encode()
    assert list(json_list.elements(io.BytesIO(data), "f")) == ROWS
    ends, decode = [], json.JSONDecoder().raw_decode
    at = 1
    for _ in ROWS:
        while text[at] in " \n,":
            at += 1
        _, at = decode(text, at)
        ends.append(len(text[:at].encode()))
    for cut in range(1, len(data)):
        found = []
        with pytest.raises(json_list.DamagedError) as error:
            found.extend(json_list.elements(io.BytesIO(data[:cut]), "f"))
            found.append("finished")
        partial = list(_until_damage(data[:cut]))
        assert partial == ROWS[: sum(end <= cut for end in ends)]
        if isinstance(error.value, json_list.CutError):
            assert error.value.offset == cut and f"{cut:,}" in str(error.value)
        else:
            assert data[:cut].rstrip().endswith(b"]")


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_a_number_may_go_on_in_the_next_chunk(monkeypatch, chunk):
    monkeypatch.setattr(json_list, "CHUNK", chunk)
    assert list(json_list.elements(io.BytesIO(b"[123, 4.5e3 ,-67]"), "f")) == [123, 4500.0, -67]


def _until_damage(data):
    try:
        yield from json_list.elements(io.BytesIO(data), "f")
    except json_list.DamagedError:
        return


@pytest.mark.parametrize(
    ("content", "kept", "reason", "told"),
    [
        (b'[{"a": 1}, {"a": }, {"a": 3}]', 1, "file damaged", "at byte 17: Expecting value"),
        (b'[{"a": 1} {"a": 2}]', 1, "file damaged", "at byte 10: ',' or ']' expected"),
        (b'[{"a": 1},]', 1, "file damaged", "at byte 10: Expecting value"),
        (b'[{"a": 1}] extra', 1, "file damaged", "at byte 11: something follows"),
        (b'[{"a": 1}, {"a": "x\n"}, ' + b" " * 99 + b"1", 1, "file damaged", "at byte 19: Invalid control"),
        (b'[{"a": NaN}, {"a": 2}]', 1, "not JSON", "NaN"),
        (b'[{"a": "\xff"}, {"a": 2}]', 1, "not JSON", "UTF-8"),
        (b"[1, [2], null, {}]", 1, "not an object", "int"),
        (b'\xef\xbb\xbf [{"a": 1}, {"b": "\xc3', 1, "file cut off", "at byte 23"),
        (b'[{"a": 1}, ' + b"[" * 100_000, 1, "file damaged", "recursion"),
        (
            b'[{"a": 1}, {"b": "]}", "c": ' + b"[" * 100_000 + b"]" * 100_000 + b'}, {"a": 2}]',
            2,
            "not JSON",
            "recursion",
        ),
    ],
)
def test_damage_inside_a_list(tmp_path, content, kept, reason, told):
    (tmp_path / "a.json").write_bytes(content)
    rows, counts, bad = read(tmp_path / "a.json")
    assert len(rows) == kept and counts[reason] >= 1 and told in bad.detail and str(bad).startswith(f"row {bad.line}: ")


@pytest.mark.parametrize(
    ("content", "kept", "reason", "told"),
    [
        (b'{"a": 1}\n\n{"a": \n{"a": 3}\n', 2, "not JSON", "Expecting value"),
        (b'{"a": 1}\n{"a": 2', 1, "file cut off", "at byte 16"),
        (b'{"a": 1}\n{"a": NaN}\n', 1, "not JSON", "NaN"),
        (b'{"a": 1}\n"\xff"\n', 1, "not JSON", "utf-8"),
        (b'{"a": 1}\n[]\n', 1, "not an object", "list"),
    ],
)
def test_damage_between_lines(tmp_path, content, kept, reason, told):
    (tmp_path / "a.jsonl").write_bytes(content)
    rows, counts, bad = read(tmp_path / "a.jsonl")
    assert len(rows) == kept and counts[reason] == 1 and told in bad.detail and str(bad).startswith("line ")
    assert bad.line == (3 if b"\n\n" in content else 2)


@pytest.mark.parametrize("ending", [".json.gz", ".jsonl.gz"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_compressed_file_that_is_damaged(tmp_path, ending, damage):
    rows = [{"n": n, "text": random.Random(n).randbytes(40).hex()} for n in range(5000)]
    path = tmp_path / f"a{ending}"
    write_rows(path, rows)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[-6] ^= 1  # the checksum
    path.write_bytes(data)
    found, counts, bad = read(path)
    assert 1000 < len(found) < 4000 if damage == "cut" else len(found) == 5000
    assert found == rows[: len(found)] and sum(counts.values()) == len(found) + 1
    assert bad.line == len(found) + 1 and "byte" in bad.detail


def test_a_parquet_file_that_is_cut(tmp_path):
    path = tmp_path / "a.parquet"
    write_rows(path, [{"pair_id": "a"}], SCHEMA)
    path.write_bytes(path.read_bytes()[:-20])
    rows, counts, bad = read(path)
    assert rows == [] and counts == {"kept": 0, "file damaged": 1} and "bytes" in bad.detail


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"", ".jsonl, .json, .parquet"),
        ("none.jsonl", None, "Check the path"),
        ("none.json", None, "Check the path"),
        ("none.parquet", None, "Check the path"),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', "Name a file of one row per line .jsonl"),
        ("a.json", b"  ", "an empty file"),
        ("a.json.gz", b"[]", "Not a gzipped file"),
    ],
)
def test_unreadable_files_are_errors(tmp_path, name, content, told):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told.replace(".", r"\.")):
        list(read_rows(tmp_path / name))


def test_elements_larger_than_a_chunk(monkeypatch, tmp_path):
    monkeypatch.setattr(json_list, "CHUNK", 16)
    rows = [{"t": "x" * 1000}, {"t": "y"}, {"t": "z" * 5000}]
    write_rows(tmp_path / "a.json", rows)
    assert read(tmp_path / "a.json")[0] == rows
    monkeypatch.setattr(json_list, "LARGEST", 2000)
    assert read(tmp_path / "a.json")[1] == {"kept": 2, "file damaged": 1}


def test_rows_and_bad_rows_keep_their_order(tmp_path):
    (tmp_path / "a.json").write_text('[{"a": 1}, 2, {"a": 3}]')
    kinds = [type(item) for item in read_rows(tmp_path / "a.json")]
    assert kinds == [Row, RowFailure, Row]


MEASURE = """
import sys
from pathlib import Path
from rlaif.data.convert import convert
from rlaif.data.check import check
source, target, command = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
rows = convert(source, target, "auto", "rlaif").report.kept if command == "convert" else check(source, videos=False).report.kept
# not ru_maxrss: a child begins with the peak of the process that it was forked from
print(rows, next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM')) // 1024)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Write a list of 100,000 reward-model rows with 50 frame paths each."""
    path = tmp_path_factory.mktemp("large") / "rows.json"
    with path.open("w") as file:
        for row in range(100_000):
            frames = ", ".join(f'"anet_vidchatgpt_50frames/v_{row:06d}/frame_{n:04d}.jpg"' for n in range(50))
            turns = '[{"from": "human", "value": "<image>\\nWhat happens?"}, {"from": "gpt", "value": ""}]'
            outputs = f'"output_1": {{"value": "A {row}."}}, "output_2": {{"value": "B {row}."}}, "preference": 2'
            file.write(f'{"," if row else "["}\n{{"conversations": {turns}, {outputs}, "images": [{frames}]}}')
        file.write("\n]\n")
    assert path.stat().st_size > 250 * 2**20
    return path


@pytest.mark.slow
@pytest.mark.parametrize("command", ["convert", "check"])
def test_a_large_list_streams(large, command, tmp_path):
    arguments = [str(large), str(tmp_path / "out.jsonl"), command]
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows, mebibytes = map(int, done.stdout.split())
    assert rows == 100_000 and mebibytes < 1024


def test_a_large_list_is_read_in_little_memory(large):
    script = (
        "import sys; from rlaif.data.files import read_rows;"
        "rows = sum(1 for _ in read_rows(sys.argv[1]));"
        "print(rows, next(int(x.split()[1]) for x in open('/proc/self/status') if x.startswith('VmHWM')) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(large)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows, mebibytes = map(int, done.stdout.split())
    assert rows == 100_000 and mebibytes < 512


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet", "rows.jsonl.gz"])
def test_a_pipe_is_not_read(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="regular file"):
        list(read_rows(tmp_path / name))
