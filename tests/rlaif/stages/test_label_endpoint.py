"""`rlaif label` through a real server: vLLM's own, on this machine, with the model that is also asked directly."""

from __future__ import annotations

import json

import numpy as np
import pytest
from vllm_server import KEY, NAME, serving

from rlaif.stages.feedback import label, sample
from rlaif.stages.run.run import open_run
from rlaif.worlds.shapes.language import COMPARE, VERIFY

pytestmark = pytest.mark.slow  # two starts of a server, one of an engine: about two minutes

SPLIT = "rlaif.worlds.shapes.language:split"
METHODS = {
    "claims": ("label.method=claims", f"label.split={SPLIT}", f"label.claim_prompt='{{context}}{VERIFY}'"),
    "pairwise": ("label.method=pairwise", f"label.pairwise_prompt='{{context}}{COMPARE}'"),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def configured(world, make_config, tmp_path_factory):
    """configured(url, *overrides) -> Config; without a url the judge is the model itself."""
    folder = tmp_path_factory.mktemp("endpoint")
    base = f"{world}/base"
    # of the whole vocabulary, so that no choice is missing
    top = json.loads((world / "base" / "config.json").read_text())["text_config"]["vocab_size"]
    plain = [
        *(f"candidates.models=[{base}]", "candidates.prompts=[descriptions.jsonl]", "candidates.per_model=3"),
        *("candidates.max_tokens=8", "label.show_video=false", "label.captions_template='context : {captions}\n'"),
        "ppo.lora=null",
    ]

    def make(url: str | None, *overrides: str):
        server = f"url: '{url}', model: {NAME}, api_key_env: JUDGE_KEY, origin: judge, top_logprobs: {top}"
        judge = "{" + server + ", retries: 0, timeout_s: 60, backoff_s: 0}" if url else base
        return make_config(folder, *plain, f"label.judge={judge}", *overrides)

    return make


@pytest.fixture(scope="module")
def sampled(configured):
    """Return a run that has candidates, and the labels of the model when it is asked directly."""
    with open_run(configured(None)) as run:
        sample.sample(configured(None), run)
        direct = {}
        for name, method in METHODS.items():
            config = configured(None, *method, f"data.labels={{run}}/direct_{name}.jsonl")
            label.label(config, run)
            direct[name] = label.open_labels(config).rows()
        yield run, direct


def log_odds(rows: list[dict]) -> list[float]:
    of_pairs, of_claims = [], []
    for row in rows:
        for pair in row.get("pairs", ()):
            of_pairs += [order["log_odds"] for order in pair["orders"]]
        for answer in row.get("claims", ()):
            of_claims += [float(np.log(claim["p_yes"] / claim["p_no"])) for claim in answer]
    return of_pairs + of_claims


def test_a_server_gives_the_models_labels_and_losing_it_costs_only_the_remaining_prompts(
    sampled, configured, world, tmp_path, monkeypatch, caplog
):
    run, direct = sampled
    with serving(world / "base", tmp_path / "log") as server:
        for name, method in METHODS.items():
            config = configured(server.url, *method, f"data.labels={{run}}/served_{name}.jsonl")
            report = label.label(config, run)
            rows = label.open_labels(config).rows()
            assert report["masked"] == {} and report["again"] == 0 and report["judge"] == f"{NAME} at judge"
            result, wanted = np.array(log_odds(rows)), np.array(log_odds(direct[name]))
            assert len(result) == len(wanted) > 20 and np.abs(wanted).max() > 0.01
            np.testing.assert_allclose(result, wanted, atol=1e-4)
        shown = configured(server.url, *METHODS["pairwise"], "data.labels={run}/shown.jsonl", "label.show_video=true")
        assert label.label(shown, run)["position"]["masked"] == {}
        seen = np.array(log_odds(label.open_labels(shown).rows()))
        assert np.abs(seen - np.array(log_odds(direct["pairwise"]))).max() > 1e-3

        # killed after the first three of eight prompts; other words, so that no reply was kept
        judged, ask = [], label.judge_rows
        monkeypatch.setattr(label, "PROMPTS_PER_PART", 3)

        def until_killed(config, judge, cases):
            if judged:
                server.kill()
            judged.extend(case.key for case in cases)
            return ask(config, judge, cases)

        monkeypatch.setattr(label, "judge_rows", until_killed)
        killed = (f"label.pairwise_prompt='{{context}} ? {COMPARE}'", "data.labels={run}/killed.jsonl")
        config = configured(server.url, *killed)
        report = label.label(config, run)
    rows = label.open_labels(config).rows()
    done = [row for row in rows if "again" not in row]
    assert len(done) == 3 and report["again"] == 5 and len(judged) == 6
    assert "again to ask about these once more" in caplog.text
    reasons = set(report["position"]["masked"])
    assert any(why.startswith(("a first: down", "down")) for why in reasons), reasons
    for row in rows:
        if "again" in row:
            assert all("masked" in score for score in row["scores"])

    monkeypatch.setattr(label, "judge_rows", lambda *args: judged.extend(c.key for c in args[2]) or ask(*args))
    judged.clear()
    with serving(world / "base", tmp_path / "log2") as server:
        config = configured(server.url, *killed)
        report = label.label(config, run)
    assert report["again"] == 0 and report["masked"] == {}
    after = {row["prompt_id"]: row for row in label.open_labels(config).rows()}
    assert {key[0] for key in judged} == after.keys() - {row["prompt_id"] for row in done}
    assert all(after[row["prompt_id"]] == row for row in done)
