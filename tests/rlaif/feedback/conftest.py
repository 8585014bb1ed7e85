"""Fixtures: questions to a judge, and options of a server without long waits."""

import pytest
from judge_server import MODEL

from rlaif.config.server import Server
from rlaif.feedback.chat_request import ChatRequest, EndpointOptions, Turn


@pytest.fixture
def options():
    """Return a function that makes the options of a server and of a stage, with short waits unless changed."""

    def of(server, **changes) -> EndpointOptions:
        url = server if isinstance(server, str) else server.url
        quick = {
            "model": MODEL,
            "timeout_s": 5.0,
            "retries": 1,
            "backoff_s": 0.01,
            "max_backoff_s": 2.0,
            "concurrency": 1,
        }
        of_stage = {}
        for name in ("max_tokens", "temperature", "cache"):
            if name in changes:
                of_stage[name] = changes.pop(name)
        return EndpointOptions(Server(**{"url": url, **quick, **changes}), **of_stage)

    return of


@pytest.fixture
def ask():
    """Return a function that makes question number `n`, without images."""

    def of(n=0, choices=(), **changes) -> ChatRequest:
        return ChatRequest(**{"key": ("p", n), "turns": (Turn(f"question {n} ?"),), "choices": choices, **changes})

    return of
