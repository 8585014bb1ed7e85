"""One bad value is one bad row, in `check` and `convert` alike; a cut file is an error; no path gives a traceback."""

from __future__ import annotations

import datetime
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from odd_files import PAIR, TEXT_PAIR, data, llava, make_world, reward_pair, rows_of
from preference_rows import RLAIF_V, SAFESORA, gpt, human

from rlaif.data import meter
from rlaif.data.files import read_rows, write_rows
from rlaif.data.formats.safesora_items import HARM_LABELS
from rlaif.data.formats.table import FORMATS
from rlaif.data.read import read_records
from rlaif.data.rows import Row


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path)


ROW = json.dumps(PAIR)[:-1]
VALUES = {
    "infinite": ', "seconds": 1e999',
    "negative": ', "margin": -1e400',
    "nan": ', "note": [NaN]',
    "5,000 digits": f', "n": {"9" * 5000}',
    "400 digits": f', "margin": {"9" * 400}',
    "surrogate": ', "note": "\\ud83d"',
    "twice": ', "video": "w.mp4"',
    "nul": None,
}


@pytest.mark.parametrize("ending", [".json", ".jsonl"])
@pytest.mark.parametrize("name", VALUES)
def test_one_bad_value_is_one_bad_row(world, capsys, name, ending):
    good = [json.dumps(PAIR | {"pair_id": f"g{n}"}) for n in range(2)]
    bad = json.dumps(PAIR | {"video": "v.mp4\0"}) if name == "nul" else f"{ROW}{VALUES[name]}}}"
    lines = [good[0], bad, good[1]]
    (world / f"in{ending}").write_text("[" + ",".join(lines) + "]" if ending == ".json" else "\n".join(lines))
    unit = "row" if ending == ".json" else "line"
    for command in (["check"], ["convert", world / "out.jsonl", "--to", "rlaif"]):
        code, out, err = data(capsys, command[0], world / f"in{ending}", *command[1:])
        assert code == (command[0] == "check"), out + err
        assert "2 of 3 rows kept" in out and f"{unit} 2, id 'k0'" in out and max(map(len, out.split())) < 250
    assert [row["pair_id"] for row in rows_of(world / "out.jsonl")] == ["g0", "g1"]


def test_long_values_are_never_repeated(world, capsys):
    long = "x" * 5000
    rows = [
        PAIR | {"pair_id": long},
        PAIR | {"video": long},
        PAIR | {"dimension": long, "dimensions": {long: -1}},
        PAIR | {"pair_id": "d", "modality": long},
        PAIR | {"pair_id": "e", "chosen": long, "rejected": long},
        PAIR | {"pair_id": "f", long: {"video": long}, "videos": [long]},
        PAIR | {"pair_id": "g", "frames": [long]},
        PAIR | {"pair_id": "h", "video": "no such " * 500},
    ]
    write_rows(world / "in.jsonl", rows)
    code, out, err = data(capsys, "check", world / "in.jsonl")
    assert code == 1 and "x" * 201 not in out + err and "no such " * 26 not in out + err
    for to in (["--to", "vlm_rlaif_rm"], ["--to", "rlaif", "--dimension", long]):
        _, out, err = data(capsys, "convert", world / "in.jsonl", world / "out.json", *to)
        assert "x" * 201 not in out + err and "no such " * 26 not in out + err
    write_rows(
        world / "in.json", [reward_pair(image="img.jpg") | {"preference": long}, SAFESORA | {"helpfulness": long}]
    )
    for name in ("vlm_rlaif_rm", "safesora"):
        _, out, err = data(capsys, "check", world / "in.json", "--format", name)
        assert "x" * 201 not in out + err
    write_rows(world / "in.jsonl", [{long: 1}])
    assert "x" * 201 not in data(capsys, "check", world / "in.jsonl")[2]


def test_unused_columns_may_hold_values_that_json_cannot(world, capsys):
    odd = {
        "score": [math.nan, 0.5],
        "made": [datetime.datetime(2024, 1, 2), None],
        "raw": [b"\xff", b"y"],
        "box": [{"x": math.inf}, {"x": 1.0}],
        "fine": [1, 2],
    }
    columns = {name: [RLAIF_V[name], RLAIF_V[name]] for name in RLAIF_V} | {"idx": ["0", "1"]} | odd
    columns["late"] = pa.array([10**15, 0], pa.timestamp("s"))
    pq.write_table(pa.table(columns), world / "in.parquet")
    code, out, _ = data(capsys, "check", world / "in.parquet")
    assert code == 0 and "2 of 2 rows kept" in out
    for name, count in (("score", 1), ("made", 1), ("raw", 2), ("box", 1), ("late", 2)):
        assert f"{name} ({count} rows)" in out
    media = ("--media", world / "med")
    code, out, _ = data(capsys, "convert", world / "in.parquet", world / "out.jsonl", "--to", "rlaif", *media)
    assert code == 0 and len(rows_of(world / "out.jsonl")) == 2 and "score (1 rows)" in out
    assert rows_of(world / "out.jsonl")[0]["native"]["rlaif_v"]["fine"] == {"is": 1}


def test_our_own_rows_as_a_table_of_structs(world, capsys):
    """Tables write a null for every absent member, and whole numbers with gaps as floats."""
    turns = [{"role": "user", "content": "What rolls?", "name": None}]
    rows = [
        PAIR | {"dimensions": {"style": -1.0, "truth": None}, "messages": turns, "score": math.nan, "chosen_spans": None},
        PAIR | {"pair_id": "k1", "dimensions": {"style": None, "truth": 1.0}, "score": 1.0}
        | {"chosen_spans": [{"start": 0.0, "end": 2.0, "type": None, "note": None}]},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), world / "in.parquet")
    code, out, _ = data(capsys, "check", world / "in.parquet")
    assert code == 0 and "2 of 2 rows kept" in out and "score (1 rows)" in out, out
    assert [pair.dimensions for pair in read_records(world / "in.parquet", world, "pairs")[0]] == [
        {"style": -1},
        {"truth": 1},
    ]


def test_safesora_uses_the_first_dimension_present(world, capsys):
    def pair(name, **changes):
        return {key: value for key, value in (SAFESORA | {"pair_id": name} | changes).items() if value != "absent"}

    labels = dict.fromkeys(HARM_LABELS, False) | {"racism": None}
    rows = [
        pair("a"),
        pair("b", harmlessness=None),
        pair("c", sub_preferences=None),
        pair("d", harmlessness="absent", sub_preferences="absent"),
        pair("e", sub_preferences=SAFESORA["sub_preferences"] | {"correctness": None}),
        pair("f", video_0=SAFESORA["video_0"] | {"video_labels": labels}),
        pair("g", helpfulness="absent"),
    ]
    write_rows(world / "in.json", rows)
    code, out, _ = data(capsys, "check", world / "in.json", "--no-videos")
    assert code == 0 and "7 of 7 rows kept" in out and "harmlessness: 5 pairs" in out and "correctness: 4 pairs" in out
    arguments = ("--to", "rlaif", "--dimension", "harmlessness")
    assert data(capsys, "convert", world / "in.json", world / "out.jsonl", *arguments)[0] == 0
    assert [row["pair_id"] for row in rows_of(world / "out.jsonl")] == ["a", "c", "e", "f", "g"]
    assert data(capsys, "convert", world / "in.json", world / "all.jsonl", "--to", "rlaif")[0] == 0
    assert data(capsys, "convert", world / "all.jsonl", world / "back.json", "--to", "safesora")[0] == 0
    assert rows_of(world / "back.json") == rows


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b'[\n {"a": 1}\n]\n', "one JSON list"),
        ("a.jsonl", b'[{"a": 1}]', "end in .json"),
        ("a.json", '[{"a": 1}]'.encode("utf-16"), "not UTF-8"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16-le"), "not UTF-8"),
        ("a.json", b"\x1f\x8b\x08\x00", "a gzip file"),
        ("a.jsonl", b"PAR1\x15\x04", "a parquet file"),
        ("a.json", b'{"data": []}', "one JSON list"),
    ],
)
def test_a_file_of_another_kind_than_its_name_is_named(world, capsys, name, content, told):
    (world / name).write_bytes(content)
    code, _, err = data(capsys, "check", world / name)
    assert code == 1 and told in err and "fix" in err


def test_whole_numbers_may_be_floats(world, capsys):
    write_rows(world / "in.json", [reward_pair(image="img.jpg") | {"preference": 2.0, "id": 5.0}])
    assert data(capsys, "convert", world / "in.json", world / "out.jsonl", "--to", "rlaif")[0] == 0
    (row,) = rows_of(world / "out.jsonl")
    assert row["chosen"] == "B." and row["pair_id"] == "5"


@pytest.mark.parametrize("name", ["in.json", "in.jsonl", "in.json.gz"])
def test_a_cut_file_is_an_error_unless_allowed(world, capsys, name):
    write_rows(world / name, [TEXT_PAIR | {"pair_id": str(n), "note": str(n) * 3000} for n in range(40)])
    content = (world / name).read_bytes()
    (world / name).write_bytes(content[: len(content) * 2 // 3])
    arguments = ("convert", world / name, world / "out.jsonl", "--to", "rlaif")
    code, _, err = data(capsys, *arguments)
    assert code == 1 and "--allow-cut" in err
    assert not (world / "out.jsonl").exists()
    assert data(capsys, *arguments, "--allow-cut")[0] == 0 and rows_of(world / "out.jsonl")
    assert data(capsys, "check", world / name)[0] == 1


URIS = ("s3://bucket/x", "gs://bucket/x", "hdfs://host/x", "abfs://c@a/x")


@pytest.mark.parametrize("uri", URIS)
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["convert", "in.jsonl", "{}.jsonl", "--to", "rlaif"], "OUT"),
        (["convert", "{}.jsonl", "out.jsonl", "--to", "rlaif"], "IN"),
        (["convert", "in.jsonl", "out.jsonl", "--to", "rlaif", "--media", "{}"], "--media"),
        (["convert", "in.jsonl", "out.jsonl", "--to", "rlaif", "--root", "{}"], "--root"),
        (["convert", "in.jsonl", "out.jsonl", "--to", "rlaif", "--video-dir", "{}"], "--video-dir"),
        (["check", "{}.jsonl"], "FILE"),
        (["check", "in.jsonl", "--root", "{}"], "--root"),
        (["check", "in.jsonl", "--config", "{}"], "--config"),
    ],
)
def test_a_bucket_is_an_error_that_names_the_argument(world, capsys, monkeypatch, uri, arguments, told):
    write_rows(world / "in.jsonl", [PAIR])
    monkeypatch.chdir(world)
    before = sorted(world.rglob("*"))
    code, _, err = data(capsys, *(argument.format(uri) for argument in arguments))
    assert code == 1 and told in err and uri in err and sorted(world.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["convert", "in.jsonl", "folder.jsonl", "--to", "rlaif"], "OUT"),
        (["convert", "in.jsonl", "v.mp4/out.jsonl", "--to", "rlaif"], "OUT"),
        (["convert", "in.jsonl", "/proc/out.jsonl", "--to", "rlaif"], "OUT"),
        (["convert", "in.jsonl", "a\0b.jsonl", "--to", "rlaif"], "OUT"),
        (["convert", "in.parquet", "out.jsonl", "--to", "rlaif", "--media", "v.mp4"], "--media"),
        (["convert", "in.parquet", "out.jsonl", "--to", "rlaif", "--media", "v.mp4/below"], "--media"),
        (["convert", "in.parquet", "out.jsonl", "--to", "rlaif", "--media", "/proc/media"], "--media"),
        (["convert", "in.jsonl", "out.jsonl", "--to", "rlaif", "--root", "gone"], "--root"),
        (["check", "in.jsonl", "--root", "v.mp4"], "--root"),
        (["check", "gone.jsonl"], "check the path"),
        (["check", "folder.jsonl"], "name the file"),
        (["check", "in\0.jsonl"], "FILE"),
    ],
)
def test_a_path_that_cannot_be_used_is_named(world, capsys, monkeypatch, arguments, told):
    write_rows(world / "in.jsonl", [PAIR])
    write_rows(world / "in.parquet", [RLAIF_V], FORMATS["rlaif_v"].schema)
    (world / "folder.jsonl").mkdir()
    monkeypatch.chdir(world)
    before = sorted(world.rglob("*"))
    code, _, err = data(capsys, *arguments)
    assert code == 1 and told in err and sorted(world.rglob("*")) == before


def test_check_knows_the_frame_rule_of_a_configuration(world, capsys):
    settings = {"name": "r", "storage": str(world / "runs"), "data": {"root": str(world)}, "video": {"num_frames": 9}}
    (world / "run.yaml").write_text(yaml.safe_dump(settings))
    elsewhere = world / "rows"
    elsewhere.mkdir()
    write_rows(elsewhere / "in.jsonl", [PAIR, PAIR | {"pair_id": "k1"}, PAIR | {"pair_id": "k2", "video": "gone.mp4"}])
    code, out, err = data(capsys, "check", elsewhere / "in.jsonl", "--config", world / "run.yaml")
    assert code == 1 and "0 of 3 rows kept, 3 video unusable" in out, out + err
    assert "at least 9 frames, found 8 frames" in out and out.count("v.mp4") == 1 and out.count("gone.mp4") == 1
    settings["video"]["num_frames"] = 8
    (world / "run.yaml").write_text(yaml.safe_dump(settings))
    assert "2 of 3 rows kept" in data(capsys, "check", elsewhere / "in.jsonl", "--config", world / "run.yaml")[1]


def test_many_rows_may_share_one_id():
    turns = {"conversations": [human("<image>What?"), gpt("a")], "image": "a.jpg"}
    looked = 0

    class Counted(dict):
        def __contains__(self, key):
            nonlocal looked
            looked += 1
            return super().__contains__(key)

    rows = [Row(n, {"id": "same"} | turns) for n in range(1, 2001)]
    names = [record.id for record in FORMATS["vlm_rlaif_sft"].read(rows, lines=Counted())]
    assert names[:3] == ["same", "same#2", "same#3"] and len(set(names)) == 2000
    assert looked < 5 * 2000  # as many as rows, not their square


def test_reading_shows_its_progress_once_it_takes_long(world, capsys, monkeypatch):
    shown = []

    class Noted:
        def __init__(self, total, text):
            shown.append((text, total))

        def to(self, done):
            shown.append(done)

        def close(self):
            shown.append("closed")

    monkeypatch.setattr(meter, "Progress", Noted)
    write_rows(world / "in.jsonl", [PAIR | {"pair_id": str(n), "note": "x" * 9000} for n in range(20)])
    list(read_rows(world / "in.jsonl"))
    assert shown == []
    monkeypatch.setattr(meter, "QUIET_S", -1.0)
    assert data(capsys, "convert", world / "in.jsonl", world / "out.jsonl", "--to", "rlaif")[0] == 0
    assert "in.jsonl" in shown[0][0] and shown[-2:] == [100, "closed"]


def test_an_odd_id_is_named(world, capsys):
    rows = [llava(video="v.mp4") | {"id": name} for name in ([1], {"a": 1}, True, 1.5, "", 0)]
    write_rows(world / "in.json", rows)
    code, out, _ = data(capsys, "check", world / "in.json")
    assert code == 1 and "1 of 6 rows kept, 4 wrong type, 1 empty field" in out
