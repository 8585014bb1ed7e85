"""`rlaif eval context` on the real libraries: every cell has its own labels, and all are measured on the same answers."""

from __future__ import annotations

import json

import pytest

from rlaif.errors import ConfigError, ContractError
from rlaif.stages import context
from rlaif.stages.run import open_run
from rlaif.worlds.shapes.language import CAPTION, VERIFY

PREFERENCE = "label.reference=rlaif.worlds.shapes.checker:preference"


def settings(world) -> list[str]:
    base = f"{world}/base"
    return [
        f"caption.model={base}",
        f"caption.prompt='{CAPTION}'",
        "caption.count=2",
        "caption.max_tokens=6",
        "caption.cut=keep",  # an untrained model rarely ends by itself
        "caption.of=[descriptions.jsonl,eval_descriptions.jsonl]",
        "data.captions={run}/feedback/captions.jsonl",
        f"candidates.models=[{base}]",
        "candidates.prompts=[descriptions.jsonl]",
        "candidates.per_model=4",
        "candidates.max_tokens=12",
        f"label.judge={base}",
        "label.method=claims",
        "label.split=rlaif.worlds.shapes.language:split",
        f"label.claim_prompt='{{context}}{VERIFY}'",
        "label.captions_template='context : {captions}\n'",
        "pairs={margin: 0, lengths: 'off', min_words: 0}",
        "context.seeds=2",
        "context.reward_steps=1",
    ]


@pytest.mark.slow
def test_each_context_and_seed_has_a_row_measured_on_the_answers_of_its_seed(world, make_config, tmp_path):
    config = make_config(tmp_path, *settings(world), PREFERENCE)
    with open_run(config) as run:
        rows = context.context(config, run)
        assert json.loads((run.directory.path / "eval" / "context.json").read_text())["rows"] == rows
    assert [(row["seed"], row["context"]) for row in rows] == [(s, c) for s in (0, 1) for c in context.CONTEXTS]
    for row in rows:
        assert 0 <= row["judge_agreement"] <= 1 and 0 <= row["rm_accuracy"] <= 1
    assert all(len({row["pairs"] for row in rows if row["seed"] == seed}) == 1 for seed in (0, 1))
    labels = [tmp_path / f"runs/run/context/labels-{mode}-0.jsonl" for mode in context.CONTEXTS]
    kinds = {json.loads(path.read_text().splitlines()[0])["kind"] for path in labels}
    assert len(kinds) == 3


def test_without_a_reference_there_is_nothing_to_measure_against(world, make_config, tmp_path):
    config = make_config(tmp_path, *settings(world))
    with pytest.raises(ConfigError, match=r"label\.reference"):
        context.context(config, None)


def test_contexts_that_lack_verdicts_are_not_compared():
    report = {"again": 3, "prompts": 8, "masked": {"no verdict on this answer": 9}}
    with pytest.raises(ContractError, match="3 of 8 prompts.*token_budget"):
        context.complete(report | {"position": {"masked": {"budget: token_budget: 90 of 600 tokens used": 2}}})
    with pytest.raises(ContractError, match="no verdict on this answer"):
        context.complete(report)
    whole = report | {"again": 0}
    assert context.complete(whole) == whole


def test_contexts_are_averaged_over_seeds_and_compared_with_none():
    cells = {("captions", 0): (0.9, 0.8), ("captions", 1): (0.8, 0.9), ("none", 0): (0.7, 0.6), ("none", 1): (0.8, 0.8)}
    rows = [{"context": c, "seed": s, "judge_agreement": j, "rm_accuracy": r} for (c, s), (j, r) in cells.items()]
    found = context.means(rows)
    assert found["captions"] == pytest.approx(
        {
            "judge_agreement": 0.85,
            "rm_accuracy": 0.85,
            "judge_agreement_above_none": 0.1,
            "rm_accuracy_above_none": 0.15,
        }
    )
    assert found["none"]["rm_accuracy_above_none"] == 0
    assert "| captions | 0.850 | +0.100 | 0.850 | +0.150 |" in context.table(found)
