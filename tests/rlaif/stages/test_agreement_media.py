"""`rlaif eval agreement` on published files as they are: pairs of videos, images inside the file, frames in several folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from judge_server import JudgeServer, answer
from preference_rows import PICTURES, RLAIF_V, RLHF_V, SAFESORA, picture, safesora_video
from safetensors.torch import save_file
from without_actors import NoActors

from actors.frames import LocalFrames
from rlaif.config.schema import Reward
from rlaif.data.files import write_rows
from rlaif.data.formats.table import FORMATS
from rlaif.errors import ConfigError, DataError
from rlaif.io.rundir import RunDir
from rlaif.models.reward import CARD, ModelScorer, card_text
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.records import Prompt, RewardInput
from rlaif.stages.compare import agreement
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run

DIMENSIONS = ("helpfulness", "harmlessness")
BY_CODE = ("agreement.by=judge", "label.judge={path: 'opinions:later'}", "label.context=none")


@pytest.fixture
def offline(tmp_path, make_config, monkeypatch):
    """offline(file, *overrides) -> (config, run) that starts no actor; `file` is what it compares with."""

    def make(file: str, *overrides: str):
        config = make_config(tmp_path, f"data.root={tmp_path}/root", f"data.pairs_eval={file}", *overrides)
        return config, Run(config, RunDir(config.storage, config.name), None, NoActors(config))

    return make


@pytest.fixture
def root(world, tmp_path) -> Path:
    """Videos videos/p7/clip_0.mp4 to clip_3.mp4."""
    folder = tmp_path / "root"
    videos = sorted((world / "data" / "videos").rglob("*.mp4"))
    (folder / "videos" / "p7").mkdir(parents=True)
    for number in range(4):
        shutil.copy(videos[number], folder / "videos" / "p7" / f"clip_{number}.mp4")
    return folder


def compared(pair_id: str, first: int, second: int, helpful: int, harmless: int, **more) -> dict:
    """Return a SafeSora row about two of the clips; `helpful` and `harmless` are the slots that were preferred."""
    videos = [safesora_video(f"clip_{number}", video_path=f"videos/p7/clip_{number}.mp4") for number in (first, second)]
    chosen = {"helpfulness": f"video_{helpful}", "harmlessness": f"video_{harmless}"}
    return SAFESORA | {"pair_id": pair_id, "video_0": videos[0], "video_1": videos[1], **chosen} | more


# later clips are more helpful in three of four rows, earlier ones more harmless in two of four
VIDEOS = [
    compared("a", 0, 1, helpful=1, harmless=0),
    compared("b", 3, 1, helpful=0, harmless=0, prompt_type="safety_critical"),
    compared("c", 2, 3, helpful=0, harmless=1),
    compared("d", 0, 2, helpful=1, harmless=0),
]


def test_agreement_on_pairs_of_videos_has_every_dimension(offline, root):
    """SafeSora's file as it is; a reward with a part for each of two dimensions."""
    write_rows(root / "config-test.json.gz", VIDEOS)
    config, run = offline("config-test.json.gz", "ppo.reward={path: 'opinions:by_video'}")
    result = agreement.agreement(config, run)
    assert result["rows"] == {"kept": 4} and result["masked"] == {}
    shares = {name: rate["agreement"] for name, rate in result["dimension"].items()}
    assert shares["helpfulness"] == 3 / 4 and shares["harmlessness"] == 2 / 4
    assert set(shares) == {*DIMENSIONS, "instruction_following", "correctness", "informativeness", "aesthetics"}
    assert result["overall"]["pairs"] == 4 and result["overall"]["agreement"] == 3 / 4
    assert result["prompt_type"]["safety_critical"]["pairs"] == 1
    config, run = offline("config-test.json.gz", "ppo.reward={path: 'opinions:by_video'}", "agreement.dimensions=[wit]")
    with pytest.raises(DataError, match="wit"):
        agreement.agreement(config, run)


def test_a_judge_that_is_a_function_gets_the_paths_of_both_videos(offline, root):
    write_rows(root / "pairs.json", VIDEOS)
    config, run = offline("pairs.json", *BY_CODE)
    result = agreement.agreement(config, run)
    assert result["overall"]["agreement"] == 3 / 4 and result["dimension"]["harmlessness"]["agreement"] == 2 / 4


@pytest.fixture
def reward_model(world, tmp_path) -> str:
    """Return the untrained model with a head of two outputs, as `rlaif reward` exports one."""
    folder = tmp_path / "reward"
    shutil.copytree(world / "base", folder)
    hidden = json.loads((folder / "config.json").read_text())["text_config"]["hidden_size"]
    torch.manual_seed(0)
    save_file({"weight": torch.randn(2, hidden), "bias": torch.zeros(2)}, folder / "head.safetensors")
    prompt = RewardPrompt.of(Reward(context="none"))
    (folder / CARD).write_text(card_text(str(world / "base"), None, prompt, DIMENSIONS))
    return str(folder)


def test_a_reward_model_reads_each_candidate_as_in_training(offline, root, reward_model):
    """Its scores of both videos, with an empty answer, decide every pair."""
    write_rows(root / "pairs.json", VIDEOS)
    config, run = offline("pairs.json", f"ppo.reward={reward_model}")
    records, _ = datasets.load_with_report(run, config.data.pairs_eval, "preferences")
    verdicts = agreement.reward_margins(config, run, records)
    scorer = ModelScorer(reward_model, LocalFrames(root, 8), config.model, 10**6, 2**20)
    for record, margin in zip(records, verdicts.margins, strict=True):
        sides = (record.chosen_video, record.rejected_video)
        asked = [RewardInput((video, 0), Prompt(video, video, record.question), "") for video in sides]
        scores = scorer(asked)
        chosen, rejected = (scores[video, 0].parts for video in sides)
        for name in DIMENSIONS:
            assert margin(name) == pytest.approx(chosen[name] - rejected[name], abs=1e-4) and margin(name) != 0
    assert verdicts.masked == {}


def server_judge(url: str, *more: str) -> tuple[str, ...]:
    judge = f"label.judge={{url: '{url}', model: judge-1, retries: 0, backoff_s: 0}}"
    return ("agreement.by=judge", judge, "label.context=none", *more)


def test_a_server_is_shown_both_videos_in_both_orders(offline, root):
    write_rows(root / "pairs.json", VIDEOS)
    with JudgeServer(answer()) as server:  # always "A"
        config, run = offline("pairs.json", *server_judge(server.url, "label.choices=[A, B]"))
        result = agreement.agreement(config, run)
        again = agreement.agreement(config, run)
    assert result["overall"]["ties"] == 4 and result["server"]["this_command"]["requests"] == 8
    assert again["server"]["this_command"]["requests"] == 0 and again["server"]["labels"]["replies"] == 8
    assert len(server.bodies) == 8
    shown = {}
    for body in server.bodies:
        *images, text = body["messages"][0]["content"]
        assert len(images) == 16 and all(part["type"] == "image_url" for part in images)
        assert "a dog chases a kite" in text["text"]
        assert "images 1 to 8" in text["text"].partition("Second")[0] and "images 9 to 16" in text["text"]
        halves = [tuple(part["image_url"]["url"] for part in half) for half in (images[:8], images[8:])]
        shown[halves[0], halves[1]] = 1
    assert len(shown) == 8 and all((second, first) in shown for first, second in shown)


def test_claims_of_the_text_are_asked_about_each_video_once(offline, root):
    """Four clips in four pairs: a clip is asked about once, whatever pairs it is in."""
    write_rows(root / "pairs.json", VIDEOS)
    frames: dict[str, int] = {}

    def by(body):
        first_frame = body["messages"][0]["content"][0]["image_url"]["url"]
        yes = frames.setdefault(first_frame, len(frames)) % 2
        top = [{"token": "yes", "logprob": -0.1 - yes}, {"token": "no", "logprob": -0.6}]
        return answer("yes", logprobs={"content": [{**top[0], "top_logprobs": top}]})

    with JudgeServer(by=by) as server:
        config, run = offline("pairs.json", *server_judge(server.url, "label.method=claims"))
        result = agreement.agreement(config, run)
    assert len(server.bodies) == 4 and result["masked"] == {}
    assert all(
        "a dog chases a kite Is that so?" in body["messages"][0]["content"][-1]["text"] for body in server.bodies
    )
    assert result["overall"]["pairs"] == 4 and result["overall"]["ties"] < 4


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("label.show_video=false",), "label.show_video=false"),
        (("label.judge={world}/base",), "two videos at once, for 4 pairs"),
        (("label.judge={world}/base", "label.method=claims", "label.show_video=false"), "label.show_video=false"),
        (("label.judge.max_images=15",), "16: two videos of 8 frames each"),
    ],
    ids=["blind", "a model reads one video", "blind claims", "too many images"],
)
def test_a_judge_that_cannot_see_the_videos_is_refused(offline, root, world, overrides, expected):
    write_rows(root / "pairs.json", VIDEOS)
    with JudgeServer(answer()) as server:
        options = server_judge(server.url) + tuple(option.format(world=world) for option in overrides)
        with pytest.raises(ConfigError, match=expected):
            agreement.agreement(*offline("pairs.json", *options))
        assert server.bodies == []


def test_pairs_with_a_missing_video_are_skipped_with_a_reason(offline, root, caplog):
    gone = compared("gone", 0, 1, 0, 0)
    gone["video_1"] = safesora_video("clip_9", video_path="videos/p7/clip_9.mp4")
    neither = compared("neither", 0, 1, 0, 0) | {"helpfulness": "video_2"}
    unknown = compared("unknown", 0, 1, 0, 0)
    unknown["sub_preferences"] = unknown["sub_preferences"] | {"wit": "video_0"}
    write_rows(root / "pairs.json", [*VIDEOS, gone, neither, unknown])
    result = agreement.agreement(*offline("pairs.json", *BY_CODE))
    counts = {"video unusable": 1, "choice is neither": 1, "unknown dimension": 1}
    assert result["rows"] == {"kept": 4, **counts}
    assert "'gone'" in caplog.text and "clip_9.mp4" in caplog.text and "'neither'" in caplog.text


def test_a_videos_prompt_without_both_places_is_rejected(offline):
    with pytest.raises(ConfigError, match=r"videos_prompt.*\{b\}"):
        offline("pairs.json", "agreement.videos_prompt='{question} {a}'")


# -- images inside the file


def rows_of(name: str, count: int) -> list[dict]:
    """Rows of RLHF-V's or RLAIF-V's columns, each with an image of its own."""
    texts = {"question": "What is there?", "chosen": "a longer answer", "rejected": "short"}
    row = {"rlhf_v": RLHF_V | {"text": json.dumps(texts)}, "rlaif_v": RLAIF_V | texts}[name]
    return [
        row | {"idx": number if name == "rlhf_v" else str(number), "image": {"bytes": picture(number), "path": None}}
        for number in range(count)
    ]


@pytest.mark.parametrize("name", ["rlhf_v", "rlaif_v"])
def test_images_inside_a_parquet_file_are_extracted_and_scored(offline, root, tmp_path, reward_model, name):
    """Each is kept once, and a reward model sees it; what is no image is named, and not kept."""
    rows = rows_of(name, 4)
    rows[3]["image"] = {"bytes": b"\x89PNG no", "path": None}
    write_rows(root / "theirs.parquet", rows, FORMATS[name].schema)
    config, run = offline("theirs.parquet", f"ppo.reward={reward_model}", "video.num_frames=1")
    result = agreement.agreement(config, run)
    assert result["rows"] == {"kept": 3, "video unusable": 1} and result["masked"] == {}
    assert result["overall"]["pairs"] == 3
    kept = sorted(path.read_bytes() for path in (run.directory.path / "feedback" / "media").rglob("0.*"))
    assert kept == sorted(picture(number) for number in range(3))
    records, _ = datasets.load_with_report(run, config.data.pairs_eval, "preferences")
    scores = {}
    scorer = ModelScorer(reward_model, LocalFrames(root, 1), config.model, 10**6, 2**20)
    for number, record in enumerate(records):
        same = [RewardInput((record.video, 0), Prompt("p", record.video, "?"), "x")]
        scores[number] = scorer(same)[record.video, 0].value
    assert len(set(scores.values())) == 3  # another image, another score


def test_images_need_one_frame_per_video(offline, root):
    """With the usual eight frames none can be read: the error says which option it is."""
    write_rows(root / "theirs.parquet", rows_of("rlaif_v", 2), FORMATS["rlaif_v"].schema)
    with pytest.raises(DataError, match=r"at least 8 frames.*video\.num_frames=1"):
        agreement.agreement(*offline("theirs.parquet", "ppo.reward={path: 'opinions:length'}"))


def test_a_server_sees_the_image(offline, root):
    write_rows(root / "theirs.parquet", rows_of("rlaif_v", 2), FORMATS["rlaif_v"].schema)
    with JudgeServer(answer()) as server:
        options = server_judge(server.url, "label.choices=[A, B]", "video.num_frames=1")
        result = agreement.agreement(*offline("theirs.parquet", *options))
    assert result["overall"]["pairs"] == 2 and len(server.bodies) == 4
    assert {len(body["messages"][0]["content"]) for body in server.bodies} == {2}


# -- frames in several folders


def spread(pair_id: str, frames: list[str]) -> dict:
    turns = [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "x"}]
    outputs = {f"output_{n}": {"from": "gpt", "value": text} for n, text in ((1, "longer"), (2, "short"))}
    return {"id": pair_id, "conversations": turns, **outputs, "preference": 1, "images": frames}


def test_frames_of_several_folders_are_found_or_the_row_is_named(offline, root, caplog):
    """VLM-RLAIF lists frames by path: those of one row may lie anywhere, and are shown in the order of the row."""
    places = ["x/b.png", "y/a.png", "x/a.jpg"]
    for path, data_ in zip(places, (PICTURES[0], PICTURES[2], PICTURES[1]), strict=True):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(data_)
    rows = [spread("there", places), spread("again", places), spread("gone", [*places[:2], "z/none.png"])]
    rows.append(spread("outside", [*places[:2], "../elsewhere.png"]))
    (root / "theirs.json").write_text(json.dumps(rows))
    with JudgeServer(answer()) as server:
        options = server_judge(server.url, "label.choices=[A, B]", "video.num_frames=3")
        config, run = offline("theirs.json", *options)
        result = agreement.agreement(config, run)
        assert result["rows"] == {"kept": 2, "frame missing": 2}
        assert all(len(body["messages"][0]["content"]) == 4 for body in server.bodies) and len(server.bodies) == 2
    assert "'gone'" in caplog.text and "z/none.png" in caplog.text and "'outside'" in caplog.text
    records, _ = datasets.load_with_report(run, config.data.pairs_eval, "preferences")
    folder = datasets.data_path(config, records[0].video)
    assert records[0].video == records[1].video  # the same frames, once
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == [PICTURES[0], PICTURES[2], PICTURES[1]]


def test_rows_whose_frames_are_missing_are_skipped(offline, root):
    row = {"pair_id": "p", "question": "q", "chosen": "longer", "rejected": "short"}
    text, named = row | {"pair_id": "text"}, row | {"video": "videos/p7/clip_0.mp4"}
    lost = row | {"pair_id": "lost", "frames": ["videos/none.png"], "modality": "video"}
    (root / "own.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (text, named, lost)))
    result = agreement.agreement(*offline("own.jsonl", "ppo.reward={path: 'opinions:length'}"))
    assert result["rows"] == {"kept": 2, "frame missing": 1}


@pytest.mark.parametrize("ending", ["theirs", "ours"])
def test_listed_frames_of_a_folder_are_shown_in_their_order(offline, root, ending):
    """Three of its six images, and all of them in another order."""
    names = [f"v/{number}.png" for number in (1, 2, 3, 10, 11, 12)]
    (root / "v").mkdir()
    for number, name in enumerate(names):
        (root / name).write_bytes(picture(number))
    lists = [names, [names[0], names[2], names[5]], names[::-1]]
    rows = [spread(f"{n}", frames) for n, frames in enumerate(lists)]
    if ending == "ours":
        rows = [
            {
                "pair_id": row["id"],
                "video": "v",
                "frames": row["images"],
                "question": "q",
                "chosen": "a",
                "rejected": "b",
            }
            for row in rows
        ]
    (root / "pairs.json").write_text(json.dumps(rows))
    config, run = offline("pairs.json", "ppo.reward={path: 'opinions:length'}", "video.num_frames=3")
    records, report = datasets.load_with_report(run, config.data.pairs_eval, "preferences")
    assert report.counts == {"kept": 3} and records[0].video == "v"
    frames = LocalFrames(root, 3)
    for record, listed in zip(records, lists, strict=True):
        wanted = [LocalFrames(root, 1).get(frame)[0] for frame in (listed[0], listed[len(listed) // 2], listed[-1])]
        shown = frames.get(record.video)
        assert [wanted[place].tolist() for place in (0, 2)] == [shown[place].tolist() for place in (0, 2)]
        assert len(frames.spec(record.video).indices) == 3 and frames.spec(record.video).total_frames == len(listed)


def test_rows_with_listed_frames_are_skipped_if_media_are_in_a_bucket(offline, root, caplog):
    (root / "v").mkdir()
    for number in range(9):
        (root / f"v/{number}.png").write_bytes(picture(number))
    row = {"pair_id": "all", "question": "q", "chosen": "longer", "rejected": "short", "video": "v"}
    (root / "own.jsonl").write_text(
        "".join(json.dumps(one) + "\n" for one in (row, row | {"pair_id": "few", "frames": ["v/0.png"]}))
    )
    config, run = offline("own.jsonl", "ppo.reward={path: 'opinions:length'}", "agreement.media=s3://bucket/media")
    assert agreement.agreement(config, run)["rows"] == {"kept": 1, "frames differ": 1}
    assert "'few'" in caplog.text
