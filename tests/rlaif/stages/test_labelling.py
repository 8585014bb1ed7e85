"""`rlaif label` with a judge that misbehaves, each kind of failure once: masked with its reason, what was labelled stays,
and the next run asks about the rest. A real HTTP server of this process stands for the judge; no actor is started."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
from collections.abc import Iterable

import pytest
from judge_server import JudgeServer, answer, half, hang_up, raw, stall, status

from actors.frames import LocalFrames
from rlaif.config.section import Function
from rlaif.errors import ConfigError, ContractError, DataError
from rlaif.feedback.chat_request import encode_frames
from rlaif.io.rundir import RunDir
from rlaif.stages.feedback import label, pairs, sample
from rlaif.stages.feedback.label_report import flip_rates
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run, open_part

HELD_OUT = "descriptions.jsonl"


class NoTopology:
    """Videos are probed in this process; any actor is one too many."""

    def __init__(self, config):
        self.client = lambda: LocalFrames(config.data.root, config.video.num_frames)


@pytest.fixture
def judging(tmp_path, make_config, world):
    """judging(url, *overrides) -> (config, run): three answers to each of the world's prompts, judged by a server."""

    def make(url: str, *overrides: str, answers=("a red circle .", "a blue square .", "there is one object .")):
        server = f"{{url: '{url}', model: judge-1, origin: judge, retries: 0, backoff_s: 0}}"
        plain = [
            "data.pairs={run}/feedback/pairs.jsonl",
            f"label.judge={server}",
            "label.choices=[A, B]",
            "label.show_video=false",
            "label.context=none",
        ]
        config = make_config(tmp_path, "candidates.prompts=[descriptions.jsonl]", *plain, *overrides)
        run = Run(config, RunDir(config.storage, config.name), None, NoTopology(config))
        file = datasets.data_path(config, config.data.candidates)
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            rows = []
            for number, prompt in enumerate(ids_of(run)):
                own = [f"{text} {number}" for text in answers]
                rows.append({"prompt_id": prompt, "answers": own, "model": "base"})
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return config, run

    return make


def ids_of(run) -> list[str]:
    return [prompt.prompt_id for prompt in datasets.load(run, HELD_OUT, "prompts")]


def labels(config) -> dict[str, dict]:
    return {row["prompt_id"]: row for row in label.open_labels(config).rows()}


def scores_of(config) -> list[dict]:
    """Return the scores of all answers, of which some may be masked."""
    scores = []
    for row in labels(config).values():
        scores += row["scores"]
    return scores


def replies_of(rows: Iterable[dict]) -> list[dict]:
    """Return the records of a server's replies in some rows."""
    replies = []
    for row in rows:
        replies += row["replies"]
    return replies


def told(body: dict) -> str:
    return body["messages"][0]["content"]


def first_is(*words: tuple[str, float], text: str = "A"):
    """Return the likeliest first tokens, as the server lists them."""
    top = [{"token": token, "logprob": value} for token, value in words]
    return answer(text, logprobs={"content": [{**top[0], "top_logprobs": top}]})


def prefers(word: str):
    """Return a judge that prefers the answer with the word, in either place."""

    def by(body):
        first = told(body).partition("Second answer")[0]
        sure = [("A", -0.1), ("B", -2.5)] if word in first else [("A", -2.5), ("B", -0.1)]
        return first_is(*sure)

    return by


HARD = re.compile(r" [4-7]\n")
"""In what is asked about the last four of eight prompts: their answers end with their numbers."""

# name -> (what the server does, options, the reason, whether the next run asks again)
FAULTS = {
    "slow": (stall, ["timeout_s: 1.5"], "slow: no whole answer within 1.5 s", True),
    "garbage": (raw(b"\xff\x00 no"), [], "garbled: .* not JSON", True),
    "half an answer": (half, [], "down: the connection broke", True),
    "hangs up": (hang_up, [], "down: the connection broke", True),
    "busy": (status(429), [], "busy: 429", True),
    "broken": (status(500), [], "server error: 500", True),
    "declines the request": (status(400), [], "rejected: 400", True),
    "no log-probs": (answer("A", logprobs=None), [], "no log-probs", True),
    "says neither": (first_is(("the", -0.1), ("an", -2.5)), [], "none of 'A', 'B' among the likeliest tokens", False),
    "refuses": (answer(message={"content": None, "refusal": "I can't"}), [], "refused: .*I can't", False),
}


@pytest.mark.parametrize("name", FAULTS)
def test_labels_before_a_judge_failure_are_kept_and_the_rest_is_asked_again(judging, name, caplog):
    """It answers about the first four prompts, and fails at the others. Mended, it is asked about these alone."""
    fault, changes, reason, again = FAULTS[name]
    mended, served = [], []

    def by(body):
        served.append(told(body))
        return fault if HARD.search(told(body)) and not mended else prefers("red")(body)

    with JudgeServer(by=by) as server:
        config, run = judging(server.url, "label.flips=tie")
        server_options = config.label.judge.model_copy(update=_options(changes))
        config = config.model_copy(update={"label": config.label.model_copy(update={"judge": server_options})})
        report = label.label(config, run)
        before = label.open_labels(config).path.read_bytes()
        rows = labels(config)
        good, bad = ids_of(run)[:4], ids_of(run)[4:]
        for prompt in good:
            assert all("score" in score for score in rows[prompt]["scores"])
        reasons = []
        for prompt in bad:
            assert all("masked" in score for score in rows[prompt]["scores"])
            own = [pair["masked"] for pair in rows[prompt]["pairs"]]
            assert _matches(reason, " ".join(own)) or _matches("given up", " ".join(own))
            assert rows[prompt].get("again", False) == again
            reasons += own
        assert any(_matches(reason, text) for text in reasons)
        assert report["again"] == (4 if again else 0) and sum(report["position"]["masked"].values()) == 12
        assert ("run `rlaif label` again" in caplog.text) == again
        mended.append(True)
        served.clear()
        report = label.label(config, run)
        assert len(served) == (24 if again else 0)
        assert label.open_labels(config).path.read_bytes().startswith(before)
        after = labels(config)
        assert {prompt: after[prompt] for prompt in good} == {prompt: rows[prompt] for prompt in good}
        assert report["again"] == 0 and report["masked"].keys() == (
            {"no verdict on this answer"} if not again else set()
        )


def _options(changes: list[str]) -> dict:
    options = {}
    for change in changes:
        name, value = change.split(": ")
        options[name] = float(value)
    return options


def _matches(pattern: str, text: str) -> bool:
    return re.search(pattern, text) is not None


def test_prompts_after_a_silent_part_are_not_asked(judging, monkeypatch):
    """After a part without any answer the rest is masked unasked; the next run, at another address, asks about all of it."""
    monkeypatch.setattr(label, "PROMPTS_PER_PART", 2)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # nobody listens
        config, run = judging(f"http://127.0.0.1:{bound.getsockname()[1]}/v1")
        report = label.label(config, run)
    reasons = [score["masked"] for score in scores_of(config)]
    assert report["again"] == 8 and sum("not asked" in reason for reason in reasons) == 18
    with pytest.raises(DataError, match="masked score|none of"):
        pairs.pairs(config, run)
    with JudgeServer(by=prefers("red")) as server:
        config, run = judging(server.url)
        assert label.label(config, run)["again"] == 0 and len(server.bodies) == 48


def test_a_wrong_api_key_stops_the_run(judging):
    with JudgeServer(status(401)) as server, pytest.raises(ConfigError, match="401"):
        label.label(*judging(server.url))


def test_an_exhausted_budget_masks_the_remaining_prompts(judging, monkeypatch, caplog):
    """It bounds what the run takes, not what one command takes, and what is kept already is used all the same."""
    monkeypatch.setattr(label, "PROMPTS_PER_PART", 2)
    with JudgeServer(by=prefers("red")) as server:
        config, run = judging(server.url)
        config = with_server(config, concurrency=1)  # 15 tokens a reply; 512 are kept free for the next one
        small = with_server(config, token_budget=600)
        report = label.label(small, run)
        assert report["again"] == 7 and len(server.bodies) == 6
        assert any("token_budget: 90 of 600" in why for why in report["position"]["masked"])
        assert "token_budget: 90 of 600" in caplog.text
        reasons = [score["masked"] for score in scores_of(config) if "masked" in score]
        assert sum("not asked" in why and "token_budget: 90 of 600" in why for why in reasons) == 12
        spent = run.directory.read_json("judge/spent.json")
        assert spent == {"judge-1 at judge": {"prompt_tokens": 60, "completion_tokens": 30}}

        again = label.label(small, run)  # a command of its own, and no budget of its own
        assert len(server.bodies) == 6 and again["server"]["this_command"]["prompt_tokens"] == 0
        assert again["server"]["this_run"] == {"prompt_tokens": 60, "completion_tokens": 30, "cost": None}
        label.open_labels(config).path.unlink()
        assert label.label(small, run)["again"] == 7 and len(server.bodies) == 6  # kept replies cost nothing
        assert label.label(with_server(config, token_budget=690), run)["again"] == 6 and len(server.bodies) == 12
        assert label.label(config, run)["again"] == 0 and len(server.bodies) == 48  # nothing is paid for twice


def test_parts_of_a_study_share_the_budget_and_the_cached_replies(judging, tmp_path):
    with JudgeServer(by=prefers("red")) as server:
        config, run = judging(server.url)
        config = with_server(config, concurrency=1, token_budget=600)
        assert label.label(config, run)["again"] == 7
        data = config.data.model_copy(update={"labels": str(tmp_path / "part.jsonl")})
        part = config.model_copy(update={"name": f"{config.name}/context/none-7", "data": data})
        answered = label.label(part, open_part(part, run))
        assert answered["server"]["this_command"]["cached"] == 6 and len(server.bodies) == 6


def test_prompts_without_answers_are_counted(judging, caplog):
    """A file of one's own may leave some out, or hold a row of no answers."""
    with JudgeServer(by=prefers("red")) as server:
        config, run = judging(server.url)
        assert label.label(config, run)["unanswered"] == pairs.pairs(config, run)["unanswered"] == 0
        assert "have no answers" not in caplog.text
        path = datasets.data_path(config, config.data.candidates)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [{"prompt_id": rows[0]["prompt_id"], "answers": []}, *rows[1:6]]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        label.label(config, run)
        pairs.pairs(config, run)
    assert "3 of 8 prompts have no answers in" in caplog.text
    read = {name: json.loads((run.directory.path / "eval" / f"{name}.json").read_text()) for name in ("label", "pairs")}
    assert [result["unanswered"] for result in read.values()] == [3, 3]
    assert [result["prompts"] for result in read.values()] == [5, 5] and len(ids_of(run)) == 8


def test_a_judge_can_see_fewer_frames_than_the_policy(judging):
    """They are the frames that `video.num_frames` of that number would choose."""
    shown = []
    says = first_is(("A", -0.1), ("B", -2.5))
    with JudgeServer(by=lambda body: shown.append(told(body)) or says) as server:
        config, run = judging(server.url, "label.show_video=true", "label.num_frames=2")
        assert label.label(config, run)["again"] == 0
    urls = set()
    for content in shown:
        images = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        assert len(images) == 2
        urls.update(images)
    sparse = LocalFrames(config.data.root, 2)
    expected = set()
    for prompt in datasets.load(run, HELD_OUT, "prompts"):
        for image in encode_frames(sparse.get(prompt.video), jpeg_quality=90):
            expected.add(f"data:image/jpeg;base64,{base64.b64encode(image).decode()}")
    assert urls == expected


def test_another_file_behind_a_videos_name_is_judged_anew(judging, world, tmp_path):
    """Also with a judge that reads no captions."""
    shutil.copytree(world / "data", tmp_path / "data")
    with JudgeServer(by=prefers("red")) as server:
        config, run = judging(server.url, f"data.root={tmp_path}/data")
        label.label(config, run)
        prompts = datasets.load(run, HELD_OUT, "prompts")
        video = prompts[0].video
        other = next(prompt.video for prompt in prompts if prompt.video != video)
        shutil.copy(tmp_path / "data" / other, tmp_path / "data" / video)
        config, run = judging(server.url, f"data.root={tmp_path}/data")
        report = label.label(config, run)
    changed = sum(prompt.video == video for prompt in prompts)
    assert 0 < changed < len(prompts) and report["server"]["this_command"]["cached"] == 6 * changed
    now = datasets.load(run, HELD_OUT, "prompts")
    different = [
        a.prompt_id for a, b in zip(prompts, now, strict=True) if sample.prompt_digest(a) != sample.prompt_digest(b)
    ]
    assert different == [prompt.prompt_id for prompt in prompts if prompt.video == video]


def test_a_judge_that_always_prefers_the_first_answer_causes_a_warning(judging, caplog):
    with JudgeServer(first_is(("A", -0.1), ("B", -2.5))) as server:
        config, run = judging(server.url, "pairs.margin=0", "pairs.lengths=off", "pairs.min_words=0")
        report = label.label(config, run)
    assert report["flips"] == {
        **{"policy": "tie", "verdicts": 24, "flipped": 24, "flipped_decided": 0},
        **{"before": 1.0, "after": 0.0},
    }
    assert report["position"]["one_sided"] == "first" and report["position"]["ties"] == 24
    assert "whichever answer that is" in caplog.text
    assert json.loads((run.directory.path / "eval" / "label.json").read_text())["flips"]["before"] == 1.0
    with pytest.raises(DataError, match="'tied': 24"):
        pairs.pairs(config, run)


def test_averaging_decides_flipped_pairs_and_the_report_says_how_many(judging):
    """The first place is worth more than the answer: every pair flips, and the average still knows the better one."""

    def by(body):
        first = told(body).partition("Second answer")[0]
        return first_is(("A", -0.05 if "red" in first else -0.3), ("B", -3.0))

    with JudgeServer(by=by) as server:
        config, run = judging(server.url, "label.flips=average")
        report = label.label(config, run)
    assert report["flips"]["before"] == 1.0 and report["flips"]["after"] == pytest.approx(2 / 3)
    assert all(row["scores"][0]["score"] > row["scores"][1]["score"] for row in labels(config).values())
    assert flip_rates("tie", [])["before"] is None


def test_a_choice_that_is_not_among_the_likeliest_is_no_failure(judging):
    def by(body):
        first = told(body).partition("Second answer")[0]
        return first_is(("A" if "red" in first else "B", -0.01), ("the", -6.0))

    with JudgeServer(by=by) as server:
        config, run = judging(server.url)
        report = label.label(config, run)
    assert report["masked"] == {} and report["position"]["masked"] == {}
    assert all(row["scores"][0]["score"] > 0.9 for row in labels(config).values())


def test_a_torn_labels_file_is_completed(judging, caplog):
    with JudgeServer(by=prefers("red")) as server:
        config, run = judging(server.url)
        label.label(config, run)
        path = label.open_labels(config).path
        whole = path.read_bytes()
        path.write_bytes(whole[:-50])
        before = len(server.bodies)
        assert label.label(config, run)["masked"] == {}
        assert len(server.bodies) == before and path.read_bytes() == whole  # the replies were kept
        assert "cut short" in caplog.text
        lines = whole.splitlines(keepends=True)
        path.write_bytes(b"".join([*lines[:3], lines[3][:20] + b"\n", *lines[4:]]))
        with pytest.raises(DataError, match="line 4"):
            label.label(config, run)


def test_equal_answers_are_not_asked_about(judging):
    with JudgeServer(by=prefers("red")) as server:
        config, run = judging(server.url, answers=("a red circle .",) * 3)
        report = label.label(config, run)
        assert server.bodies == [] and report["masked"] == {"no verdict on this answer": 24}
        assert report["again"] == 0
        with pytest.raises(DataError, match="preference pairs"):
            pairs.pairs(config, run)


def test_a_video_without_captions_is_counted_and_judged_without_context(judging, caplog):
    with JudgeServer(by=prefers("red")) as server:
        config, run = judging(server.url, "label.context=captions", "data.captions={run}/captions.jsonl")
        videos = sorted({prompt.video for prompt in datasets.load(run, HELD_OUT, "prompts")})
        file = datasets.data_path(config, config.data.captions)
        made = [
            {
                "key": video,
                "video": video,
                "model": "m",
                "version": "1",
                "captions": ["x"],
                "context": [f"seen {video}"],
            }
            for video in videos[2:]
        ]
        failed = [{"key": videos[1], "video": videos[1], "model": "m", "version": "1", "masked": "no"}]
        file.write_text("".join(json.dumps(row) + "\n" for row in made + failed))
        report = label.label(config, run)
    assert report["without_context"] == 2 and "2 of 8 prompts have no captions" in caplog.text
    assert report["masked"] == {}
    with_context = [told(body) for body in server.bodies if "What happens in the video: seen videos/" in told(body)]
    assert len(with_context) == 36 and len(server.bodies) == 48
    file.write_text(file.read_text().replace("seen", "watched"))
    with JudgeServer(by=prefers("red")) as server:
        label.label(*judging(server.url, "label.context=captions", "data.captions={run}/captions.jsonl"))
    assert len(server.bodies) == 36  # other captions are other labels


def test_videos_are_sent_to_the_server_only_with_show_video(judging):
    with JudgeServer(by=lambda body: first_is(("A", -0.1), ("B", -2.5))) as server:
        label.label(*judging(server.url))
        assert all(isinstance(body["messages"][0]["content"], str) for body in server.bodies)
        config, run = judging(server.url, "label.show_video=true", "data.labels={run}/with_video.jsonl")
        assert label.label(config, run)["masked"] == {}
    shown = [part["type"] for part in server.bodies[-1]["messages"][0]["content"]]
    assert shown == ["image_url"] * 8 + ["text"]
    assert {body["max_tokens"] for body in server.bodies} == {1}


def test_claims_before_a_server_failure_are_kept_and_the_rest_is_asked_again(judging):
    """The judge lists the claims and is asked about each; an answer is masked where any of it is missing."""
    served, mended = [], []

    def by(body):
        served.append(told(body))
        if "List every statement" in told(body):
            return status(503) if HARD.search(told(body)) and not mended else answer("- one thing\n- another thing")
        return first_is(("yes", -0.1), ("no", -2.5)) if "one thing" in told(body) else first_is(("no", -0.1))

    with JudgeServer(by=by) as server:
        config, run = judging(server.url, "label.method=claims", "label.split=model")
        report = label.label(config, run)
        assert report["again"] == 4 and {why.partition(":")[0] for why in report["masked"]} == {"server error"}
        assert report["answers"] == 24 and sum(report["masked"].values()) == 12 and len(served) == 26
        mended.append(True)
        report = label.label(config, run)
    assert len(served) == 38 and report["again"] == 0 and report["masked"] == {}
    assert {score["score"] for score in scores_of(config)} == {-1.0}


# -- what a server's labels say of it


PRICED = {"price_per_million": (2.0, 10.0)}


def with_server(config, **changes):
    judge = config.label.judge.model_copy(update=changes)
    return config.model_copy(update={"label": config.label.model_copy(update={"judge": judge})})


def test_rows_record_every_reply_and_the_report_sums_tokens_and_cost(judging):
    """10 + 5 tokens a reply, says the server. One question fails once, and is retried."""
    busy = [1]

    def by(body):
        return status(503) if busy and busy.pop() else prefers("red")(body)

    with JudgeServer(by=by) as server:
        config, run = judging(server.url)
        config = with_server(config, **PRICED, retries=1, concurrency=1)
        report = label.label(config, run)
        for row in labels(config).values():
            assert [reply["asked"] for reply in row["replies"]] == ["0:1", "1:0", "0:2", "2:0", "1:2", "2:1"]
            for reply in row["replies"]:
                assert reply["model"] == "judge-1" and len(reply["prompt_hash"]) == 64
                assert (reply["prompt_tokens"], reply["completion_tokens"]) == (10, 5)
        assert len({reply["prompt_hash"] for reply in replies_of(labels(config).values())}) == 48
        tokens = {"prompt_tokens": 480, "completion_tokens": 240}
        cost = pytest.approx(480 * 2e-6 + 240 * 10e-6)
        assert report["server"]["labels"] == {"replies": 48, **tokens, "cost": cost}
        counts = {"requests": 49, "retries": 1, "cached": 0}
        # what failed may have been computed, and counts as the largest so far
        assert report["server"]["this_command"].items() >= counts.items()
        assert report["server"]["this_command"]["prompt_tokens"] in (480, 490)
        written = json.loads((run.directory.path / "eval" / "label.json").read_text())
        assert written["server"]["labels"]["replies"] == 48

        label.open_labels(config).path.unlink()  # the labels are lost, the replies are not
        report = label.label(config, run)
    nothing = {"requests": 0, "retries": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0}
    assert report["server"]["this_command"] == {**nothing, "cached": 48}
    assert report["server"]["labels"] == {"replies": 48, **tokens, "cost": cost}


def test_without_prices_there_is_no_cost(judging):
    with JudgeServer(by=prefers("red")) as server:
        report = label.label(*judging(server.url))
    assert report["server"]["this_command"]["cost"] is report["server"]["labels"]["cost"] is None
    assert report["server"]["this_command"]["requests"] == 48


def test_a_refusal_is_recorded_as_a_reply_and_a_failed_request_is_not(judging):
    refuses = answer(message={"content": None, "refusal": "I can't"})

    def by(body):
        return refuses if HARD.search(told(body)) else prefers("red")(body)

    with JudgeServer(by=by) as server:
        config, run = judging(server.url)
        report = label.label(config, run)
    good, bad = ids_of(run)[:4], ids_of(run)[4:]
    rows = labels(config)
    assert all("masked" not in reply for reply in replies_of(rows[prompt] for prompt in good))
    refusals = replies_of(rows[prompt] for prompt in bad)
    assert {reply["masked"] for reply in refusals} == {"refused"}
    assert {reply["prompt_tokens"] for reply in refusals} == {10}
    assert report["server"]["labels"]["replies"] == 48

    with JudgeServer(status(503)) as server:
        config, run = judging(server.url, "data.labels={run}/down.jsonl", "label.choices=[A, C]")
        config = with_server(config, origin="another", give_up_after=1)
        report = label.label(config, run)
    assert all("replies" not in row for row in labels(config).values())
    assert report["server"]["labels"]["replies"] == 0 and report["server"]["this_command"]["requests"] > 0


def test_replies_about_claims_record_the_question(judging):
    def by(body):
        if "List every statement" in told(body):
            return answer("- one thing\n- another thing")
        return first_is(("yes", -0.1), ("no", -2.5)) if "one thing" in told(body) else first_is(("no", -0.1))

    with JudgeServer(by=by) as server:
        config, run = judging(server.url, "label.method=claims", "label.split=model")
        label.label(config, run)
    for row in labels(config).values():
        lists = [f"claims of {place}" for place in range(3)]
        assert [reply["asked"] for reply in row["replies"]] == [*lists, "another thing", "one thing"]


def test_labels_of_a_model_or_a_function_have_no_replies(judging):
    config, run = judging("http://127.0.0.1:9/v1")
    code = config.label.model_copy(update={"judge": Function(path="opinions:longer")})
    config = config.model_copy(update={"label": code})
    report = label.label(config, run)
    assert "server" not in report and all("replies" not in row for row in labels(config).values())


def test_a_failing_reference_loses_no_labels(judging, caplog):
    with JudgeServer(by=prefers("red")) as server:
        config, run = judging(server.url, "label.reference=rlaif.worlds.shapes.checker:nothing_of_the_kind")
        with pytest.raises(ConfigError, match="nothing_of_the_kind"):
            label.label(config, run)
        assert server.bodies == []
        config, run = judging(server.url, "label.reference=opinions:no_preference")
        result = label.label(config, run)
    count = sum(result["reference_failed"].values())
    assert count == result["agreement"]["overall"]["no_reference"] > 0 and len(labels(config)) == result["prompts"]
    assert "label.reference gave no result for" in caplog.text


def test_pairs_reject_labels_made_with_other_options(judging):
    with JudgeServer(by=prefers("red")) as server:
        config, run = judging(server.url)
        label.label(config, run)
        other, run = judging(server.url, "label.method=claims")
        with pytest.raises(ContractError, match=r"data\.labels"):
            pairs.pairs(other, run)
        assert pairs.pairs(config, run)["pairs"]
