"""Which options make labels of another kind: each that decides a verdict does, and no other."""

from __future__ import annotations

import pytest

from rlaif.config.feedback import Label
from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.config.server import Server
from rlaif.errors import ContractError
from rlaif.feedback.store import Store
from rlaif.stages.feedback.judges import judge_name
from rlaif.stages.feedback.label_hash import check_label_hash, label_hash

MODEL, CODE = "org/judge", Function(path="world:judge")
SERVER = Server(url="http://127.0.0.1:1/v1", model="judge-1")


def changed(config: Config, **changes) -> Config:
    """`section__option=value`, `option=value` of the whole, or `server={option: value}`."""
    for name, value in changes.items():
        section, _, option = name.rpartition("__")
        if name == "server":
            section, option = "label", "judge"
            value = config.label.judge.model_copy(update=value)
        update = {option: value}
        if section:
            update = {section: getattr(config, section).model_copy(update=update)}
        config = config.model_copy(update=update)
    return config


def of(judge=MODEL, **options) -> Config:
    return Config(name="x", label=Label(judge=judge, **options))


DECIDE = {
    "judge": (of(), {"label__judge": "org/other"}),
    "method": (of(), {"label__method": "claims"}),
    "context": (of(), {"label__context": "none"}),
    "show_video": (of(), {"label__show_video": False}),
    "captions_template": (of(), {"label__captions_template": "seen: {captions}"}),
    "captions_separator": (of(), {"label__captions_separator": "\n"}),
    "max_caption_tokens": (of(), {"label__max_caption_tokens": 7}),
    "pairwise_prompt": (of(), {"label__pairwise_prompt": "{context}{a} {b}"}),
    "choices": (of(), {"label__choices": ("A", "B")}),
    "flips": (of(), {"label__flips": "average"}),
    "comparisons": (of(), {"label__comparisons": 2}),
    "split": (of(method="claims"), {"label__split": "model"}),
    "split_prompt": (of(method="claims", split="model"), {"label__split_prompt": "{answer}"}),
    "split_tokens": (of(method="claims", split="model"), {"label__split_tokens": 9}),
    "reject_at": (of(method="claims"), {"label__reject_at": 0.7}),
    "claim_prompt": (of(method="claims"), {"label__claim_prompt": "{context}{claim}"}),
    "yes_no": (of(method="claims"), {"label__yes_no": ("true", "false")}),
    "frames": (of(), {"video__num_frames": 4}),
    "frames of the judge": (of(SERVER), {"label__num_frames": 4}),
    "height": (of(), {"video__height": 64}),
    "width": (of(SERVER), {"video__width": 64}),
    "dtype": (of(), {"model__dtype": "float32"}),
    "another video's captions": (of(context="shuffled"), {"seed": 5}),
    "drawn comparisons": (of(comparisons=2), {"seed": 5}),
    "comparisons drawn for a function": (of(CODE, comparisons=2), {"seed": 5}),
    "comparisons of a function": (of(CODE), {"label__comparisons": 2}),
    "the server's model": (of(SERVER), {"server": {"model": "judge-2"}}),
    "where the server is": (of(SERVER), {"server": {"url": "http://127.0.0.1:2/v1"}}),
    "extra": (of(SERVER), {"server": {"extra": {"temperature": 1}}}),
    "top_logprobs": (of(SERVER), {"server": {"top_logprobs": 5}}),
    "a server's frames": (of(SERVER), {"video__num_frames": 4}),
}


@pytest.mark.parametrize("name", DECIDE)
def test_options_that_decide_verdicts_change_the_label_hash(name, tmp_path):
    config, changes = DECIDE[name]
    other = changed(config, **changes)
    assert label_hash(config) != label_hash(other)
    store = Store(tmp_path / "labels.jsonl", key=lambda row: row["prompt_id"])
    store.append([{"prompt_id": "p", "judge": "somebody", "kind": label_hash(config)}])
    before = store.path.read_bytes()
    check_label_hash(store, config)
    with pytest.raises(
        ContractError, match=r"some by somebody with other options(.|\n)*Set data\.labels to another file"
    ):
        check_label_hash(store, other)
    assert store.path.read_bytes() == before


DO_NOT = {
    "reference": (of(), {"label__reference": "a:b"}),
    "seed": (of(), {"seed": 5}),
    "threads": (of(), {"video__decode_threads": 3}),
    "the other method's prompt": (of(), {"label__claim_prompt": "{claim}?"}),
    "the other method's words": (of(method="claims"), {"label__choices": ("A", "B")}),
    "drawn, but of claims": (of(method="claims", comparisons=2), {"seed": 5}),
    "a list that no judge is asked for": (of(method="claims"), {"label__split_prompt": "{answer}"}),
    "claims that no judge is asked about": (of(), {"label__reject_at": 0.7}),
    "captions that nobody reads": (of(context="none"), {"label__max_caption_tokens": 7}),
    "frames that nobody sees": (of(show_video=False), {"video__num_frames": 4, "label__num_frames": 2}),
    "frames that others see": (of(num_frames=4), {"video__num_frames": 16}),
    "as many frames as before": (of(), {"label__num_frames": Config(name="x").video.num_frames}),
    "a server's dtype is its own": (of(SERVER), {"model__dtype": "float32"}),
    "retries": (
        of(SERVER),
        {"server": {"retries": 9, "timeout_s": 5.0, "concurrency": 1, "backoff_s": 3.0, "max_backoff_s": 9.0}},
    ),
    "budgets": (of(SERVER), {"server": {"token_budget": 9, "cost_budget": 1.0, "price_per_million": (1.0, 2.0)}}),
    "the key": (of(SERVER), {"server": {"api_key_env": "KEY", "max_images": 9, "give_up_after": 3}}),
    "code sees no frames": (of(CODE), {"video__num_frames": 4, "model__dtype": "float32"}),
    "code reads no context": (of(CODE, context="shuffled"), {"seed": 5, "label__max_caption_tokens": 7}),
}


@pytest.mark.parametrize("name", DO_NOT)
def test_options_that_decide_no_verdict_keep_the_label_hash(name):
    config, changes = DO_NOT[name]
    assert label_hash(config) == label_hash(changed(config, **changes))


def test_a_server_that_moves_keeps_its_labels():
    here = of(SERVER.model_copy(update={"origin": "ours"}))
    assert label_hash(here) == label_hash(changed(here, server={"url": "http://127.0.0.1:2/v1"}))


@pytest.mark.parametrize("change", ["none", "other weights", "other options"])
def test_a_judge_whose_model_moves_keeps_its_labels(tmp_path, change):
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("weights")
    here = of(str(folder))
    store = Store(tmp_path / "labels.jsonl", key=lambda row: row["prompt_id"])
    store.append([{"prompt_id": "p", "judge": judge_name(str(folder)), "kind": label_hash(here)}])
    folder.rename(tmp_path / "moved")
    there = of(str(tmp_path / "moved"), **({"context": "none"} if change == "other options" else {}))
    if change == "none":
        return check_label_hash(store, there)
    if change == "other weights":
        (tmp_path / "moved" / "model.safetensors").write_text("others")
    with pytest.raises(ContractError, match="with other options"):
        check_label_hash(store, there)


EXTRA = {"chat_template_kwargs": {"enable_thinking": False}}
OF_EARLIER_RELEASES = {
    "plain": ({}, "9cbb00b879d5158f", "ccd3bff27f328e38"),
    "a slash at the end": ({"url": "http://127.0.0.1:1/v1/"}, "78ab3508411a1290", "a8b8f2609e890181"),
    "origin": ({"origin": "ours"}, "d63c3095fe6facd8", "3d6e3eb9f0dc8557"),
    "more": (
        {"url": "https://judge.example/v1/", "extra": EXTRA, "top_logprobs": 5, "token_budget": 9},
        "4b5b497671f3c1cc",
        "dbb6f38ffe5ad7d1",
    ),
}


@pytest.mark.parametrize("name", OF_EARLIER_RELEASES)
def test_labels_of_earlier_releases_keep_their_hash(name):
    """With another number nobody could add to a file that a server has labelled."""
    changes, pairwise, claims = OF_EARLIER_RELEASES[name]
    judge = {"url": "http://127.0.0.1:1/v1", "model": "judge-1"} | changes
    assert (label_hash(of(judge)), label_hash(of(judge, method="claims"))) == (pairwise, claims)


def test_every_option_is_listed_as_deciding_or_not():
    """An option that is added later is put where it belongs."""
    of_label, of_server = set(), {"origin"}
    for _, changes in [*DECIDE.values(), *DO_NOT.values()]:
        of_label |= {name.split("__")[1] for name in changes if "label" in name}
        of_server |= changes.get("server", {}).keys()
    assert of_label == set(Label.model_fields)
    assert of_server == set(Server.model_fields)


def test_the_error_names_the_options(tmp_path):
    store = Store(tmp_path / "labels.jsonl", key=lambda row: row["prompt_id"])
    store.append([{"prompt_id": "p", "judge": "somebody", "kind": "0"}])
    with pytest.raises(ContractError) as caught:
        check_label_hash(store, of(SERVER, context="shuffled"))
    for name in ("video.num_frames", "label.judge.extra", "label.context", "label.pairwise_prompt", "seed"):
        assert name in caught.value.expected
    with pytest.raises(ContractError, match=r"model\.dtype"):
        check_label_hash(store, of())
