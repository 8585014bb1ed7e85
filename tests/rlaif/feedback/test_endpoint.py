"""The judge's client against a server that answers: requests, replies, stored answers and budgets."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from judge_server import MODEL, JudgeServer, answer, completion, half, status
from PIL import Image

from rlaif.errors import ConfigError, ContractError
from rlaif.feedback.chat_request import ChatRequest, Turn, canonical, data_url, encode_frames, prompt_hash
from rlaif.feedback.chat_response import ChatCompletion, Reply, Usage
from rlaif.feedback.endpoint import Endpoint
from rlaif.feedback.tokens import choice_logprobs

ROOT = Path(__file__).parents[3]
FRAMES = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3), dtype=np.uint8)


def files(folder) -> list[Path]:
    """Return every file below a folder, sorted."""
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


# -- one question


def test_a_reply_carries_text_and_record(options, ask):
    with JudgeServer(answer("yes , A", delay=0.05)) as server:
        endpoint = Endpoint(options(server))
        (reply,) = endpoint.ask_many([ask(3)])
    assert (reply.key, reply.text, reply.finish_reason, reply.first) == (("p", 3), "yes , A", "stop", ())
    assert (reply.model, reply.usage, reply.cached) == (MODEL, Usage(10, 5), False)
    assert 0.05 <= reply.latency_s < 2
    assert len(reply.prompt_hash) == 64
    assert json.loads(json.dumps(reply.record())) == {
        "model": MODEL,
        "prompt_hash": reply.prompt_hash,
        "finish_reason": "stop",
        "latency_s": reply.latency_s,
        "prompt_tokens": 10,
        "completion_tokens": 5,
    }
    assert endpoint.used == Usage(10, 5)


def test_the_request_body_is_a_chat_completion(options, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", " sk-planted\n")
    images = encode_frames(FRAMES)
    turns = (Turn("be strict .", "system"), Turn("which ?", images=images))
    extra = {"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": None, "max_completion_tokens": 7}
    with JudgeServer(answer()) as server:
        settings = options(server, api_key_env="JUDGE_KEY", temperature=0.5, top_logprobs=4, extra=extra)
        Endpoint(settings).ask_many([ChatRequest("k", turns, ("A", "B"), seed=9)])
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == "Bearer sk-planted"
    assert server.bodies == [
        {
            "model": MODEL,
            "temperature": 0.5,
            "seed": 9,
            "logprobs": True,
            "top_logprobs": 4,
            "chat_template_kwargs": {"enable_thinking": False},
            "max_completion_tokens": 7,
            "messages": [
                {"role": "system", "content": "be strict ."},
                {
                    "role": "user",
                    "content": [
                        *({"type": "image_url", "image_url": {"url": data_url(image)}} for image in images),
                        {"type": "text", "text": "which ?"},
                    ],
                },
            ],
        }
    ]


def test_no_logprobs_without_choices_and_no_header_without_a_key(options, ask):
    with JudgeServer(answer()) as server:
        Endpoint(options(server)).ask_many([ask()])
    assert not {"logprobs", "top_logprobs"} & set(server.bodies[0])
    assert "Authorization" not in server.headers[0]


def test_png_frames_arrive_without_loss():
    url = data_url(encode_frames(FRAMES)[1])
    kind, _, data = url.partition(";base64,")
    assert kind == "data:image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), FRAMES[1])
    assert data_url(encode_frames(FRAMES, jpeg_quality=95)[0]).startswith("data:image/jpeg;base64,")


def test_a_file_that_is_no_image_is_refused():
    with pytest.raises(ContractError, match="PNG or JPEG"):
        data_url(b"GIF89a")


def test_too_many_images_are_an_error(options):
    turns = (Turn("?", images=encode_frames(FRAMES)),)
    with JudgeServer(answer()) as server, pytest.raises(ContractError, match="at most 2 images"):
        Endpoint(options(server, max_images=2)).ask_many([ChatRequest("k", turns)])
    assert server.bodies == []


# -- log-probs of the first token


def test_choices_sum_over_spaces_and_are_none_if_not_reported(options, ask):
    with JudgeServer(answer("A")) as server:
        (reply,) = Endpoint(options(server)).ask_many([ask(choices=("A", "B", "C"))])
    logprobs = choice_logprobs(reply.first, ("A", "B", "C"))
    assert logprobs["A"] == pytest.approx(-0.2)
    assert logprobs["B"] == pytest.approx(math.log(math.exp(-2) + math.exp(-3)))
    assert logprobs["C"] is None


def test_a_sampled_token_beyond_the_top_counts(options, ask):
    content = [{"token": "C", "logprob": -6.0, "top_logprobs": [{"token": "A", "logprob": -0.1}]}]
    with JudgeServer(answer("C", logprobs={"content": content})) as server:
        (reply,) = Endpoint(options(server)).ask_many([ask(choices=("C", "A"))])
    assert choice_logprobs(reply.first, ("C", "A")) == pytest.approx({"C": -6.0, "A": -0.1})


@pytest.mark.parametrize("changes", [{"finish_reason": "length"}, {"message": {"content": None}}])
def test_with_choices_the_first_token_is_the_answer(options, ask, changes):
    with JudgeServer(answer(**changes)) as server:
        (reply,) = Endpoint(options(server)).ask_many([ask(choices=("A", "B"))])
    assert isinstance(reply, Reply)
    assert dict(reply.first)["A"] == pytest.approx(-0.2)


@pytest.mark.parametrize("choices", [("A", " A"), ("",), ("A", "A")])
def test_choices_that_differ_by_spaces_alone_are_refused(ask, choices):
    with pytest.raises(ContractError, match="differ"):
        ask(choices=choices)


# -- many questions


def test_outcomes_keep_the_order_of_the_questions(options, ask):
    def by(body):
        number = int(body["messages"][0]["content"].split()[1])
        return answer(f"answer {number}", delay=0.02 * (8 - number))

    with JudgeServer(by=by) as server:
        replies = Endpoint(options(server, concurrency=4)).ask_many(ask(n) for n in range(8))
    assert [(reply.key, reply.text) for reply in replies] == [(("p", n), f"answer {n}") for n in range(8)]
    assert server.most_open == 4


def test_questions_are_taken_from_the_iterable_as_room_becomes_free(options, ask):
    with JudgeServer(answer(delay=0.05)) as server:
        progress = []

        def asks():
            for n in range(6):
                progress.append((n, len(server.bodies)))
                yield ask(n)

        Endpoint(options(server, concurrency=2)).ask_many(asks())
    assert all(number - answered <= 2 for number, answered in progress)


def test_the_same_question_twice_is_asked_once(options, ask):
    with JudgeServer(answer(delay=0.05)) as server:
        replies = Endpoint(options(server, concurrency=4)).ask_many([ask(1), ask(1), ask(2), ask(1)])
    assert len(server.bodies) == 2
    assert sorted(reply.cached for reply in replies) == [False, False, True, True]


def test_questions_can_be_asked_inside_an_event_loop(options, ask):
    async def main():
        return Endpoint(options(server)).ask_many([ask(1)])

    with JudgeServer(answer("A")) as server:
        assert [reply.text for reply in asyncio.run(main())] == ["A"]


def test_an_error_of_the_callers_iterable_is_raised_unchanged(options, ask):
    def asks():
        yield ask(0)
        raise ZeroDivisionError("of the caller")

    with JudgeServer(answer()) as server:
        endpoint = Endpoint(options(server))
        with pytest.raises(ZeroDivisionError, match="of the caller"):
            endpoint.ask_many(asks())
        assert endpoint.ask_many([ask(0)])[0].cached


# -- stored answers


def test_a_stored_answer_costs_nothing(options, ask, tmp_path):
    with JudgeServer(answer("A")) as server:
        settings = options(server, cache=str(tmp_path))
        first = Endpoint(settings).ask_many([ask(1, choices=("A",))])[0]
        again = Endpoint(settings, Usage(1, 1))
        second = again.ask_many([ask(1, choices=("A", "B"))])[0]  # other choices of the same answer
    assert len(server.bodies) == 1
    assert (second.cached, second.text, second.usage, second.latency_s) == (True, "A", first.usage, first.latency_s)
    assert second.first == first.first and "B" in dict(second.first)
    assert second.prompt_hash == first.prompt_hash
    assert again.used == Usage(1, 1)


CHANGES = {
    "model": ({"model": "judge-2"}, {}),
    "temperature": ({"temperature": 1.0}, {}),
    "max_tokens": ({"max_tokens": 7}, {}),
    "extra": ({"extra": {"top_p": 0.5}}, {}),
    "origin": ({"origin": "elsewhere"}, {}),
    "seed": ({}, {"seed": 1}),
    "text": ({}, {"turns": (Turn("another", images=encode_frames(FRAMES)),)}),
    "role": ({}, {"turns": (Turn("question", "system", images=encode_frames(FRAMES)),)}),
    "a pixel": ({}, {"turns": (Turn("question", images=encode_frames(FRAMES ^ 1)),)}),
    "an image less": ({}, {"turns": (Turn("question", images=encode_frames(FRAMES[:2])),)}),
    "their order": ({}, {"turns": (Turn("question", images=encode_frames(FRAMES[::-1])),)}),
    "log-probs": ({}, {"choices": ("A",)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_hash_covers_everything_that_decides_the_answer(options, change, tmp_path):
    of_options, of_ask = CHANGES[change]
    plain = {"key": 1, "turns": (Turn("question", images=encode_frames(FRAMES)),)}
    with JudgeServer(by=lambda body: answer(top={"model": body["model"]})) as server:
        (first,) = Endpoint(options(server, cache=str(tmp_path))).ask_many([ChatRequest(**plain)])
        (other,) = Endpoint(options(server, cache=str(tmp_path), **of_options)).ask_many(
            [ChatRequest(**plain | of_ask)]
        )
    assert first.prompt_hash != other.prompt_hash
    assert not other.cached and len(server.bodies) == 2


def test_prompt_hashes_are_those_of_earlier_releases():
    """With another hash for the same question its stored answer would be paid for again."""
    turns = (Turn("be strict .", "system"), Turn("which ?", images=(b"\xff\xd8\xff one", b"\x89PNG\r\n\x1a\n two")))
    text = canonical("http://judge", {"model": "m", "seed": 1}, turns)
    assert prompt_hash(text) == "43eb00570dd1e8aebd782623347d90e384713baf6daab9470cbb07122be8615e"


@pytest.mark.parametrize(
    ("choices", "known"),
    [
        (("A", "B"), "9439210815acf889a82ece04c8751362a26953fa54386f7534fe05ebeb16d522"),
        ((), "f64951a647b1c48d6f2e36802e072bc65705c21156db4720813f3cf6144c1edf"),
    ],
    ids=["a verdict", "free text"],
)
def test_stored_answers_of_earlier_releases_are_used(options, choices, known):
    """The hash covers a stage's options, the defaults of the others, and the address without its last slash."""
    extra = {"a": {"b": [1]}, "max_tokens": None}
    endpoint = Endpoint(options("http://judge/v1/", model="m", extra=extra, max_tokens=512))
    stored = ChatCompletion("m", "A", None, "stop", (("A", -0.2),), Usage(10, 5), 0.1)
    sampling = {"model": "m", "temperature": 0.0, "seed": 3, "a": {"b": [1]}}
    of_verdict = {"logprobs": True, "top_logprobs": 20} if choices else {}
    turns = (Turn("which ?"),)
    endpoint.answers.put(canonical("http://judge/v1", sampling | of_verdict, turns), stored)
    (reply,) = endpoint.ask_many([ChatRequest("k", turns, choices, seed=3)])
    assert reply.cached and reply.prompt_hash == known


def test_the_address_is_in_the_hash_unless_an_origin_is_named(options, ask, tmp_path):
    with JudgeServer(answer()) as one, JudgeServer(answer()) as two:
        for origin, cached in ((None, False), ("judge", True)):
            cache = {"cache": str(tmp_path), "origin": origin}
            Endpoint(options(one, **cache)).ask_many([ask()])
            assert Endpoint(options(two, **cache)).ask_many([ask()])[0].cached is cached


def test_frames_are_stored_as_their_hash(options, tmp_path):
    turns = (Turn("?", images=encode_frames(FRAMES)),)
    with JudgeServer(answer()) as server:
        Endpoint(options(server, cache=str(tmp_path))).ask_many([ChatRequest("k", turns)])
    (file,) = files(tmp_path)
    assert "base64" not in file.read_text() and file.stat().st_size < 2000


def test_unreadable_files_of_the_cache_are_asked_again(options, ask, tmp_path):
    with JudgeServer(answer("A")) as server:
        settings = options(server, cache=str(tmp_path))
        asks = [ask(n) for n in range(5)]
        Endpoint(settings).ask_many(asks)
        one, two, three, four, _ = files(tmp_path)
        one.write_bytes(one.read_bytes()[:-9])
        two.write_bytes(b"")
        three.write_text(four.read_text())  # the answer to another question
        four.write_text(json.dumps({**json.loads(four.read_text()), "answer": {"text": 7}}))
        replies = Endpoint(settings).ask_many(asks)
        assert [reply.text for reply in replies] == ["A"] * 5
        assert sum(reply.cached for reply in replies) == 1 and len(server.bodies) == 9
        assert all(reply.cached for reply in Endpoint(settings).ask_many(asks))


def test_a_killed_run_asks_only_what_has_no_answer(options, ask, tmp_path):
    """The run is killed with SIGKILL, in the middle of its questions."""
    code = (
        "import sys; sys.path[:0] = ['tests/support']\n"
        "from rlaif.feedback.endpoint import Endpoint\n"
        "from rlaif.feedback.chat_request import ChatRequest, Turn\n"
        "from rlaif.config.server import Server\n"
        "from rlaif.feedback.chat_request import EndpointOptions\n"
        f"server = Server(url=sys.argv[1], model={MODEL!r}, concurrency=2)\n"
        "options = EndpointOptions(server, cache=sys.argv[2])\n"
        "Endpoint(options).ask_many(ChatRequest(('p', n), (Turn(f'question {n} ?'),)) for n in range(30))\n"
    )
    with JudgeServer(answer("A", delay=0.05)) as server:
        run = subprocess.Popen([sys.executable, "-c", code, server.url, str(tmp_path)], cwd=ROOT)
        while len(server.bodies) < 10 and run.poll() is None:
            time.sleep(0.01)
        os.kill(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        before_the_kill = len(server.bodies)
        replies = Endpoint(options(server, cache=str(tmp_path))).ask_many([ask(n) for n in range(30)])
    assert [reply.text for reply in replies] == ["A"] * 30
    assert 6 <= sum(reply.cached for reply in replies) <= before_the_kill
    assert len(server.bodies) <= 30 + 4  # at most the open requests are sent twice


def test_an_unwritable_cache_is_reported(options, ask, tmp_path):
    (tmp_path / "file").write_text("")
    with JudgeServer(answer()) as server, pytest.raises(ConfigError, match="cache"):
        Endpoint(options(server, cache=str(tmp_path / "file"))).ask_many([ask()])


# -- budgets


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize(
    "limits",
    [
        {"token_budget": 100},  # 15 tokens each
        {"cost_budget": 0.0165, "price_per_million": (100.0, 300.0)},  # .0025 each
    ],
)
def test_a_budget_is_not_exceeded_and_unsent_questions_are_masked(options, ask, limits, concurrency, tmp_path):
    with JudgeServer(answer(delay=0.01)) as server:
        endpoint = Endpoint(options(server, max_tokens=5, concurrency=concurrency, cache=str(tmp_path), **limits))
        outcomes = endpoint.ask_many([ask(n) for n in range(10)])
        assert len(server.bodies) == 6
        assert endpoint.used == Usage(60, 30)
        masked = [one for one in outcomes if not isinstance(one, Reply)]
        assert len(masked) == 4 and {one.kind for one in masked} == {"budget"}
        assert next(iter(limits)) in masked[0].reason
        # Stored answers still cost nothing, and the others still have no room, in this call and in a later run.
        outcomes = endpoint.ask_many([ask(n) for n in range(10)])
        assert sum(isinstance(one, Reply) and one.cached for one in outcomes) == 6
        later = Endpoint(endpoint.options, endpoint.used)
        assert [one.cached for one in later.ask_many([ask(0)])] == [True]
        assert [one.kind for one in later.ask_many([ask(99)])] == ["budget"]
        assert len(server.bodies) == 6


def test_failed_requests_that_may_have_been_computed_count(options, ask):
    """A request that breaks off counts as the largest so far; one that ends with an error status is free."""
    with JudgeServer(answer(), half, status(500), answer()) as server:
        endpoint = Endpoint(options(server, max_tokens=5, retries=3))
        endpoint.ask_many([ask(0), ask(1)])
    assert endpoint.used == Usage(30, 15)


# -- the key


@pytest.mark.parametrize("value", [None, "", " \n", "sk planted", "sk-ключ"])
def test_a_missing_key_stops_before_anything_is_sent(options, monkeypatch, value):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(ConfigError, match="JUDGE_KEY") as error:
        Endpoint(options("http://127.0.0.1:1/v1", api_key_env="JUDGE_KEY"))
    assert not value or not value.strip() or value not in str(error.value)


def test_the_test_servers_answer_has_the_form_of_a_real_one():
    """The test server must have the fields of a real server."""
    assert set(completion()) >= {"id", "object", "model", "choices", "usage"}


def test_spent_counts_requests_retries_and_stored_answers(options, ask, tmp_path):
    """Count a request that fails, its retry, a question that comes twice, and a second run with every answer stored."""
    priced = {"price_per_million": (2.0, 10.0), "cache": str(tmp_path), "concurrency": 1}
    with JudgeServer(status(503), answer("yes , A")) as server:
        endpoint = Endpoint(options(server, retries=1, backoff_s=0.0, **priced))
        endpoint.ask_many([ask(1), ask(1), ask(2)])
        spent = endpoint.spent()
        assert (spent["requests"], spent["retries"], spent["cached"]) == (3, 1, 1)
        assert spent["prompt_tokens"] >= 20
        assert spent["cost"] == pytest.approx(spent["prompt_tokens"] * 2e-6 + spent["completion_tokens"] * 10e-6)
        again = Endpoint(options(server, **priced))
        again.ask_many([ask(1), ask(2)])
    nothing = {"requests": 0, "retries": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0}
    assert again.spent() == {**nothing, "cached": 2}


def test_cost_is_none_without_prices(options, ask):
    with JudgeServer(answer("yes , A")) as server:
        endpoint = Endpoint(options(server))
        endpoint.ask_many([ask(1)])
    assert endpoint.spent()["cost"] is None and endpoint.spent()["requests"] == 1


@pytest.mark.parametrize(
    ("step", "record"),
    [
        (
            answer(message={"content": None, "refusal": "no"}),
            {"masked": "refused", "model": MODEL, "prompt_tokens": 10},
        ),
        (answer(" "), {"masked": "empty", "model": MODEL, "completion_tokens": 5}),
        (status(400), {}),
    ],
    ids=["refused", "empty", "nothing said"],
)
def test_unusable_answers_have_a_record_and_missing_ones_have_none(options, ask, step, record):
    with JudgeServer(step) as server:
        (unanswered,) = Endpoint(options(server, retries=0)).ask_many([ask(1)])
    actual = unanswered.record()
    assert actual.items() >= record.items() and bool(actual) == bool(record)
    assert not actual or actual["prompt_hash"] == unanswered.prompt_hash
