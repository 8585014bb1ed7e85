"""`rlaif score` with several reward models, in one job and one after another: the models, the files and the store are the
real ones, and only the actors are missing."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig
from without_actors import NoActors

from rlaif.config.schema import Reward
from rlaif.data.files import read_rows
from rlaif.data.formats.own import PAIRS
from rlaif.data.preference import PreferencePair
from rlaif.io.rundir import RunDir
from rlaif.models.reward import CARD, card_text
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.stages.feedback import score
from rlaif.stages.run.run import Run

TWO = ("helpfulness", "harmlessness")
SIDES = ("chosen", "rejected")


@pytest.fixture(scope="module")
def models(world, tmp_path_factory) -> dict[str, str]:
    """Two reward models by name: `plain` with one opinion and `twofold` with two, which read captions and which do not."""
    folder = tmp_path_factory.mktemp("reward_models")
    return {
        "plain": reward_model(folder / "plain", f"{world}/base", ("overall",), Reward(), seed=1),
        "twofold": reward_model(folder / "twofold", f"{world}/base", TWO, Reward(context="none"), seed=2),
    }


def reward_model(folder: Path, base: str, dimensions: tuple[str, ...], options: Reward, seed: int) -> str:
    shutil.copytree(base, folder)
    hidden = AutoConfig.from_pretrained(base).get_text_config().hidden_size
    weight = torch.randn(len(dimensions), hidden, generator=torch.Generator().manual_seed(seed))
    save_file({"weight": weight, "bias": torch.zeros(len(dimensions))}, folder / "head.safetensors")
    (folder / CARD).write_text(card_text(base, None, RewardPrompt.of(options), dimensions))
    return str(folder)


@pytest.fixture
def scoring_run(tmp_path, make_config, monkeypatch):
    """scoring_run(name, models, file, out) -> (report, records of `out`, run): a job in a run of its own, so that it knows
    nothing but what its file says; with `run`, in that one."""

    def job(name: str, models: list[str], file: str, out: str, run: Run | None = None):
        options = [f"name={name}", f"score.models=[{', '.join(models)}]", f"score.file={file}", f"score.out={out}"]
        config = make_config(tmp_path, *options)
        topology = NoActors(config)
        run = replace(run, config=config, topology=topology) if run else run_of(config, topology)
        report = score.score(config, run)
        return report, read(tmp_path / out), run

    return job


def run_of(config, topology) -> Run:
    return Run(config, RunDir(config.storage, config.name), None, topology)


def read(path: Path) -> list[PreferencePair]:
    return list(PAIRS.read(read_rows(path)))


@pytest.fixture
def file(world, tmp_path) -> str:
    """Write the world's pairs: one has a third answer, scored by another model already, and one has no captions."""
    rows = [json.loads(line) for line in (world / "data" / "pairs.jsonl").read_text().splitlines()]
    foreign = {"value": 0.1, "from": "a user", "candidate": "third"}
    rows[0] |= {"candidates": [{"candidate": "third", "text": "a red circle ."}], "scores": [foreign]}
    del rows[1]["captions"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "pairs.jsonl")


def by_answer(records: list[PreferencePair], model: str) -> dict[tuple, list[dict]]:
    """Return the scores of one model of each answer, whole entries in the order of the file."""
    result: dict[tuple, list[dict]] = {}
    for record in records:
        for entry in record.scores:
            if entry["from"] == model:
                result.setdefault((record.pair_id, entry["candidate"]), []).append(entry)
    return result


def answers_of(records: list[PreferencePair]) -> set[tuple]:
    """`chosen` and `rejected` of every record, and the third of the first."""
    answers = {(records[0].pair_id, "third")}
    for record in records:
        answers |= {(record.pair_id, side) for side in SIDES}
    return answers


def counts(report: dict) -> list[tuple[int, int, int]]:
    return [(told["scored"], told["there"], told["masked"]) for told in report["models"]]


def test_two_models_in_one_job_score_every_answer_independently(scoring_run, models, file, tmp_path):
    plain, twofold = models.values()
    report, records, run = scoring_run("both", [plain, twofold], file, f"{tmp_path}/both.jsonl")
    answers, rows = answers_of(records), json.loads(f"[{','.join(Path(file).read_text().splitlines())}]")
    assert len(records) == report["rows"] == len(rows) and counts(report) == [(len(answers), 0, 0)] * 2
    assert [told["model"] for told in report["models"]] == [plain, twofold]
    by_model = {model: by_answer(records, model) for model in (plain, twofold)}
    assert by_model[plain].keys() == by_model[twofold].keys() == answers
    for entries in by_model[plain].values():
        assert [entry.get("dimension") for entry in entries] == [None]
    for entries in by_model[twofold].values():
        assert tuple(entry["dimension"] for entry in entries) == TWO
    assert [len(record.scores) for record in records] == [1 + 3 * 3, *[2 * 3] * (len(records) - 1)]
    values = []
    for model, entries_by_answer in by_model.items():
        # Scored alone, a model gives the same numbers: none is another model's or another answer's.
        _, alone, _ = scoring_run(f"alone-{Path(model).name}", [model], file, f"{tmp_path}/alone.jsonl")
        assert by_answer(alone, model) == entries_by_answer
        for entries in entries_by_answer.values():
            values += [entry["value"] for entry in entries]
    stored = []
    for line in (run.directory.path / "feedback" / "scores.jsonl").read_text().splitlines():
        stored += json.loads(line)["values"]
    assert set(values) == set(stored) and len(set(values)) > len(values) / 2
    assert [told["without_context"] for told in report["models"]] == [1, 0]  # one of them reads captions


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_second_model_leaves_the_scores_of_the_first_as_they_are(scoring_run, models, file, tmp_path, kind):
    plain, twofold = models.values()
    first, second = f"{tmp_path}/first.{kind}", f"{tmp_path}/second.{kind}"
    _, before, _ = scoring_run("first", [plain], file, first)
    report, after, _ = scoring_run("second", [twofold], first, second)
    assert counts(report) == [(len(answers_of(before)), 0, 0)]
    for old, new in zip(before, after, strict=True):
        assert new.scores[: len(old.scores)] == old.scores  # numbers to the bit, keys, names, and somebody else's
        assert replace(new, scores=old.scores) == old
    assert by_answer(after, plain) == by_answer(before, plain)
    assert by_answer(after, twofold).keys() == answers_of(before)


def test_scores_in_the_file_are_not_computed_again(scoring_run, models, file, tmp_path):
    plain, twofold = models.values()
    out = f"{tmp_path}/all.jsonl"
    scoring_run("first", [plain], file, out)
    report, both, run = scoring_run("second", [plain, twofold], out, out)  # in place
    number, asked = len(answers_of(both)), run.topology.pool
    assert counts(report) == [(0, number, 0), (number, 0, 0)] and asked.scorer.dimensions == TWO
    whole = Path(out).read_bytes()
    report, again, run = scoring_run("third", [twofold, plain], out, out)
    assert counts(report) == [(0, number, 0)] * 2 and run.topology.pool is None  # nothing was started
    assert Path(out).read_bytes() == whole and again == both


def test_the_store_of_a_run_keeps_the_scores_of_its_models_apart(scoring_run, models, file, tmp_path):
    """Without the scored file: the second job finds in the store what each model said."""
    plain, twofold = models.values()
    _, both, run = scoring_run("run", [plain, twofold], file, f"{tmp_path}/one.jsonl")
    report, again, later = scoring_run("run", [twofold, plain], file, f"{tmp_path}/two.jsonl", run)
    number = len(answers_of(both))
    assert counts(report) == [(0, number, 0)] * 2 and later.topology.pool is None
    for model in (plain, twofold):
        assert by_answer(again, model) == by_answer(both, model)
