"""Captions, candidates, labels and pairs on the real engine: complete, resumable, and nothing lost without a reason."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from adapters import write_adapter
from peft import PeftModel

from cluster.remote import ask
from rlaif.config.schema import Sampling
from rlaif.config.section import Function
from rlaif.data.read import read_records
from rlaif.errors import ConfigError, ContractError, DataError
from rlaif.feedback.store import Store
from rlaif.models.batch import collate
from rlaif.models.encode import Encoder
from rlaif.models.merged import merged_copy_path
from rlaif.models.model_dir import ModelDir
from rlaif.models.vlm import load_vlm
from rlaif.records import Probe
from rlaif.stages.compare import agreement, winrate
from rlaif.stages.feedback import caption, label, pairs, sample
from rlaif.stages.run import datasets, topology
from rlaif.stages.run.run import open_run
from rlaif.stages.train import reward
from rlaif.worlds.shapes.language import CAPTION, COMPARE, DESCRIBE, VERIFY

SPLIT = "rlaif.worlds.shapes.language:split"
CLAIMS = ("label.method=claims", f"label.split={SPLIT}", f"label.claim_prompt='{{context}}{VERIFY}'")
COUNTS = {"captioned": 0, "retried": 0, "there": 0, "failed": 0, "left_out": 0, "cut": 0}
PAIRWISE = ("label.method=pairwise", f"label.pairwise_prompt='{{context}}{COMPARE}'")


def settings(world) -> list[str]:
    base = f"{world}/base"
    return [
        f"caption.model={base}",
        f"caption.prompt={CAPTION}",
        "caption.count=2",
        "caption.frames=8",
        "caption.max_tokens=6",
        "caption.cut=keep",  # an untrained model rarely ends by itself
        "data.captions={run}/feedback/captions.jsonl",
        "data.pairs={run}/feedback/pairs.jsonl",
        f"candidates.models=[{base}]",
        "candidates.prompts=[descriptions.jsonl]",
        "candidates.per_model=3",
        "candidates.max_tokens=8",
        f"label.judge={base}",
        "label.num_frames=4",
        "label.captions_template='context : {captions}\n'",
        "label.reference=rlaif.worlds.shapes.checker:preference",
        "ppo.lora=null",
        "rollout.block_size=32",  # these prompts are shorter than the usual block of a CPU, and would share nothing
        "pairs.margin=0",
        "pairs.lengths=off",
        "pairs.min_words=0",
    ]


@pytest.fixture(scope="module")
def fed(world, make_config, tmp_path_factory):
    """(config by method, run, reports): one session, both methods, on one engine; the models of the engines that were started
    are a report too."""
    folder = tmp_path_factory.mktemp("feedback")
    config = make_config(folder, *settings(world), *CLAIMS)
    other = make_config(
        folder, *settings(world), *PAIRWISE, "data.labels={run}/feedback/by_pairs.jsonl", "pairs.margin=0.01"
    )
    with pytest.MonkeyPatch.context() as patch, open_run(config) as run:
        engines = started(patch)
        reports = {"caption": caption.caption(config, run), "sample": sample.sample(config, run)}
        reports |= {"claims": label.label(config, run), "pairwise": label.label(other, run)}
        reports["engines"] = list(engines)
        reports["pairs"] = pairs.pairs(config, run)
        yield config, other, run, reports


def started(patch: pytest.MonkeyPatch) -> list[str]:
    """Record the model of each engine that is started from now on."""
    result, usual = [], topology.start_rollout

    def start(spec, *args):
        result.append(spec.model_path)
        return usual(spec, *args)

    patch.setattr(topology, "start_rollout", start)
    return result


def rows_of(config, file: str, key: str) -> list[dict]:
    return Store(datasets.data_path(config, file), key=lambda row: json.dumps(row[key])).rows()


def test_captioner_policy_and_judge_of_one_model_are_one_engine(fed):
    """It stays up between the stages: captions, answers and two kinds of labels were made by then."""
    config, _, run, reports = fed
    assert reports["engines"] == [config.label.judge] * config.cluster.rollout.actors
    assert run.topology.engines(config.caption.model) is run.topology.engines(config.label.judge)


def test_every_video_has_a_caption_of_each_half_and_every_stage_reads_them(fed):
    config, _, run, reports = fed
    assert reports["caption"] | {"cut": 0} == COUNTS | {"captioned": 12}
    for row in rows_of(config, config.data.captions, "key"):
        assert len(row["captions"]) == 2 and row["context"] == row["captions"]
        assert row["frames"] == [[0, 1, 3, 4, 6, 7, 9, 11], [12, 13, 15, 16, 18, 19, 21, 23]]
    told = {row["video"]: row["context"] for row in rows_of(config, config.data.captions, "key")}
    for prompt in datasets.load(run, "prompts.jsonl", "prompts"):
        assert list(prompt.captions) == told[prompt.video]


def test_stored_rows_are_skipped_and_a_torn_line_is_made_again(fed):
    config, _, run, _ = fed
    path = datasets.data_path(config, config.data.captions)
    whole = path.read_bytes()
    assert caption.caption(config, run) | {"cut": 0} == COUNTS | {"there": 12}
    path.write_bytes(whole[:-40])
    assert caption.caption(config, run) | {"cut": 0} == COUNTS | {"captioned": 1, "there": 11}
    assert path.read_bytes() == whole  # greedy, and of the same weights
    assert sample.sample(config, run) == {"made": 0, "retried": 0, "there": 8, "failed": 0}


def test_dependent_captions_of_single_frames_are_conditioned_and_summarised(fed):
    """Every option of `caption` at once."""
    config, _, run, _ = fed
    options = {
        "unit": "frame",
        "count": 3,
        "dependent": True,
        "conditioned": True,
        "aggregate": "summarise",
        "prompt": "{previous}{question}" + CAPTION,
        "previous_slot": "context : {previous} ",
        "question_slot": "{question} ",
        "summary_prompt": "context : {captions} {question}" + DESCRIBE,
    }
    files = {"captions": "{run}/feedback/summaries.jsonl", "pairs": "none.jsonl"}
    changed = config.model_copy(
        update={
            "caption": config.caption.model_copy(update=options),
            "data": config.data.model_copy(update={n: run.directory.resolve(file) for n, file in files.items()}),
        }
    )
    expected = set()
    for file in config.caption.of:
        expected |= {(prompt.video, prompt.question) for prompt in datasets.load(run, file, "prompts")}
    assert len(expected) > len({video for video, _ in expected}) == 12  # some videos are asked about more than once
    assert caption.caption(changed, run) | {"cut": 0} == COUNTS | {"captioned": len(expected)}
    rows = rows_of(changed, changed.data.captions, "key")
    assert {(row["video"], row["question"]) for row in rows} == expected
    assert len({row["key"] for row in rows}) == len(rows) == len(expected)
    for row in rows:
        assert row["frames"] == [[5], [11], [17]] and len(row["captions"]) == 3
        assert len(row["context"]) == 1 and row["context"][0].strip() == row["context"][0] != ""
    told = {(row["video"], row["question"]): tuple(row["context"]) for row in rows}
    for prompt in datasets.load(replace(run, config=changed), "eval.jsonl", "prompts"):
        assert prompt.captions == told[prompt.video, prompt.question]
    actors, whole = run.topology.engines(config.caption.model).fleet.handles.values(), path_of(changed).read_bytes()
    before = [ask(actor.stats.remote())["prompt_tokens"] for actor in actors]
    assert caption.caption(changed, run) | {"cut": 0} == COUNTS | {"there": len(expected)}
    assert [ask(actor.stats.remote())["prompt_tokens"] for actor in actors] == before  # the engine was asked nothing
    assert path_of(changed).read_bytes() == whole


def path_of(config):
    return datasets.data_path(config, config.data.captions)


def test_answers_come_from_seeds_and_keep_their_origin(fed):
    config, _, _, reports = fed
    assert reports["sample"] == {"made": 8, "retried": 0, "there": 0, "failed": 0}
    rows = rows_of(config, config.data.candidates, "prompt_id")
    assert all(len(row["answers"]) == len(row["tokens"]) == len(row["ended"]) == 3 for row in rows)
    assert all({"model", "fingerprint", "seed"} <= row.keys() for row in rows)
    answers = itertools.chain.from_iterable(row["answers"] for row in rows)
    assert len(set(answers)) > 8


def test_claims_are_judged_once_each_and_scores_are_minus_the_rejected(fed):
    config, _, run, reports = fed
    rows = rows_of(config, config.data.labels, "prompt_id")
    texts = sample.answers_by_prompt(config, datasets.load(run, "descriptions.jsonl", "prompts"))
    for row in rows:
        for answer, score, evidence in zip(texts[row["prompt_id"]], row["scores"], row["claims"], strict=True):
            rejected = sum(not claim["accepted"] for claim in evidence)
            assert score == ({"score": -rejected} if evidence else {"masked": "it makes no claims"})
            assert all(claim["accepted"] == (claim["p_yes"] > claim["p_no"]) for claim in evidence)
            assert bool(evidence) == bool(answer.replace(".", "").strip())
    assert reports["claims"]["answers"] == 24 and reports["claims"]["masked"] == {}
    assert reports["claims"]["agreement"]["reference"].endswith("preference")


def test_pairs_of_answers_are_asked_in_both_orders_and_flips_are_ties(fed):
    _, other, _, reports = fed
    rows = rows_of(other, other.data.labels, "prompt_id")
    compared = list(itertools.chain.from_iterable(row["pairs"] for row in rows))
    assert compared and all(len(pair["orders"]) == 2 for pair in compared)
    assert all(pair["winner"] == 0 for pair in compared if pair["flipped"])
    position = reports["pairwise"]["position"]
    assert position["verdicts"] == len(compared) and 0 <= position["flip_rate"] <= 1


def log_odds(config) -> list[float]:
    """Return the log-odds of every order of every pair in the labels."""
    values = []
    for row in rows_of(config, config.data.labels, "prompt_id"):
        for pair in row["pairs"]:
            values += [order["log_odds"] for order in pair["orders"]]
    return values


def test_the_judge_answers_differently_without_the_video(fed):
    """Questions without frames go through the same engine; the context alone is what they are judged by."""
    _, other, run, reports = fed
    blind = other.model_copy(
        update={
            "label": other.label.model_copy(update={"show_video": False}),
            "data": other.data.model_copy(update={"labels": f"{run.directory.path}/feedback/blind.jsonl"}),
        }
    )
    assert label.label(blind, run)["masked"] == reports["pairwise"]["masked"] == {}
    with_video, without_video = log_odds(other), log_odds(blind)
    differences = [abs(a - b) for a, b in zip(with_video, without_video, strict=True)]
    assert max(differences) > 1e-3


def test_questions_about_one_prompt_share_a_cached_prefix(fed):
    """The engine keeps prefixes while it judges: blocks of video, narrative and question are computed once."""
    _, other, run, _ = fed
    again = other.model_copy(
        update={
            "label": other.label.model_copy(update={"pairwise_prompt": "{context}{context}{context}" + COMPARE}),
            "data": other.data.model_copy(update={"labels": f"{run.directory.path}/feedback/long.jsonl"}),
        }
    )
    actors = run.topology.engines(other.label.judge).fleet.handles.values()
    before = [ask(actor.stats.remote()) for actor in actors]
    label.label(again, run)
    after = [ask(actor.stats.remote()) for actor in actors]
    prompt_tokens = sum(stats["prompt_tokens"] for stats in after) - sum(stats["prompt_tokens"] for stats in before)
    cached_tokens = sum(stats["cached_tokens"] for stats in after) - sum(stats["cached_tokens"] for stats in before)
    assert prompt_tokens > 0 and cached_tokens / prompt_tokens > 0.3


def test_labels_made_with_other_options_are_rejected(fed):
    config, other, run, _ = fed
    mixed = other.model_copy(update={"data": config.data})
    with pytest.raises(ContractError, match=r"data\.labels"):
        label.label(mixed, run)


def test_pairs_are_rows_that_the_reward_model_reads(fed):
    config, _, run, reports = fed
    rows, report = read_records(datasets.data_path(config, config.data.pairs), config.data.root, "pairs")
    assert len(rows) == reports["pairs"]["pairs"] and not report.skipped
    result = reports["pairs"]
    assert result["considered"] == result["pairs"] + sum(result["dropped"].values())
    assert result["candidates"] == 24


def test_pairs_require_a_label_for_every_prompt(fed, make_config, world, tmp_path):
    config, _, run, _ = fed
    nowhere = config.model_copy(
        update={"data": config.data.model_copy(update={"labels": str(tmp_path / "none.jsonl")})}
    )
    with pytest.raises(DataError, match="rlaif label"):
        pairs.pairs(nowhere, run)


def test_a_list_of_claims_that_was_cut_is_masked(fed):
    """An untrained judge rarely ends its list by itself."""
    config, _, run, _ = fed
    options = {"split": "model", "split_tokens": 3}
    listing = config.model_copy(
        update={
            "label": config.label.model_copy(update=options),
            "data": config.data.model_copy(update={"labels": str(run.directory.path / "feedback" / "listed.jsonl")}),
        }
    )
    report = label.label(listing, run)
    reason = "cut: the list was cut at 3 tokens, label.split_tokens"
    assert report["masked"].get(reason, 0) > report["answers"] / 2 and report["again"] == 0
    rows = rows_of(listing, listing.data.labels, "prompt_id")
    scores = itertools.chain.from_iterable(row["scores"] for row in rows)
    assert any(score.get("masked") == reason for score in scores)


def test_a_judge_whose_tokenizer_splits_the_words_is_rejected(fed):
    config, _, run, _ = fed
    strange = config.model_copy(
        update={
            "label": config.label.model_copy(update={"yes_no": ("certainly", "never")}),
            "data": config.data.model_copy(update={"labels": f"{run.directory.path}/other.jsonl"}),
        }
    )
    with pytest.raises(ConfigError, match="one token"):
        label.label(strange, run)


@pytest.mark.slow
def test_policies_win_against_each_other_on_the_reward_actors(fed, world, tmp_path):
    """The scene's checker as a reward on real reward actors; the second model is an adapter on the first, as PPO exports
    it, and has its own answers."""
    config, _, run, _ = fed
    other = write_adapter(tmp_path / "other", config.candidates.models[0])
    both = {"candidates": config.candidates.model_copy(update={"models": (config.candidates.models[0], other)})}
    both |= {"ppo": config.ppo.model_copy(update={"reward": Function(path="rlaif.worlds.shapes.checker:reward")})}
    config = config.model_copy(update=both)
    assert sample.sample(config, run) == {"made": 8, "retried": 0, "there": 8, "failed": 0}
    result = winrate.winrate(config, run)
    check_served(run, other, config.candidates.models[0])
    assert result["models"] == ["base", "other"] and result["prompts"] == [[8, 8], [8, 8]]
    assert result["wins"][0][1] + result["wins"][1][0] == 1 and result["masked"] == {}


def check_served(run, adapter: str, base: str) -> None:
    """Check that the engine computes with the adapter on its base, by PEFT's own sum of the two."""
    copy = merged_copy_path(ModelDir(adapter), "float32")
    assert copy.is_dir()
    shutil.rmtree(copy)  # the engine has read it
    probe, encoder = Probe("what moves ?", response_ids=tuple(range(20, 32))), Encoder(base)
    batch = collate([encoder.prompt_and_response(probe.question, probe.response_ids, None)], 0)
    peft, plain = load_vlm(base, "float32"), load_vlm(base, "float32")
    peft = PeftModel.from_pretrained(peft, adapter)
    for actor in run.topology.engines(adapter).fleet.handles.values():
        (served,) = ask(actor.probe.remote([probe], Sampling(), 0))
        assert np.abs(served.logprobs - logprobs(peft, batch, encoder)).max() < 1e-4
        assert np.abs(served.logprobs - logprobs(plain, batch, encoder)).max() > 0.1


@torch.no_grad()
def logprobs(model, batch, encoder) -> np.ndarray:
    """[T], of the response."""
    logits = model.eval()(input_ids=batch.ids, attention_mask=batch.attention, position_ids=batch.positions).logits[0]
    logits[:, list(encoder.banned_ids)] = -torch.inf
    start = logits.shape[0] - batch.targets.shape[1]
    return logits[start - 1 : -1].log_softmax(-1).gather(1, batch.targets[0][:, None])[:, 0].numpy()


def test_claims_of_a_text_are_asked_about_two_videos_on_the_engine(fed):
    """SafeSora's kind of pairs: the model sees one video at a time, with that video's captions."""
    config, _, run, _ = fed
    told = [json.loads(line) for line in (datasets.data_path(config, "descriptions.jsonl")).read_text().splitlines()]
    rows = [
        {"pair_id": str(n), "question": f"{a['answer']}", "chosen_video": a["video"], "rejected_video": b["video"]}
        for n, (a, b) in enumerate(zip(told, [*told[1:], told[0]], strict=True))
        if a["video"] != b["video"]
    ]
    file = run.directory.path / "videos.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    compared = config.model_copy(
        update={
            "data": config.data.model_copy(update={"pairs_eval": str(file)}),
            "agreement": config.agreement.model_copy(update={"by": "judge"}),
        }
    )
    result = agreement.agreement(compared, run)
    assert result["rows"] == {"kept": len(rows)} and result["masked"] == {} and "server" not in result
    assert result["overall"]["pairs"] == len(rows) > 4


@pytest.mark.slow
def test_a_reward_model_agrees_with_pairs_as_often_as_its_own_evaluation_says(fed):
    config, _, run, _ = fed
    changed = config.model_copy(
        update={
            "data": config.data.model_copy(update={"pairs": "pairs.jsonl", "pairs_eval": "pairs.jsonl"}),
            "ppo": config.ppo.model_copy(update={"reward": str(run.directory.export("reward"))}),
        }
    )
    run.topology.stop_rollouts()
    reward.train(changed, replace(run, config=changed), "fresh")
    trained = [row for row in run.directory.read_metrics("reward") if "eval/accuracy" in row][-1]
    result = agreement.agreement(changed, run)
    assert (
        result["overall"]["agreement"] == trained["eval/accuracy"]
        and result["overall"]["pairs"] == trained["eval/pairs"]
    )
    assert result["masked"] == {} and result["prompt_type"] == {}
