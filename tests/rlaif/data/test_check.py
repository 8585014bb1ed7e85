"""The two commands, as a user types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from preference_rows import EXAMPLES, FRAMES, PICTURES, SAFESORA, picture, safesora_video

from rlaif.cli import main
from rlaif.data.files import read_rows, write_rows
from rlaif.data.formats.table import FORMATS
from rlaif.data.read import read_records
from rlaif.worlds.shapes.render import write_mp4

PAIR = {"pair_id": "a", "video": "v.mp4", "question": "what moves?", "chosen": "a big cat", "rejected": "a dog"}
PAIRS = [
    PAIR,
    PAIR | {"pair_id": "b", "chosen": "it", "rejected": "a dog and a cat", "dimensions": {"style": -1}},
    PAIR | {"pair_id": "c", "question": "why?", "chosen": "one two", "rejected": "three four"},
    PAIR | {"pair_id": "d", "chosen": "a dog", "rejected": "a big cat"},
]


@pytest.fixture
def world(tmp_path):
    """Return a folder with a video and the frames that the hand-written rows name."""
    write_mp4(tmp_path / "v.mp4", np.zeros((8, 32, 32, 3), dtype=np.uint8))
    for frame in [*FRAMES, "elsewhere/0.jpg", "coco/1.jpg", "one.jpg"]:
        (tmp_path / frame).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / frame).write_bytes(picture(3, "JPEG"))
    return tmp_path


def run(capsys, *arguments):
    code = main.main(["data", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def rows_of(path):
    return [row.fields for row in read_rows(path)]


# -- check


def test_check_counts_and_describes_a_good_file(world, capsys):
    write_rows(world / "pairs.jsonl", PAIRS)
    code, out, _ = run(capsys, "check", world / "pairs.jsonl")
    assert code == 0
    assert [line.rstrip() for line in out.splitlines()] == [
        f"{world}/pairs.jsonl: 4 of 4 rows kept",
        "format          rlaif",
        "pairs           4",
        "prompts         2",
        "videos named    1",
        "dimension       overall: 4 pairs, chosen preferred in 100.0%",
        "dimension       style: 1 pairs, chosen preferred in 0.0%",
        "chosen          words: mean 2.0, median 2, 1 to 3",
        "rejected        words: mean 3.0, median 2.5, 2 to 5",
        "chosen longer   25.0% of pairs",
        "duplicates      1 pairs, 1 of them the other way round",
    ]


def test_check_counts_pairs_with_earlier_turns(world, capsys):
    turns = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "a cat"}]
    turns += [{"role": "user", "content": PAIR["question"]}]
    write_rows(world / "pairs.jsonl", [*PAIRS, PAIR | {"pair_id": "t", "messages": turns, "chosen": "a cow"}])
    _, out, _ = run(capsys, "check", world / "pairs.jsonl")
    assert "earlier turns   1 pairs" in out
    pairs, _ = read_records(world / "pairs.jsonl", world, "pairs")
    assert [pair.earlier_turns for pair in pairs] == [False] * 4 + [True]


def test_check_names_every_bad_row(world, capsys):
    lines = [json.dumps(row) for row in [*PAIRS, PAIR | {"pair_id": "e", "rejected": "a big cat"}, [1]]]
    (world / "pairs.jsonl").write_text("\n".join(lines) + '\n{"pair_id": "f"')
    code, out, _ = run(capsys, "check", world / "pairs.jsonl")
    assert code == 1
    assert "4 of 7 rows kept, 1 chosen equals rejected, 1 not an object, 1 file cut off" in out
    assert "chosen equals rejected: line 5, id 'e': 'a big cat'" in out and "pairs           4" in out


def test_every_unreadable_video_is_named(world, capsys):
    (world / "cut.mp4").write_bytes((world / "v.mp4").read_bytes()[:100])
    rows = [PAIR | {"pair_id": str(n), "video": "cut.mp4" if n < 12 else "v.mp4"} for n in range(13)]
    rows += [PAIR | {"pair_id": f"g{n}", "video": f"gone{n}.mp4"} for n in range(12)]
    rows += [PAIR | {"pair_id": "out", "video": "../v.mp4"}]
    write_rows(world / "pairs.json", rows)
    code, out, _ = run(capsys, "check", world / "pairs.json")
    assert code == 1 and "1 of 26 rows kept, 25 video unusable" in out and "14 videos that cannot be used" in out
    named = [line for line in out.splitlines() if line.startswith("  video unusable: row ")]
    assert len(named) == 25 and "more" not in out  # every bad row, where a stage's log names the first ten
    assert "cut.mp4" in out and "(12 rows)" in out and all(f"gone{n}.mp4: expected" in out for n in range(12))
    assert "video unusable: row 1, id '0'" in out and "../v.mp4" in out
    code, out, _ = run(capsys, "check", world / "pairs.json", "--no-videos")
    assert code == 0 and "26 of 26 rows kept" in out and "cannot be used" not in out


def test_check_names_missing_listed_frames(world, capsys):
    rows = EXAMPLES["vlm_rlaif_rm"]
    write_rows(world / "rm.json", rows)
    code, out, _ = run(capsys, "check", world / "rm.json")
    assert (code, "format          vlm_rlaif_rm" in out) == (0, True), out
    (world / FRAMES[1]).unlink()
    code, out, _ = run(capsys, "check", world / "rm.json")
    assert code == 1
    assert "2 of 4 rows kept, 2 frame missing" in out and f"{FRAMES[1]}, the first of 1" in out


def test_check_takes_another_root(world, tmp_path_factory, capsys):
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    write_rows(path, PAIRS)
    assert run(capsys, "check", path)[0] == 1
    assert run(capsys, "check", path, "--root", world)[0] == 0


def test_both_candidate_videos_are_opened(world, capsys):
    shutil.copytree(world / "anet_50frames/v_1", world / "folder")
    row = SAFESORA | {"video_0": safesora_video("v0", video_path="v.mp4")}
    for path, code in (("folder", 0), ("gone.mp4", 1)):
        write_rows(world / "config-train.json.gz", [row | {"video_1": safesora_video("v1", video_path=path)}])
        found, out, _ = run(capsys, "check", world / "config-train.json.gz")
        assert found == code and "dimension       harmlessness: 1 pairs, chosen preferred in 0.0%" in out


def test_images_inside_the_file_are_opened_and_not_stored(world, capsys):
    rows = EXAMPLES["rlhf_v"][:2]
    write_rows(world / "a.parquet", rows, FORMATS["rlhf_v"].schema)
    before = sorted(world.rglob("*"))
    assert run(capsys, "check", world / "a.parquet")[0] == 0 and sorted(world.rglob("*")) == before
    broken = rows[0] | {"image": {"bytes": PICTURES[0][:60], "path": None}}
    write_rows(world / "a.parquet", [*rows, broken], FORMATS["rlhf_v"].schema)
    code, out, _ = run(capsys, "check", world / "a.parquet")
    assert code == 1 and "video unusable: row 3, id '4': image of 60 bytes" in out
    assert run(capsys, "check", world / "a.parquet", "--no-videos")[0] == 0


def test_check_reads_prompts_and_conversations(world, capsys):
    for name, kind in (("vlm_rlaif_rl", "prompts"), ("vlm_rlaif_sft", "conversations"), ("safesora_prompts", "texts")):
        write_rows(world / "a.json", EXAMPLES[name])
        code, out, _ = run(capsys, "check", world / "a.json")
        assert code == 0 and f"{kind:15} 2" in out and f"{'format':15} {name}" in out, out


def test_an_unknown_format_lists_the_known_ones(world, capsys):
    write_rows(world / "a.jsonl", [{"prompt": "x", "answers": ["y", "z"]}])
    code, _, err = run(capsys, "check", world / "a.jsonl")
    assert code == 1 and "prompt, answers" in err and all(name in err for name in FORMATS)
    code, _, err = run(capsys, "check", world / "a.jsonl", "--format", "safe_sora")
    assert code == 1 and "'safe_sora'" in err and "safesora_videos" in err
    (world / "a.jsonl").write_text("[]\n\n")
    code, _, err = run(capsys, "check", world / "a.jsonl")
    assert code == 1 and "0 of 1 rows kept, 1 not an object" in err
    (world / "a.jsonl").write_text("")
    assert "no rows at all" in run(capsys, "check", world / "a.jsonl")[2]


def test_a_named_format_is_not_detected(world, capsys):
    write_rows(world / "a.jsonl", PAIRS)
    code, out, _ = run(capsys, "check", world / "a.jsonl", "--format", "prompts")
    assert code == 1 and "0 of 4 rows kept, 4 missing field" in out


def test_check_imports_no_torch_or_ray():
    script = (
        "import sys; import rlaif.data.check, rlaif.data.convert; print({'torch', 'ray', 'vllm'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "set()"


# -- convert


def test_reward_model_pairs_become_our_pairs(world, capsys):
    write_rows(world / "rm.json", EXAMPLES["vlm_rlaif_rm"][:1] + [{"preference": 1}])
    code, out, _ = run(
        capsys, "convert", world / "rm.json", world / "pairs.jsonl", "--from", "vlm_rlaif_rm", "--to", "rlaif"
    )
    assert code == 0 and "1 of 2 rows kept, 1 missing field" in out and "pairs.jsonl: 1 rows written" in out
    (pair,), _ = read_records(world / "pairs.jsonl", world, "pairs")
    assert (pair.video, pair.chosen) == ("anet_50frames/v_1", "A man sits.")
    assert run(capsys, "convert", world / "pairs.jsonl", world / "back.json.gz", "--to", "vlm_rlaif_rm")[0] == 0
    assert rows_of(world / "back.json.gz") == EXAMPLES["vlm_rlaif_rm"][:1]


def test_pairs_of_videos_train_every_dimension_under_its_own_name(world, capsys):
    """SafeSora's `information` is our `informativeness`; the chosen video is that of its own dimension."""
    sub = {"information" if name == "informativeness" else name: c for name, c in SAFESORA["sub_preferences"].items()}
    write_rows(world / "in.json", [SAFESORA | {"sub_preferences": sub}])
    assert run(capsys, "convert", world / "in.json", world / "o.jsonl", "--to", "rlaif", "--video-dir", "clips")[0] == 0
    (world / "clips/p7").mkdir(parents=True)
    for name in ("v0", "v1"):
        (world / f"clips/p7/{name}.mp4").touch()
    (pair,), _ = read_records(world / "o.jsonl", world, "pairs")
    assert pair.videos == ("clips/p7/v1.mp4", "clips/p7/v0.mp4") and pair.prompt_id == "p7"
    assert pair.signs == {
        "helpfulness": 1, "harmlessness": -1, "instruction_following": 1,
        "correctness": -1, "informativeness": 1, "aesthetics": 1,
    }  # fmt: skip


def test_prompts_and_conversations(world, capsys):
    for name, ours, kind in (("vlm_rlaif_rl", "prompts", "prompts"), ("vlm_rlaif_sft", "sft", "conversations")):
        write_rows(world / "in.json", EXAMPLES[name])
        media = ("--media", world / "media")  # one of the rows lists some of its folder's frames
        assert run(capsys, "convert", world / "in.json", world / "ours.jsonl", "--to", ours, *media)[0] == 0
        assert len(read_records(world / "ours.jsonl", world, kind)[0]) == 2
        assert run(capsys, "convert", world / "ours.jsonl", world / "back.json", "--from", ours, "--to", name)[0] == 0
        assert rows_of(world / "back.json") == EXAMPLES[name]


def test_images_go_through_our_files_and_back(world, capsys):
    rows = [row for row in EXAMPLES["rlaif_v"] if "logps" not in row]
    write_rows(world / "in.parquet", rows, FORMATS["rlaif_v"].schema)
    code, _, err = run(capsys, "convert", world / "in.parquet", world / "ours/pairs.jsonl", "--to", "rlaif")
    assert code == 1 and "--media DIR" in err and not (world / "ours/pairs.jsonl").exists()
    media = ("--media", world / "ours/media")
    assert run(capsys, "convert", world / "in.parquet", world / "ours/pairs.jsonl", "--to", "rlaif", *media)[0] == 0
    assert rows_of(world / "ours/pairs.jsonl")[0]["video"].startswith("media/")
    assert run(capsys, "check", world / "ours/pairs.jsonl")[0] == 0
    assert len(read_records(world / "ours/pairs.jsonl", world / "ours", "pairs")[0]) == 2
    assert run(capsys, "convert", world / "ours/pairs.jsonl", world / "back.parquet", "--to", "rlaif_v")[0] == 0
    assert rows_of(world / "back.parquet") == rows
    (world / "else").mkdir()
    shutil.move(world / "ours/pairs.jsonl", world / "else")
    moved = ("convert", world / "else/pairs.jsonl", world / "back2.parquet", "--to", "rlaif_v")
    code, _, err = run(capsys, *moved)
    assert code == 1 and "image missing" in err
    assert run(capsys, *moved, "--root", world / "ours")[0] == 0 and rows_of(world / "back2.parquet") == rows


def test_media_outside_the_root_get_full_paths(world, tmp_path_factory, capsys):
    media = tmp_path_factory.mktemp("media")
    write_rows(world / "in.parquet", EXAMPLES["rlhf_v"][:1], FORMATS["rlhf_v"].schema)
    assert run(capsys, "convert", world / "in.parquet", world / "a.jsonl", "--to", "rlaif", "--media", media)[0] == 0
    assert rows_of(world / "a.jsonl")[0]["video"].startswith(str(media))
    assert run(capsys, "check", world / "a.jsonl")[0] == 0


def test_safesora_from_its_folder(world, capsys):
    write_rows(world / "set/config-train.json.gz", EXAMPLES["safesora"])
    arguments = ("--from", "safesora", "--to", "rlaif", "--video-dir", "videos", "--dimension", "harmlessness")
    assert run(capsys, "convert", world / "set", world / "set/pairs.parquet", *arguments)[0] == 0
    first, second = rows_of(world / "set/pairs.parquet")
    assert first["chosen_video"] == "videos/p7/v0.mp4" and first["dimension"] == second["dimension"] == "harmlessness"
    write_rows(world / "set/config-test.json.gz", EXAMPLES["safesora"])
    code, _, err = run(capsys, "convert", world / "set", world / "set/pairs.parquet", *arguments)
    assert code == 1 and "config-test.json.gz, config-train.json.gz" in err


def test_a_dimension_that_some_pairs_lack(world, capsys):
    write_rows(world / "a.jsonl", PAIRS)
    code, out, _ = run(capsys, "convert", world / "a.jsonl", world / "b.jsonl", "--to", "rlaif", "--dimension", "style")
    assert code == 0 and "1 of 4 rows kept, 3 unknown dimension" in out and "line 1, id 'a'" in out
    assert [row["chosen"] for row in rows_of(world / "b.jsonl")] == ["a dog and a cat"]
    code, _, err = run(capsys, "convert", world / "a.jsonl", world / "c.jsonl", "--to", "rlaif", "--dimension", "x")
    assert code == 1 and "4 unknown dimension" in err and "overall" in err and not (world / "c.jsonl").exists()


@pytest.mark.parametrize(
    ("target", "arguments", "told"),
    [
        ("b.json", ["--to", "prompts"], "rlaif holds pairs, prompts prompts"),
        ("b.json", ["--to", "nothing"], "'nothing'"),
        ("b.csv", ["--to", "rlaif"], ".jsonl, .json, .parquet"),
        ("b.parquet", ["--to", "pds_dpo"], "Name the file .json or .jsonl"),
        ("b.jsonl", ["--to", "rlaif_v"], "choose another format as --to"),
        ("b.json", ["--to", "safesora"], "4 candidates are texts"),
        ("b.json", ["--to", "rlaif", "--from", "safesora"], "4 missing field"),
    ],
)
def test_convert_rejects_what_the_target_cannot_hold(world, capsys, target, arguments, told):
    write_rows(world / "a.jsonl", PAIRS)
    (world / target).write_text("old")
    code, _, err = run(capsys, "convert", world / "a.jsonl", world / target, *arguments)
    assert code == 1 and told in err and (world / target).read_text() == "old"


def test_a_file_may_be_converted_onto_itself(world, capsys):
    write_rows(world / "a.jsonl", PAIRS)
    assert run(capsys, "convert", world / "a.jsonl", world / "a.jsonl", "--to", "rlaif")[0] == 0
    assert rows_of(world / "a.jsonl") == PAIRS


def test_a_file_with_a_bad_row_is_not_converted_onto_itself(world, capsys):
    write_rows(world / "a.jsonl", [*PAIRS, {"pair_id": "bad"}])
    before = (world / "a.jsonl").read_bytes()
    code, _, err = run(capsys, "convert", world / "a.jsonl", world / "a.jsonl", "--to", "rlaif")
    assert code == 1 and "which would be gone" in err and "'bad'" in err
    assert (world / "a.jsonl").read_bytes() == before
