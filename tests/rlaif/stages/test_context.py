"""`rlaif eval context` on the real libraries: every cell has its own labels, and all are measured on the same answers."""

from __future__ import annotations

import json

import pytest

from rlaif.errors import ConfigError, ContractError
from rlaif.stages.recipes import context_study
from rlaif.stages.run.run import open_run
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
        "context.num_frames=2",
    ]


@pytest.mark.slow
def test_each_context_and_seed_has_a_row_measured_on_the_answers_of_its_seed(world, make_config, tmp_path):
    config = make_config(tmp_path, *settings(world), PREFERENCE)
    with open_run(config) as run:
        rows = context_study.context(config, run)
        written = json.loads((run.directory.path / "eval" / "context.json").read_text())
    assert written["rows"] == rows and written["frames"] == {"judge": 2, "reward": 8}
    assert [(row["seed"], row["context"]) for row in rows] == [(s, c) for s in (0, 1) for c in context_study.CONTEXTS]
    for row in rows:
        assert 0 <= row["judge_agreement"] <= 1 and 0 <= row["rm_accuracy"] <= 1
    assert all(len({row["pairs"] for row in rows if row["seed"] == seed}) == 1 for seed in (0, 1))
    labels = [next((tmp_path / "runs/run/context").glob(f"labels-{mode}-0-*.jsonl")) for mode in context_study.CONTEXTS]
    kinds = [json.loads(path.read_text().splitlines()[0])["kind"] for path in labels]
    assert len(set(kinds)) == 3 and all(kind in path.name for kind, path in zip(kinds, labels, strict=True))
    reports = {(tmp_path / f"runs/run/context/captions-0{end}/eval/label.json").read_text() for end in ("", "/outside")}
    assert len(reports) == 2


def test_without_a_reference_there_is_nothing_to_measure_against(world, make_config, tmp_path):
    config = make_config(tmp_path, *settings(world))
    with pytest.raises(ConfigError, match=r"label\.reference"):
        context_study.context(config, None)


def test_cells_differ_only_in_context_and_seed(world, make_config, tmp_path):
    config = make_config(tmp_path, *settings(world), "label.num_frames=3", "reward.steps=7")
    plain = config.model_copy(update={"context": config.context.model_copy(update={"num_frames": None})})
    cells = {mode: context_study.cell_config(config, 5, mode) for mode in context_study.CONTEXTS}
    for mode, cell in cells.items():
        assert (cell.seed, cell.label.context, cell.reward.context) == (5, mode, mode)
        assert cell.label.num_frames == 2 and context_study.cell_config(plain, 5, mode).label.num_frames == 3
        assert cell.video == config.video and cell.reward.steps == 1
        assert context_study.outside_config(cell).candidates.prompts == config.eval.descriptions
    for name, files in (("candidates", 1), ("pairs_eval", 1), ("labels", 3), ("pairs", 3)):
        assert len({getattr(cell.data, name) for cell in cells.values()}) == files
    assert context_study.cell_config(plain, 5, "none").data.labels != cells["none"].data.labels


def test_cells_without_verdicts_on_some_pairs_are_reported():
    row = {"context": "captions", "seed": 1, "pairs": 9, "judge_pairs": 9, "rm_pairs": 9}
    assert context_study.unequal_counts([row]) == []
    (judge, reward) = context_study.unequal_counts([row | {"judge_pairs": 8}, row | {"rm_pairs": 3}])
    assert "judge decided on 8 of 9" in judge and "reward model could read 3 of 9" in reward


def test_contexts_that_lack_verdicts_are_not_compared():
    report = {"again": 3, "prompts": 8, "masked": {"no verdict on this answer": 9}}
    with pytest.raises(ContractError, match="3 of 8 prompts.*token_budget"):
        context_study.require_complete(
            report | {"position": {"masked": {"budget: token_budget: 90 of 600 tokens used": 2}}}
        )
    with pytest.raises(ContractError, match="no verdict on this answer"):
        context_study.require_complete(report)
    whole = report | {"again": 0}
    assert context_study.require_complete(whole) == whole


def test_contexts_are_averaged_over_seeds_and_compared_with_none():
    cells = {("captions", 0): (0.9, 0.8), ("captions", 1): (0.8, 0.9), ("none", 0): (0.7, 0.6), ("none", 1): (0.8, 0.8)}
    rows = [{"context": c, "seed": s, "judge_agreement": j, "rm_accuracy": r} for (c, s), (j, r) in cells.items()]
    result = context_study.context_means(rows)
    assert result["captions"] == pytest.approx(
        {
            "judge_agreement": 0.85,
            "rm_accuracy": 0.85,
            "judge_agreement_above_none": 0.1,
            "rm_accuracy_above_none": 0.15,
        }
    )
    assert result["none"]["rm_accuracy_above_none"] == 0
    assert "| captions | 0.850 | +0.100 | 0.850 | +0.150 |" in context_study.context_table(result)
