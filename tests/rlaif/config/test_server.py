"""Invalid options of a judge's server: reported when the configuration is loaded, without showing secrets."""

from __future__ import annotations

import traceback

import pytest
import yaml
from pydantic import ValidationError

from rlaif.config.load import load_config
from rlaif.config.section import Function
from rlaif.config.server import Server
from rlaif.errors import ConfigError

SECRET = "hunter2"
GOOD = {"url": "http://host/v1", "model": "m"}


@pytest.fixture
def load(tmp_path):
    """Return load(judge, *overrides), which gives the configuration with this `label.judge`."""

    def make(judge=None, *overrides):
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump({"name": "x", "label": {} if judge is None else {"judge": judge}}))
        return load_config(file, list(overrides), "ppo")

    return make


def problems(error) -> list[str]:
    return [line.strip()[2:] for line in error.value.found.splitlines()[1:]]


# Changed options, the option that the problem must name, and words that it must hold.
NONSENSE = {
    "ftp": ({"url": "ftp://127.0.0.1/v1"}, "url: ", "neither http:// nor https://"),
    "file": ({"url": "file:///etc/passwd"}, "url: ", "neither http:// nor https://"),
    "a secret": ({"url": SECRET}, "url: ", "neither http:// nor https://"),
    "no host": ({"url": "http:///v1"}, "url: ", "no host"),
    "port": ({"url": f"http://{SECRET}:99999/v1"}, "url: ", "a host or port"),
    "port 0": ({"url": "http://host:0/v1"}, "url: ", "port 0"),
    "whole path": ({"url": "http://host/v1/chat/completions/"}, "url: ", "chat/completions"),
    "user": ({"url": f"http://me:{SECRET}@host/v1"}, "url: ", "a user, query or fragment"),
    "empty user": ({"url": f"http://:{SECRET}@host/v1"}, "url: ", "a user, query or fragment"),
    "query": ({"url": f"http://host/v1?key={SECRET}"}, "url: ", "a user, query or fragment"),
    "fragment": ({"url": f"http://host/v1#{SECRET}"}, "url: ", "a user, query or fragment"),
    "no text": ({"url": [f"http://me:{SECRET}@host"]}, "url: ", "valid string"),
    "key for its name": ({"api_key_env": f"sk-{SECRET}"}, "api_key_env: ", "NAME of an environment variable"),
    "keys": ({"api_key_env": {"sk": SECRET}}, "api_key_env: ", "valid string"),
    "misnamed key": ({"api_key": SECRET}, "api_key: ", "nearest is `label.judge.api_key_env`"),
    "timeout": ({"timeout_s": 0}, "timeout_s: ", "(found 0)"),
    "nan": ({"timeout_s": float("nan")}, "timeout_s: ", "(found nan)"),
    "retries": ({"retries": -1}, "retries: ", "(found -1)"),
    "concurrency": ({"concurrency": 0}, "concurrency: ", "(found 0)"),
    "max_images": ({"max_images": 0}, "max_images: ", "(found 0)"),
    "top_logprobs": ({"top_logprobs": 0}, "top_logprobs: ", "(found 0)"),
    "backoff": ({"backoff_s": float("inf")}, "backoff_s: ", "(found inf)"),
    "tokens": ({"token_budget": -1}, "token_budget: ", "(found -1)"),
    "money": ({"cost_budget": -1.0, "price_per_million": [1, 2]}, "cost_budget: ", "(found -1.0)"),
    "prices": ({"price_per_million": [1, -2], "cost_budget": 1.0}, "price_per_million.1: ", "(found -2)"),
    "no prices": ({"cost_budget": 1.5}, "cost_budget: ", "needs price_per_million"),
    "field of ours": ({"extra": {"n": 2, "user": SECRET}}, "extra: ", "must not set n:"),
    "no fields": ({"extra": [SECRET]}, "extra: ", "valid dictionary"),
    "no names": ({"extra": {1: SECRET}}, "extra.1", "valid string"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_invalid_option_is_one_problem_without_the_secret(load, name):
    changes, option, words = NONSENSE[name]
    with pytest.raises(ConfigError) as error:
        load(GOOD | {"extra": {"user": SECRET}} | changes)
    (problem,) = problems(error)
    assert problem.startswith(f"label.judge.{option}") and words in problem
    text = traceback.TracebackException.from_exception(error.value).format(chain=True)
    assert SECRET not in repr(error.value) + "".join(text)
    assert error.value.__cause__ is None and error.value.__context__ is None
    with pytest.raises(ValidationError) as error:  # built by code
        Server(**GOOD | changes)
    assert SECRET not in str(error.value)


def test_missing_option_is_reported_without_the_other_values(load):
    with pytest.raises(ConfigError) as error:
        load({"url": f"http://me:{SECRET}@host/v1"})
    url, model = problems(error)
    assert url.startswith("label.judge.url: needs an address") and model == "label.judge.model: Field required"
    assert SECRET not in str(error.value)


def test_invalid_override_is_one_problem_without_the_secret(load):
    with pytest.raises(ConfigError) as error:
        load(GOOD, "label.judge.url=nonsense")
    (problem,) = problems(error)
    assert problem.startswith("label.judge.url: needs an address") and "found neither http:// nor" in problem
    with pytest.raises(ConfigError, match=r"label\.judge\.url: .*no host"):
        load(GOOD, "label.judge.url=http://{run}/v1")  # what becomes of it when the run's folder stands there
    with pytest.raises(ConfigError, match=r"YAML value for label\.judge\.api_key_env") as error:
        load(GOOD, f"label.judge.api_key_env=@{SECRET}")
    assert SECRET not in str(error.value)
    for override in (f"label.judge.api_key=@{SECRET}", f"label.judge={{url: x, api_key_env: @{SECRET}}}"):
        with pytest.raises(ConfigError, match="line 1, column") as error:
            load(GOOD, override)
        assert SECRET not in str(error.value) and error.value.__cause__ is None


@pytest.mark.parametrize("judge", [7, ["org/model"], {"pth": SECRET}, {1: SECRET}, {}, [{"url": SECRET}]], ids=str)
def test_judge_of_no_known_kind_is_one_problem(load, judge):
    with pytest.raises(ConfigError) as error:
        load(judge)
    (problem,) = problems(error)
    assert problem.startswith("label.judge: needs a model (text), a server ({url: ..., model: ...}) or a function")
    assert SECRET not in problem


def test_problem_of_a_function_names_the_function(load):
    with pytest.raises(ConfigError) as error:
        load({"path": "a:b", "pth": "a:c"})
    assert problems(error) == ["label.judge.pth: no such option; nearest is `label.judge.path`"]
    with pytest.raises(ConfigError) as error:
        load({"path": "a:b", "urll": "x"})
    assert problems(error) == ["label.judge.urll: no such option; nearest is `label.judge.url`"]


def test_judge_kind_follows_from_its_options(load):
    assert load("org/model").label.judge == "org/model"
    assert load({"path": "a:b"}).label.judge == Function(path="a:b")
    options = GOOD | {
        "api_key_env": "JUDGE_KEY",
        "cost_budget": 1.0,
        "price_per_million": [2, 8],
        "extra": {"top_p": 1},
    }
    config = load(options)
    assert config.label.judge == Server(**options)
    assert load(config.model_dump(mode="json")["label"]["judge"]) == config
    assert load("org/model", "label.judge.url=http://h/v1", "label.judge.model=m").label.judge.timeout_s == 60


def test_address_has_no_slash_at_its_end():
    # Labels are stored under `url`, replies under `address`.
    server = Server(url="http://host/v1/", model="m")
    assert (server.url, server.address) == ("http://host/v1/", "http://host/v1")


def test_repr_of_a_server_hides_secrets():
    text = repr(Server(url=f"http://{SECRET}/v1", model="m", api_key_env=SECRET, extra={"user": SECRET}))
    assert SECRET not in text and "model='m'" in text
