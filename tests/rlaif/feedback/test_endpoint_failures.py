"""The judge's client against a server that fails: failures that are retried, masked, or stop the run; and secrets."""

from __future__ import annotations

import gc
import json
import logging
import pickle
import socket
import ssl
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

import pytest
from judge_server import JudgeServer, answer, completion, half, hang_up, raw, stall, status, trickle

from rlaif.errors import ConfigError, ContractError, RlaifError
from rlaif.feedback.chat_client import retry_after
from rlaif.feedback.chat_response import Reply, Unanswered
from rlaif.feedback.endpoint import Endpoint, backoff_seconds

BUSY = {"error": {"message": "slow down", "type": "rate_limit"}}


def without(name: str) -> bytes:
    """Return a completion without one of its fields."""
    return json.dumps({key: value for key, value in completion().items() if key != name}).encode()


RECOVERS = {
    "500": status(500),
    "502 of a proxy": status(502, b"<html>bad gateway</html>"),
    "503": status(503, retry_after="0"),
    "429": status(429, BUSY, retry_after="0.1"),
    "408": status(408),
    "slow": stall,
    "trickle": trickle,
    "garbage": raw(b"<html>hello</html>"),
    "nothing": raw(b""),
    "half": half,
    "hang up": hang_up,
}


@pytest.mark.parametrize("name", RECOVERS)
def test_a_transient_failure_is_retried(options, ask, name):
    with JudgeServer(RECOVERS[name], answer("fine")) as server:
        (reply,) = Endpoint(options(server, timeout_s=1.0)).ask_many([ask()])
    assert isinstance(reply, Reply), reply
    assert reply.text == "fine" and len(server.bodies) == 2


# name -> (what the server does, changes of the options, kind, words of the reason, requests that it takes)
MASKED = {
    "slow": (stall, {"timeout_s": 0.2}, "slow", "0.2 s", 2),
    "trickle": (trickle, {"timeout_s": 0.3}, "slow", "0.3 s", 2),
    "500": (status(500, {"error": {"message": "out of\nmemory"}}), {}, "server error", "500: out of memory", 2),
    "429": (status(429, BUSY, retry_after="0"), {"retries": 3}, "busy", "429: slow down", 4),
    "400": (status(400, {"error": {"message": "too long"}}), {}, "rejected", "400: too long", 1),
    "400 in another form": (status(400, {"detail": "too long"}), {}, "rejected", "400: too long", 1),
    "400 as text": (status(400, b"too long"), {}, "rejected", "400: too long", 1),
    "204": (status(204, b""), {}, "garbled", "204", 1),
    "garbage": (raw(b"\xff\x00 no"), {}, "garbled", "not JSON", 2),
    "list": (raw(b"[]"), {}, "garbled", "another form", 1),
    "no choices": (raw(without("choices")), {}, "garbled", "choices", 1),
    "empty choices": (answer(top={"choices": []}), {}, "garbled", "choices", 1),
    "no usage": (raw(without("usage")), {}, "garbled", "usage", 1),
    "usage below zero": (
        answer(top={"usage": {"prompt_tokens": -9, "completion_tokens": 1}}),
        {},
        "garbled",
        "prompt_tokens",
        1,
    ),
    "no model": (raw(without("model")), {}, "garbled", "model", 1),
    "text is a number": (answer(7), {}, "garbled", "content", 1),
    "half": (half, {}, "down", "connection broke", 2),
    "hang up": (hang_up, {}, "down", "connection broke", 2),
    "huge": (answer("x" * 2**22), {}, "garbled", "more than 4194304 bytes", 1),
    "no text": (answer(None), {}, "empty", "empty", 1),
    "blank": (answer(" \n"), {}, "empty", "empty", 1),
    "refusal": (answer(message={"content": None, "refusal": "I can't"}), {}, "refused", "I can't", 1),
    "filter": (answer("A", finish_reason="content_filter"), {}, "refused", "filter", 1),
    "length": (answer("because", finish_reason="length"), {}, "cut", "max_tokens", 1),
}


@pytest.mark.parametrize("name", MASKED)
def test_a_question_without_an_answer_is_masked_with_its_reason(options, ask, name):
    step, changes, kind, words, requests = MASKED[name]
    with JudgeServer(step) as server:
        (masked,) = Endpoint(options(server, **changes)).ask_many([ask(4)])
    assert isinstance(masked, Unanswered), masked
    assert (masked.key, masked.kind) == (("p", 4), kind)
    assert words in masked.reason and len(masked.prompt_hash) == 64
    assert len(server.bodies) == requests


@pytest.mark.parametrize(
    "logprobs", [None, {"content": None}, {"content": []}, {"content": [{"token": "A", "logprob": float("nan")}]}]
)
def test_missing_logprobs_mask_the_question_and_are_not_stored(options, ask, logprobs, tmp_path):
    with JudgeServer(answer("A", logprobs=logprobs), answer("A")) as server:
        endpoint = Endpoint(options(server, cache=str(tmp_path)))
        (masked,) = endpoint.ask_many([ask(choices=("A", "B"))])
        assert masked.kind == "no log-probs"
        assert dict(endpoint.ask_many([ask(choices=("A", "B"))])[0].first)["A"] == pytest.approx(-0.2)


def test_a_refusal_masks_a_question_with_choices(options, ask):
    with JudgeServer(answer("A", finish_reason="content_filter")) as server:
        assert Endpoint(options(server)).ask_many([ask(choices=("A",))])[0].kind == "refused"


@pytest.mark.parametrize(
    ("name", "stored"), [("refusal", 1), ("filter", 1), ("length", 1), ("no text", 0), ("no usage", 0)]
)
def test_the_models_own_refusals_are_stored(options, ask, name, stored, tmp_path):
    with JudgeServer(MASKED[name][0]) as server:
        kinds = [Endpoint(options(server, cache=str(tmp_path))).ask_many([ask()])[0].kind for _ in range(2)]
    assert kinds == [MASKED[name][2]] * 2
    assert len(server.bodies) == 2 - stored


def test_a_server_that_is_down_masks_the_question(options, ask):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound, but not listening
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        (masked,) = Endpoint(options(url)).ask_many([ask()])
    assert masked.kind == "down" and url in masked.reason


def test_questions_after_too_many_unanswered_ones_are_not_sent(options, ask):
    with JudgeServer(status(503)) as server:
        endpoint = Endpoint(options(server, give_up_after=3))
        outcomes = endpoint.ask_many([ask(n) for n in range(10)])
        assert [one.kind for one in outcomes] == ["server error"] * 3 + ["given up"] * 7
        assert "503" in outcomes[-1].reason
        assert len(server.bodies) == 6
        assert endpoint.ask_many([ask(0)])[0].kind == "server error"  # a later call tries anew


def test_an_answer_in_between_restarts_the_count_of_unanswered_questions(options, ask):
    with JudgeServer(*[status(503), status(503), answer()] * 4) as server:
        outcomes = Endpoint(options(server, give_up_after=3, retries=0)).ask_many([ask(n) for n in range(12)])
    assert [isinstance(one, Reply) for one in outcomes] == [False, False, True] * 4


# name -> (what the server does, the error, words in it)
STOPS = {
    "401": (status(401, {"error": {"message": "Incorrect API key sk-plan***nted"}}), ConfigError, "JUDGE_KEY"),
    "403": (status(403), ConfigError, "JUDGE_KEY"),
    "402": (status(402), ConfigError, "account"),
    "404 model": (
        status(404, {"error": {"message": "The model `judge-1` does not exist."}}),
        ConfigError,
        "does not exist",
    ),
    "404 path": (status(404, {"detail": "Not Found"}), ConfigError, "/v1"),
    "redirect": (status(307, b"", location="http://127.0.0.1:1/elsewhere"), ConfigError, "redirect"),
    "another model": (answer(top={"model": "judge-2"}), ContractError, "judge-2"),
}


@pytest.mark.parametrize("name", STOPS)
def test_a_permanent_error_stops_the_run_and_stores_earlier_answers(options, ask, name, monkeypatch, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", "sk-planted")
    step, error, words = STOPS[name]
    with JudgeServer(answer(), answer(), step, answer()) as server:
        settings = options(server, api_key_env="JUDGE_KEY", cache=str(tmp_path))
        endpoint = Endpoint(settings)
        with pytest.raises(error, match=words) as raised:
            endpoint.ask_many([ask(n) for n in range(5)])
        assert "sk-plan" not in str(raised.value)
        assert len(server.bodies) == 3  # no retry, and no further question
        assert endpoint.used.total == (45 if name == "another model" else 30)
        for again in (endpoint, Endpoint(settings)):
            replies = again.ask_many([ask(n) for n in range(2)])
            assert [one.cached for one in replies] == [True, True]


def test_open_requests_are_waited_for_after_an_error(options, ask):
    def by(body):
        return status(401) if "question 0" in body["messages"][0]["content"] else answer(delay=0.3)

    with JudgeServer(by=by) as server:
        endpoint = Endpoint(options(server, concurrency=3))
        with pytest.raises(ConfigError, match="api_key_env"):
            endpoint.ask_many([ask(n) for n in range(9)])
        count = len(server.bodies)
        assert count <= 3
        replies = endpoint.ask_many([ask(n) for n in range(1, count)])
        assert [one.cached for one in replies] == [True] * (count - 1)


def test_nothing_is_retried_after_an_error(options, ask):
    def by(body):
        if "question 0" in body["messages"][0]["content"]:
            return lambda *args: (time.sleep(0.2), status(401)(*args))
        return status(503, retry_after="0.5")

    with JudgeServer(by=by) as server, pytest.raises(ConfigError, match="401"):
        Endpoint(options(server, concurrency=2, retries=50)).ask_many([ask(0), ask(1)])
    assert len(server.bodies) == 2


# -- waiting


def test_retry_after_is_honoured_and_bounded(options, ask):
    with JudgeServer(status(429, BUSY, retry_after="0.5"), status(503, retry_after="3600"), answer()) as server:
        (reply,) = Endpoint(options(server, retries=2, max_backoff_s=0.7)).ask_many([ask()])
    assert reply.text == "A"
    first, second = (after - before for before, after in zip(server.times, server.times[1:], strict=False))
    assert first >= 0.5 and 0.7 <= second < 60


def test_backoff_doubles_is_drawn_and_has_a_limit(options):
    limits = options("http://h/v1", backoff_s=1.0, max_backoff_s=10.0).server
    assert [backoff_seconds(limits, n, None, 0.5) for n in range(6)] == [0.5, 1, 2, 4, 8, 10]
    assert backoff_seconds(limits, 3, None, 0.0) == 0
    assert backoff_seconds(limits, 0, 5.0, 0.5) == 5
    assert backoff_seconds(limits, 5, 5.0, 0.5) == 10


NOW = datetime(2025, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("-5", 0),
        ("1.5", 1.5),
        ("Wed, 01 Jan 2025 12:00:30 GMT", 30),
        ("Wed, 01 Jan 2025 11:00:00 GMT", 0),
    ],
)
def test_retry_after_reads_seconds_and_dates(value, seconds):
    assert retry_after(value, NOW) == seconds


# -- secrets and safety

KEY = "sk-planted-7f3a9c"
ECHO = {"error": {"message": f"you sent Bearer {KEY}", "detail": KEY}}
LEAKS = [
    answer(f"your key is {KEY}"),
    answer(message={"content": None, "refusal": KEY}),
    answer(top={"model": KEY}),
    *(status(code, ECHO) for code in (400, 401, 403, 404, 429, 500)),
    status(302, KEY.encode(), location=f"http://127.0.0.1:1/{KEY}"),
    raw(KEY.encode()),
    raw(json.dumps({KEY: KEY}).encode()),
    half,
    hang_up,
    trickle,
]


def everything_visible(error: BaseException) -> str:
    """Return everything that a log, a debugger or another process may see of an error."""
    trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    return "".join([str(error), repr(error), *trace.format(chain=True), pickle.dumps(error).decode("latin-1")])


@pytest.mark.parametrize("step", range(len(LEAKS)))
def test_the_key_appears_in_no_error_log_or_file(options, ask, step, monkeypatch, caplog, capfd, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with JudgeServer(LEAKS[step]) as server:
        endpoint = Endpoint(options(server, api_key_env="JUDGE_KEY", cache=str(tmp_path), timeout_s=2.0, retries=0))
        try:
            visible = [repr(one) + repr(one.__dict__) for one in endpoint.ask_many([ask()])]
        except RlaifError as error:
            assert error.__cause__ is None and error.__context__ is None
            visible = [everything_visible(error)]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    visible += [
        repr(endpoint),
        repr(vars(endpoint)),
        repr(endpoint.options),
        pickle.dumps(endpoint.options).decode("latin-1"),
    ]
    visible += [record.getMessage() + repr(record.args) for record in caplog.records]
    visible += [path.name + path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    visible += capfd.readouterr()
    assert [text for text in visible if KEY in text] == []


def test_an_untrusted_certificate_is_an_error_before_anything_is_sent(options, ask, monkeypatch, tmp_path):
    """The key must never reach a server that answers in place of the real one."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    try:
        paths = ["-keyout", str(key), "-out", str(certificate)]
        subprocess.run([*command.split(), *paths], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no openssl")
    with JudgeServer(answer()) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
        settings = options(server.url.replace("http:", "https:"), api_key_env="JUDGE_KEY")
        with pytest.raises(ConfigError, match="certificate") as raised:
            Endpoint(settings).ask_many([ask()])
        assert server.bodies == [] and KEY not in everything_visible(raised.value)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))  # an authority of one's own is trusted
        assert Endpoint(settings).ask_many([ask()])[0].text == "A"


def test_a_redirect_is_not_followed(options, ask):
    with JudgeServer(answer()) as elsewhere, JudgeServer(status(307, b"", location=elsewhere.url)) as server:
        with pytest.raises(ConfigError, match="redirect"):
            Endpoint(options(server)).ask_many([ask()])
        assert elsewhere.bodies == []


def test_a_huge_answer_is_not_read_to_its_end(options, ask):
    sizes = []

    def endless(handler, body):
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**9))
        handler.end_headers()
        for _ in range(10**4):
            handler.wfile.write(b"x" * 10**5)
            sizes.append(10**5)

    with JudgeServer(endless) as server:
        (masked,) = Endpoint(options(server)).ask_many([ask()])
    assert masked.kind == "garbled" and sum(sizes) < 10**8  # what fits between the two


def test_no_connection_is_left_open(options, ask, recwarn):
    with JudgeServer(stall) as server:
        Endpoint(options(server, timeout_s=0.1, retries=0)).ask_many([ask()])
    gc.collect()
    assert [str(one.message) for one in recwarn if one.category is ResourceWarning] == []


def test_the_endpoint_imports_no_ray_vllm_or_torch():
    code = "import sys, rlaif.feedback.endpoint; print({'ray', 'vllm', 'torch', 'transformers'} & set(sys.modules))"
    root = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
