"""A row that lists frames is about exactly those, in its order, and not about all that lies in their folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from preference_rows import gpt, human, picture

from rlaif.cli import main
from rlaif.data.files import read_rows, write_rows
from rlaif.data.frame_lists import ShownFrames
from rlaif.data.media import Media
from rlaif.data.read import read_records
from rlaif.data.rows import RowError
from rlaif.errors import DataError
from rlaif.video.decode import decode, sample_spec

NAMES = ["1.png", "2.png", "3.png", "10.png", "11.png", "12.png"]
ALL = [f"v/{name}" for name in NAMES]
SOME = [ALL[1], ALL[3], ALL[4]]
TURNED = ALL[::-1]
LISTS = {"all": ALL, "some": SOME, "turned": TURNED}


@pytest.fixture
def root(tmp_path):
    """Return the root of a folder v of six images, in natural order the pictures 0 to 5."""
    folder = tmp_path / "root"
    (folder / "v").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (folder / "v" / name).write_bytes(picture(number))
    return folder


def pixels(root, video: str, count: int) -> np.ndarray:
    path = root / video
    return decode(path, sample_spec(path, count))


def theirs(*names: str) -> list[dict]:
    turns = [human("<image>\nwhat ?"), gpt("x")]
    outputs = {"output_1": {"value": "long answer"}, "output_2": {"value": "short"}, "preference": 1}
    return [{"id": name, "conversations": turns, **outputs, "images": LISTS[name]} for name in names]


def ours(kind: str) -> list[dict]:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    about = {
        "pair_id": {"question": "q", "chosen": "a", "rejected": "b"},
        "prompt_id": {"question": "q"},
        "id": {"messages": talk},
    }
    return [{kind: name, "video": "v", "frames": frames} | about[kind] for name, frames in LISTS.items()]


def refusal(shown: ShownFrames, video: str | None, frames) -> str | None:
    try:
        shown.check(video, frames)
    except RowError as error:
        return f"{error.reason}: {error.detail}"
    return None


def test_listed_frames_match_only_a_video_of_exactly_those(root):
    shown = ShownFrames(root)
    assert refusal(shown, "v", ALL) is None and refusal(shown, "gone", []) is None
    assert refusal(shown, "v/2.png", ["v/2.png"]) is None
    for frames in (SOME, TURNED, [*ALL, ALL[5]], [*ALL[:5], "w/12.png"], [*ALL[:5], "../12.png"]):
        assert f"{len(frames)} frames are listed" in refusal(shown, "v", frames)
        assert "shows 6" in refusal(shown, "v", frames) and "--media DIR" in refusal(shown, "v", frames)
    assert "no video shows them" in refusal(shown, None, ALL)
    for video in ("gone", "v/3.png", "../v", "s3://b/v"):
        assert refusal(shown, video, SOME).startswith("frames differ: 3 frames"), video
    (root / "alias").symlink_to(root / "v")
    assert refusal(shown, "alias", ALL) is None and refusal(shown, "./v", ALL) is None
    assert refusal(shown, str(root / "v"), ALL) is None and refusal(shown, "alias", TURNED)
    assert refusal(ShownFrames(root / "v"), ".", NAMES) is None


def test_a_folder_of_links_shows_its_list_and_no_other(root):
    media, shown = Media(root, root / "media"), ShownFrames(root)
    some, turned = media.gather(SOME), media.gather(TURNED)
    assert refusal(shown, some, SOME) is None and refusal(shown, turned, TURNED) is None
    assert refusal(shown, some, TURNED) and refusal(shown, some, SOME[::-1]) and refusal(shown, turned, ALL)
    (root / some).rename(root / "renamed")
    assert refusal(shown, "renamed", SOME) is None and refusal(shown, "renamed", [*SOME[:2], ALL[0]])
    (root / turned / "000003.png").unlink()
    assert refusal(ShownFrames(root), turned, TURNED)


def test_a_frame_that_the_video_reader_would_pass_over(root):
    (root / "v/7.heic").write_bytes(picture(7))
    with pytest.raises(RowError, match=r"7\.heic.*none of .*\.jpeg, .*\.jpg, .*\.png"):
        Media(root, root / "media").gather([*SOME, "v/7.heic"])


@pytest.mark.parametrize(("key", "kind"), [("pair_id", "pairs"), ("prompt_id", "prompts"), ("id", "conversations")])
def test_readers_leave_out_what_shows_other_frames(root, key, kind):
    write_rows(root / "rows.jsonl", ours(key))
    rows, report = read_records(root / "rows.jsonl", root, kind)
    assert [getattr(row, key) for row in rows] == ["all"] and report.counts == {"kept": 1, "frames differ": 2}
    assert "line 2, id 'some': 3 frames are listed in their order, and v shows 6" in report.summary()
    with pytest.raises(DataError, match="2 frames differ"):
        read_records(root / "rows.jsonl", root, kind, strict=True)


def test_readers_of_other_rows_that_have_a_field_of_that_name(root):
    rows = ours("prompt_id")[:1]
    write_rows(root / "rows.jsonl", [rows[0] | {"frames": 8}, rows[0] | {"prompt_id": "b", "frames": [0, 4]}])
    assert read_records(root / "rows.jsonl", root, "prompts")[1].counts == {"kept": 2}
    (root / "w").mkdir()
    (root / "w/1.png").write_bytes(picture(1))
    sides = {"pair_id": "a", "question": "q", "chosen_video": "v", "rejected_video": "w", "frames": SOME}
    write_rows(root / "rows.jsonl", [sides])
    assert read_records(root / "rows.jsonl", root, "pairs")[1].counts == {"kept": 1}  # they are of neither candidate


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_converting_with_media_makes_a_video_of_the_listed_frames(root, capsys, ending):
    write_rows(root / "theirs.json", theirs("all", "some", "turned"))
    out = root / f"pairs{ending}"
    command = ["data", "convert", str(root / "theirs.json"), str(out), "--to", "rlaif"]
    assert main.main(command) == 0
    assert read_records(out, root, "pairs")[1].counts == {"kept": 1, "frames differ": 2}
    assert main.main(["data", "check", str(out)]) == 1 and "2 frames differ" in capsys.readouterr().out
    assert main.main([*command, "--media", str(root / "media")]) == 0
    assert main.main(["data", "check", str(out)]) == 0 and "other frames" not in capsys.readouterr().out
    rows, report = read_records(out, root, "pairs")
    assert report.counts == {"kept": 3} and rows[0].video == "v"
    for row in rows:
        wanted = [decode(root / frame, sample_spec(root / frame, 1))[0] for frame in LISTS[row.pair_id]]
        assert np.array_equal(pixels(root, row.video, len(wanted)), wanted)
    back = root / "back.json"
    assert main.main(["data", "convert", str(out), str(back), "--to", "vlm_rlaif_rm"]) == 0
    assert [row.fields for row in read_rows(back)] == theirs("all", "some", "turned")


def test_prompts_of_ours_are_converted_in_the_same_way(root):
    """Also rows that are ours already: the repair for what a reader refuses."""
    write_rows(root / "in.jsonl", ours("prompt_id"))
    command = ["data", "convert", str(root / "in.jsonl"), str(root / "out.jsonl"), "--to", "prompts"]
    assert main.main([*command, "--media", str(root / "media")]) == 0
    rows, report = read_records(root / "out.jsonl", root, "prompts")
    assert report.counts == {"kept": 3} and len({row.video for row in rows}) == 3
    lost = ours("prompt_id")[1] | {"prompt_id": "lost", "frames": [*SOME, "v/4.png"]}
    (root / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*ours("prompt_id"), lost)))
    assert main.main([*command, "--media", str(root / "media")]) == 0
    assert read_records(root / "out.jsonl", root, "prompts")[1].counts == {"kept": 3}


@pytest.mark.parametrize(("name", "to", "kind"), [("uid", "prompts", "prompts"), ("id", "sft", "conversations")])
def test_frames_of_several_folders_become_one_video(root, capsys, name, to, kind):
    (root / "w").mkdir()
    (root / "w" / "1.png").write_bytes(picture(9))
    frames = [ALL[2], "w/1.png", ALL[0]]
    write_rows(
        root / "theirs.json", [{name: "a", "conversations": theirs("some")[0]["conversations"], "images": frames}]
    )
    assert main.main(["data", "check", str(root / "theirs.json")]) == 0
    assert "other frames    1 rows" in capsys.readouterr().out
    command = ["data", "convert", str(root / "theirs.json"), str(root / "out.jsonl"), "--to", to]
    assert main.main(command) == 0
    with pytest.raises(DataError, match="frames differ"):
        read_records(root / "out.jsonl", root, kind)
    assert main.main([*command, "--media", str(root / "media")]) == 0
    ((row,), report) = read_records(root / "out.jsonl", root, kind)
    assert report.counts == {"kept": 1}
    wanted = [decode(root / frame, sample_spec(root / frame, 1))[0] for frame in frames]
    assert np.array_equal(pixels(root, row.video, 3), wanted)


def test_check_says_how_many_rows_need_a_video_of_their_own(root, capsys):
    write_rows(root / "theirs.json", theirs("all", "some", "turned"))
    assert main.main(["data", "check", str(root / "theirs.json")]) == 0
    assert "other frames    2 rows" in capsys.readouterr().out
    assert main.main(["data", "check", str(root / "theirs.json"), "--no-videos"]) == 0
    assert "other frames" not in capsys.readouterr().out
    prompts = [
        {"uid": n, "conversations": row["conversations"], "images": row["images"]}
        for n, row in enumerate(theirs("some"))
    ]
    write_rows(root / "rl.json", prompts)
    assert main.main(["data", "check", str(root / "rl.json")]) == 0
    assert "other frames    1 rows" in capsys.readouterr().out
    (root / "v/2.png").unlink()
    assert main.main(["data", "check", str(root / "rl.json")]) == 1
    assert "1 frame missing" in capsys.readouterr().out
