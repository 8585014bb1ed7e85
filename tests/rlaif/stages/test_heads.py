"""Reward models of several dimensions end to end: training, the best step, the same bits in reward actors, and scores."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rlaif.data.files import read_rows
from rlaif.data.formats.own import PAIRS
from rlaif.data.preference import PreferencePair
from rlaif.errors import DataError
from rlaif.io.rundir import RunDir
from rlaif.models.packing import chunks
from rlaif.models.reward import read_card
from rlaif.records import Prompt, RewardInput
from rlaif.stages.feedback import score
from rlaif.stages.run.run import open_run
from rlaif.stages.train import ppo, reward, supervised
from rlaif.stages.train.reward import compared, digest_of, hold_out
from rlaif.stages.train.workers import learner_spec

TWO = ("helpfulness", "harmlessness")
BUDGET = 300
"""Positions per micro-batch: several of them, of different sizes."""


@pytest.fixture(scope="module")
def compared_world(world, tmp_path_factory):
    """Write the world's pairs, compared in two dimensions; some in one only, some with a margin. One video cannot be read."""
    folder = tmp_path_factory.mktemp("dimensions") / "data"
    shutil.copytree(world / "data", folder)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row |= {"dimension": "helpfulness", "dimensions": {"harmlessness": -1 if number % 2 else 1}, "margin": 0.5}
        if number % 3 == 0:
            del row["dimensions"]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    extra = [rows[0] | {"pair_id": "lost", "video": "gone.mp4"}, rows[1] | {"pair_id": "bad", "chosen": 3}]
    (folder / "to_score.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *extra]))
    return folder, rows


@pytest.fixture(scope="module")
def trained(compared_world, make_config, tmp_path_factory):
    """Yield (config, run, scores of the learners, of the actors, reports of `rlaif score`)."""
    folder = tmp_path_factory.mktemp("heads")
    root, _ = compared_world
    options = [f"data.root={root}", f"reward.dimensions=[{', '.join(TWO)}]", "reward.margin=record"]
    options += ["reward.steps=4", "reward.eval_every=1", "reward.save.keep=1", "reward.eval_fraction=0.5"]
    options += [f"reward.tokens_per_microbatch={BUDGET}", "score.file=to_score.jsonl", "reward.optim.lr=1.0e-2"]
    config = make_config(folder, *options)
    accuracies = iter([0.25, 0.75, 0.5, 0.75, 0.5])
    dimension_metrics = reward.dimension_metrics

    def with_planted_accuracy(scores):
        return dimension_metrics(scores) | {"accuracy": next(accuracies)}

    with open_run(config) as run:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reward, "dimension_metrics", with_planted_accuracy)
            reward.train(config, run)
        rows = reward.with_context(
            compared(reward.datasets.load(run, "pairs.jsonl", "pairs"), config.reward, "pairs"), config
        )
        learners, actors = both_sides(config, run, rows)
        yield config, run, learners, actors, [score.score(config, run), score.score(config, run)]


def both_sides(config, run, rows):
    """Return the scores of the same answers by the learners (best checkpoint) and by reward actors, by pair and side."""
    checkpoints = run.checkpoints("reward", 1)
    group = run.topology.learners(supervised.learner_spec(config, config.reward, "reward", "reward"))
    group.load(checkpoints, checkpoints.at(2))
    learners, _ = group.score_pairs(rows, config.reward)
    run.topology.stop_learners()
    pool, actors = run.topology.rewards(str(run.directory.export("reward")), BUDGET, timeout_s=600), {}
    for part in chunks(rows, config.cluster.learner.actors):  # what one rank scores, one actor scores
        inputs = []
        for row in part:
            prompt = Prompt(row.pair_id, row.video, row.question, captions=row.captions)
            for side, text in enumerate((row.chosen, row.rejected)):
                inputs.append(RewardInput((row.pair_id, side), prompt, text))
        actors |= pool.collect([pool.score(inputs)])
    run.topology.stop_rewards()
    return learners, actors


def test_the_best_step_is_exported_and_its_checkpoint_kept(trained, metrics_of):
    config, run, *_ = trained
    folder = run.directory.path
    rows = [row for row in metrics_of(folder, "reward") if "eval/accuracy" in row]
    assert [row["eval/accuracy"] for row in rows] == [0.25, 0.75, 0.5, 0.75]
    kept = sorted(path.name for path in (folder / "reward" / "checkpoints").iterdir() if path.name.isdigit())
    assert kept == ["000002", "000004"]  # save.keep is 1
    manifest = json.loads((folder / "reward" / "checkpoints" / "000004" / "manifest.json").read_text())
    assert manifest["meta"]["best"] == {"iteration": 2, "score": 0.75}
    head = load_file(folder / "reward" / "export" / "head.safetensors")["weight"]
    (name,) = [n for n in of_checkpoint(folder, 2) if n.endswith("heads.reward.weight") and n.startswith("weight/")]
    assert np.array_equal(head, of_checkpoint(folder, 2)[name])
    assert not np.array_equal(head, of_checkpoint(folder, 4)[name])
    assert head.shape[0] == 2 and read_card(str(folder / "reward" / "export"))["dimensions"] == list(TWO)


def of_checkpoint(folder, step) -> dict:
    (file,) = (folder / "reward" / "checkpoints" / f"{step:06d}").rglob("reward.safetensors")
    return load_file(file)


def test_metrics_are_reported_by_dimension(trained, metrics_of):
    rows = metrics_of(trained[1].directory.path, "reward")
    evaluated = [row for row in rows if "eval/accuracy" in row][-1]
    for name in TWO:
        for metric in ("accuracy", "log_loss", "calibration_error", "score_min", "score_max", "pairs"):
            assert f"eval/{name}_{metric}" in evaluated
        assert all(0 < row[f"train/{name}_share"] <= 1 for row in rows if f"train/{name}_share" in row)
    assert evaluated["eval/helpfulness_pairs"] >= evaluated["eval/harmlessness_pairs"] > 0


def test_learners_and_reward_actors_give_the_same_bits(trained):
    _, _, learners, actors, _ = trained
    assert len(actors) == 2 * len(learners) > 8
    for (pair_id, side), outcome in actors.items():
        assert [outcome.parts[name] for name in TWO] == learners[pair_id][side].tolist()
    assert len({outcome.value for outcome in actors.values()}) > 8


def test_every_candidate_of_every_row_gets_its_scores(trained, compared_world):
    config, run, learners, _, (report, _) = trained
    result = list(PAIRS.read(read_rows(config.score.out)))
    assert [record.pair_id for record in result] == [*[row["pair_id"] for row in compared_world[1]], "lost"]
    (told,) = report["models"]
    assert report["rows"] == len(result) and report["read"] == {"kept": len(result), "wrong type": 1}
    assert (told["candidates"], told["scored"], told["there"], told["masked"]) == (
        2 * len(result),
        2 * len(result) - 2,
        0,
        2,
    )
    assert {entry["pair_id"] for entry in told["first"]} == {"lost"} and "gone.mp4" in told["first"][0]["reason"]
    assert json.loads((run.directory.path / "eval" / "score.json").read_text())["rows"] == len(result)
    for record in result[:-1]:
        told = {(s["candidate"], s["dimension"]): s["value"] for s in record.scores}
        assert len(told) == len(record.scores) == 4 and {s["from"] for s in record.scores} == set(config.score.models)
        wanted = learners[record.pair_id]
        for side, name in enumerate(("chosen", "rejected")):
            assert [told[name, dimension] for dimension in TWO] == pytest.approx(wanted[side].tolist(), abs=1e-5)
    assert result[-1].scores == ()


def test_stored_scores_are_not_computed_again(trained, compared_world):
    told = trained[4][1]["models"][0]
    assert (told["scored"], told["there"], told["masked"]) == (0, 2 * len(compared_world[1]), 2)


def twin_of(export, folder) -> str:
    """Make the same reward model with twice its scores, negated: multiplying by two is exact."""
    shutil.copytree(export, folder)
    head = {name: -2 * array for name, array in load_file(folder / "head.safetensors").items()}
    save_file(head, folder / "head.safetensors")
    return str(folder)


def entries(config) -> dict[tuple, dict]:
    """Return the scores by record, candidate, model and dimension."""
    by_key = {}
    for record in PAIRS.read(read_rows(config.score.out)):
        for entry in record.scores:
            by_key[record.pair_id, entry["candidate"], entry["from"], entry["dimension"]] = entry
    return by_key


@pytest.mark.slow
def test_two_models_score_a_file_in_one_job_and_one_after_the_other(trained, compared_world, make_config, tmp_path):
    """On reward actors: those of a model are stopped before the next one's start."""
    first, folder = trained[0], tmp_path / "twin"
    (model,), twin = first.score.models, twin_of(trained[1].directory.path / "reward" / "export", folder)
    file, out = compared_world[0] / "pairs.jsonl", tmp_path / "both.jsonl"
    options = [f"data.root={compared_world[0]}", f"score.tokens_per_microbatch={BUDGET}"]
    both = make_config(tmp_path, *options, f"score.models=[{model}, {twin}]", f"score.file={file}", f"score.out={out}")
    second = make_config(
        tmp_path, *options, "name=second", f"score.models=[{twin}]", f"score.file={first.score.out}",
        f"score.out={tmp_path}/second.jsonl",
    )  # fmt: skip
    report, later = (
        score.score(config, replace(trained[1], config=config, directory=RunDir(config.storage, config.name)))
        for config in (both, second)
    )
    number = 2 * len(compared_world[1])
    assert [(told["scored"], told["there"], told["masked"]) for told in report["models"]] == [(number, 0, 0)] * 2
    told = entries(both)
    assert len(told) == number * 2 * len(TWO)
    for (pair_id, candidate, name, dimension), entry in told.items():
        if name == model:
            assert told[pair_id, candidate, twin, dimension]["value"] == -2 * entry["value"]
    assert [(told["scored"], told["there"], told["masked"]) for told in later["models"]] == [(number, 0, 2)]
    before, after = entries(first), entries(second)
    assert {key: entry for key, entry in after.items() if key[2] == model} == before  # to the bit, in a file read again
    assert len(after) == 2 * len(before) == 2 * number * len(TWO)
    assert all(after[key] == entry for key, entry in told.items() if key[2] == twin)


@pytest.fixture(scope="module")
def aligned(trained, make_config, tmp_path_factory):
    """Run an iteration of PPO against both dimensions, one of them negated, with a critic that starts from the model."""
    folder, run = tmp_path_factory.mktemp("aligned"), trained[1]
    options = [
        f"ppo.reward={run.directory.export('reward')}",
        "ppo.reward_weights={helpfulness: 0.5, harmlessness: -2}",
    ]
    config = make_config(folder, *options, "ppo.iterations=1", "ppo.critic_init=reward")
    directory = RunDir(config.storage, config.name)
    directory.prepare()
    ppo.train(config, replace(run, config=config, directory=directory))
    return config, directory.path


@pytest.mark.slow
def test_ppo_learns_from_the_weighted_sum_of_named_parts(aligned, metrics_of, samples_of):
    config, folder = aligned
    (metrics,) = metrics_of(folder)
    rows = [row["reward"] for row in samples_of(folder, 1)]
    assert all(row["value"] == pytest.approx(sum(row[name] for name in TWO)) for row in rows)
    for name in TWO:
        assert metrics[f"reward/part_{name}"] == pytest.approx(np.mean([row[name] for row in rows]))
    assert {role.name: role.start for role in learner_spec(config).roles}["critic"] == config.ppo.reward
    assert "critic/explained_variance" in metrics


# -- without a cluster


def pair(number: int, **about) -> PreferencePair:
    return PreferencePair(str(number), "q", "a", "b", video=f"v{number}", **about)


def test_digest_of_pairs_is_that_of_earlier_versions():
    """Checkpoints carry it: another digest would refuse to go on with the same pairs."""
    about = {"dimension": "helpful", "dimensions": {"style": -1}, "margin": 0.5, "prompt_id": "p", "unread_turns": True}
    rows = [
        PreferencePair("a", "what?", "a cat", "a dog", video="v.mp4", captions=("one",), **about),
        PreferencePair("b", "what?", chosen_video="v.mp4", rejected_video="w.mp4"),
    ]
    assert digest_of(rows, captions=True) == "cea8f6a09bd48c97"
    assert digest_of(rows, captions=False) == "ee487cac13beddea"


def test_rows_that_were_not_compared_are_counted_and_left_out(make_config, tmp_path, caplog):
    options = make_config(tmp_path, "reward.dimensions=[helpfulness, style]").reward
    rows = [pair(0), pair(1, dimension="helpfulness"), pair(2, dimensions={"style": -1}), pair(3)]
    assert compared(rows, options, "pairs.jsonl") == rows[1:3]
    assert "pairs.jsonl: 3 of 4 pairs were not compared in helpfulness" in caplog.text
    assert "3 of 4 pairs were not compared in style" in caplog.text


@pytest.mark.parametrize(
    ("options", "rows", "told"),
    [
        (["reward.dimensions=[informativeness, beauty]"], [pair(0, dimension="informativeness")], "in beauty"),
        (["reward.dimensions=[information]"], [pair(0, dimension="informativeness")], "informativeness \\(1\\)"),
        ([], [pair(0, dimension="helpfulness", dimensions={"style": 1})], "helpfulness \\(1\\), style \\(1\\)"),
        (["reward.margin=record"], [pair(0, margin=1.0), pair(1, margin=-1.0)], "below 0 in 1 of"),
    ],
)
def test_rows_without_a_usable_preference_are_an_error(make_config, tmp_path, options, rows, told):
    with pytest.raises(DataError, match=told):
        compared(rows, make_config(tmp_path, *options).reward, "pairs.jsonl")


def test_pairs_of_videos_of_one_prompt_stay_together():
    rows = [pair(n, rejected_video=f"w{n}", prompt_id=f"p{n // 4}") for n in range(12)]
    left, held = hold_out(rows, 0.4, seed=1)
    assert len(held) == 4 and {row.prompt_id for row in left}.isdisjoint(row.prompt_id for row in held)
