"""The judge's client against a real server: vLLM with a tiny model on this machine, with an API key."""

from __future__ import annotations

import json

import numpy as np
import pytest
from vllm_server import KEY, serving

from rlaif.errors import ConfigError
from rlaif.feedback.chat_request import ChatRequest, Turn, encode_frames
from rlaif.feedback.chat_response import Reply, Usage
from rlaif.feedback.endpoint import Endpoint
from rlaif.feedback.tokens import choice_logprobs

pytestmark = pytest.mark.slow  # a server's start, and an engine's: about a minute

CHOICES = ("yes", "no")
QUESTION = "is there a red circle ?"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from rlaif.models.tiny import build_tiny
    from rlaif.worlds.shapes.language import WORDS

    return build_tiny(tmp_path_factory.mktemp("tiny"), WORDS)


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    with serving(model, tmp_path_factory.mktemp("server") / "log") as server:
        yield server.url


@pytest.fixture
def options(options, url, model, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    # The whole vocabulary, so that no choice is missing; a larger number ends vLLM's engine.
    top = json.loads((model / "config.json").read_text())["text_config"]["vocab_size"]
    plain = {"model": "tiny", "api_key_env": "JUDGE_KEY", "max_tokens": 1, "top_logprobs": top}
    patient = {"retries": 0, "timeout_s": 120.0, "concurrency": 8}
    return lambda **changes: options(url, **{**plain, **patient, **changes})


def clip(seed: int) -> np.ndarray:
    """Return [8, 56, 56, 3] uint8: coarse noise."""
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 7, 7, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def about(seed: int | None, words: str = QUESTION) -> ChatRequest:
    """Return a question about a clip; without one if there is no seed."""
    turn = Turn(words) if seed is None else Turn(words, images=encode_frames(clip(seed)))
    return ChatRequest(seed, (turn,), CHOICES, seed=1)


def values(reply) -> np.ndarray:
    """Return the log-probs of CHOICES."""
    assert isinstance(reply, Reply), reply
    logprobs = choice_logprobs(reply.first, CHOICES)
    return np.array([logprobs[choice] for choice in CHOICES], float)


def test_logprobs_of_choices_equal_those_of_the_engine(options, model):
    """Compare with the engine in this process: the same template gives the same log-probs."""
    from transformers import AutoProcessor

    from actors.engine import Engine, EngineSpec, Request
    from rlaif.config.cluster import Rollout
    from rlaif.config.schema import Sampling

    (reply,) = Endpoint(options(temperature=0.7)).ask_many([about(None)])
    processor = AutoProcessor.from_pretrained(model)
    chat = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    rendered = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    request = Request(processor.tokenizer(rendered)["input_ids"])
    engine = Engine(
        EngineSpec(str(model), "float32", rollout=Rollout(max_model_len=256, cpu_kv_cache_gib=0.1, max_num_seqs=8))
    )
    ids = [processor.tokenizer.convert_tokens_to_ids(choice) for choice in CHOICES]
    own = engine.logprobs([request] * 2, [[token] for token in ids], Sampling(), 0)
    np.testing.assert_allclose(values(reply), np.concatenate(own), atol=2e-5)


def test_other_frames_give_other_logprobs(options):
    """Nothing is stored between the calls: the same frames give the same log-probs, other frames others."""
    asks = [about(None), about(1), about(2)]

    def measure():
        replies = Endpoint(options()).ask_many(asks)
        return np.stack([values(reply) for reply in replies])

    first, second = measure(), measure()
    np.testing.assert_allclose(first, second, atol=2e-5)
    differences = np.abs(first[:, None] - first[None]).max(-1)
    assert differences[np.triu_indices(len(asks), 1)].min() > 1e-3


def test_a_reply_has_model_usage_and_latency(options, tmp_path):
    settings = options(cache=str(tmp_path))
    (reply,) = Endpoint(settings).ask_many([about(1)])
    assert reply.model == "tiny" and reply.usage.completion_tokens == 1
    assert reply.usage.prompt_tokens > 8  # every frame has visual tokens
    assert reply.latency_s > 0
    again = Endpoint(settings)
    (stored,) = again.ask_many([about(1)])
    assert stored.cached and stored.first == reply.first and again.used == Usage()


def test_concurrent_questions_get_their_own_answers(options):
    texts = ("is there a circle ?", "a red square ?", "what moves ?", "yes .")
    asks = [about(None, words=text) for text in texts] * 3
    together = Endpoint(options(concurrency=12)).ask_many(asks)
    alone = [values(Endpoint(options()).ask_many([ask])[0]) for ask in asks[:4]]
    np.testing.assert_allclose(np.stack([values(reply) for reply in together]), np.stack(alone * 3), atol=2e-5)


@pytest.mark.parametrize("wrong", ["sk-of-somebody-else", None])
def test_a_wrong_or_missing_key_is_an_error(options, monkeypatch, wrong):
    monkeypatch.setenv("JUDGE_KEY", wrong or "")
    with pytest.raises(ConfigError, match="401") as error:
        Endpoint(options(**{} if wrong else {"api_key_env": None})).ask_many([about(None)])
    assert str(error.value).count("JUDGE_KEY" if wrong else "api_key_env") and str(wrong) not in str(error.value)


def test_a_model_that_is_not_served_is_an_error(options):
    with pytest.raises(ConfigError, match=r"404.*does not exist"):
        Endpoint(options(model="big")).ask_many([about(None)])


def test_declined_and_cut_requests_are_masked(options):
    declined, cut = Endpoint(options()).ask_many(
        [about(None, words="red " * 300), ChatRequest("free", (Turn(QUESTION),))]  # too long; one token of free text
    )
    assert declined.kind == "rejected" and "256" in declined.reason
    assert cut.kind in ("cut", "empty")
