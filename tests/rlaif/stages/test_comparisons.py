"""`rlaif eval agreement` and `rlaif eval winrate`: rates from known opinions, and what is wrong with files and models."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest
from adapters import write_adapter
from without_actors import NoActors

from rlaif.config.load import load_config
from rlaif.config.schema import Lora, Reward
from rlaif.errors import ConfigError, DataError
from rlaif.io.rundir import RunDir
from rlaif.models.model_dir import ModelDir
from rlaif.models.reward import CARD, ModelScorer, card_text
from rlaif.models.reward_prompt import RewardPrompt
from rlaif.models.tiny import build_tiny
from rlaif.records import Masked, reward_outcome
from rlaif.stages.compare import agreement, winrate
from rlaif.stages.feedback import ask_reward, caption
from rlaif.stages.feedback.judges import make_judge
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.table import scope_of
from rlaif.worlds.shapes.language import WORDS


@pytest.fixture
def offline(tmp_path, make_config, monkeypatch):
    """offline(*overrides) -> (config, run) that starts no actor."""

    def make(*overrides: str):
        plain = ("candidates.prompts=[descriptions.jsonl]", "data.pairs_eval={run}/held_out.jsonl")
        config = make_config(tmp_path, *plain, *overrides)
        return config, Run(config, RunDir(config.storage, config.name), None, NoActors(config))

    return make


BY_LENGTH = ("agreement.by=reward", "ppo.reward={path: 'opinions:length'}")
BY_JUDGE = ("agreement.by=judge", "label.judge={path: 'opinions:longer'}", "label.context=none")


def write_pairs(config, world, rows: list[dict]) -> None:
    """Rows with the video and question of the world's first prompt where they have none of their own."""
    prompt = json.loads((world / "data" / "descriptions.jsonl").read_text().splitlines()[0])
    path = datasets.data_path(config, config.data.pairs_eval)
    path.parent.mkdir(parents=True, exist_ok=True)
    own = [{"pair_id": str(i), "video": prompt["video"], "question": "what ?", **row} for i, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in own))


ROWS = [
    {"chosen": "a long answer", "rejected": "short", "provenance": {"prompt_type": "how"}},
    {"chosen": "short", "rejected": "a long answer", "provenance": {"prompt_type": "how"}},
    {"chosen": "a longer answer", "rejected": "short", "dimension": "detail", "dimensions": {"brevity": -1}},
    {"chosen": "equal", "rejected": "EQUAL", "kind": "who"},
]


@pytest.mark.parametrize("by", [BY_LENGTH, BY_JUDGE], ids=["reward", "judge"])
def test_agreement_overall_by_dimension_and_by_prompt_type(offline, world, by):
    config, run = offline(*by)
    write_pairs(config, world, ROWS)
    result = agreement.agreement(config, run)
    assert result["overall"]["pairs"] == 4 and result["overall"]["agreement"] == 2.5 / 4
    assert result["overall"]["ties"] == 1 and 0 < result["overall"]["low"] < 2.5 / 4 < result["overall"]["high"] < 1
    assert result["dimension"]["overall"]["agreement"] == 1.5 / 3 and result["dimension"]["detail"]["agreement"] == 1
    assert result["prompt_type"]["how"] | {"low": 0, "high": 0} == {
        **{"agreement": 0.5, "low": 0, "high": 0, "pairs": 2},
        **{"ties": 0, "no_verdict": 0, "no_reference": 0},
    }
    assert result["prompt_type"]["who"]["agreement"] == 0.5
    # a reward model has a part for brevity, a judge one opinion for everything
    assert result["dimension"]["brevity"]["agreement"] == (1.0 if by is BY_LENGTH else 0.0)
    kept = json.loads((run.directory.path / "eval" / "agreement.json").read_text())
    assert kept["overall"] == result["overall"] and kept["rows"] == {"kept": 4}
    assert "| overall | 0.625 |" in agreement.agreement_table(
        result
    ) and "| dimension: brevity |" in agreement.agreement_table(result)


def test_rows_that_cannot_be_compared_are_counted_and_named(offline, world, caplog):
    config, run = offline(*BY_JUDGE)
    write_pairs(
        config,
        world,
        [
            ROWS[0],
            {"chosen": "same", "rejected": "same"},
            {"chosen": "a", "rejected": "b", "video": "gone.mp4"},
            {"chosen_video": "one.mp4", "rejected_video": "two.mp4"},
            {"chosen": "a", "rejected": "b", "dimensions": {"brevity": 0}},
            {"question": "nothing else"},
        ],
    )
    result = agreement.agreement(config, run)
    assert result["rows"] == {
        **{"kept": 1, "chosen equals rejected": 1, "wrong type": 1, "missing field": 1},
        "video unusable": 2,
    }
    assert result["overall"]["pairs"] == 1 and "id '1'" in caplog.text and "gone.mp4" in caplog.text


def test_published_rows_without_a_valid_choice_are_skipped(offline, world, caplog):
    """VLM-RLAIF's rows as they are: no conversion is needed to compare with them."""
    config, run = offline(*BY_JUDGE, "data.pairs_eval={run}/theirs.json")
    prompt = json.loads((world / "data" / "descriptions.jsonl").read_text().splitlines()[0])
    turns = [{"from": "human", "value": "<image>\nwhat ?"}, {"from": "gpt", "value": "x"}]
    outputs = {f"output_{n}": {"from": "gpt", "value": text} for n, text in ((1, "long answer"), (2, "short"))}
    row = {"conversations": turns, **outputs, "image": prompt["video"]}
    path = datasets.data_path(config, config.data.pairs_eval)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([row | {"id": str(n), "preference": n} for n in (1, 2, 3)]))
    result = agreement.agreement(config, run)
    assert result["rows"] == {"kept": 2, "choice is neither": 1} and result["overall"]["agreement"] == 0.5
    assert "choice is neither" in caplog.text


def test_a_dimension_that_the_file_lacks_is_rejected(offline, world):
    config, run = offline(*BY_LENGTH, "agreement.dimensions=[detail, wit]")
    write_pairs(config, world, ROWS)
    with pytest.raises(DataError, match=r"compared in wit in .*\n.*found +the dimensions brevity, detail, overall"):
        agreement.agreement(config, run)
    config, run = offline(*BY_LENGTH, "agreement.dimensions=[detail]")
    assert list(agreement.agreement(config, run)["dimension"]) == ["detail"]


def test_a_masked_score_counts_as_no_verdict(offline, world, caplog):
    config, run = offline("ppo.reward={path: 'opinions:no_opinion_of_red'}")
    write_pairs(config, world, [*ROWS, {"chosen": "red", "rejected": "b"}, {"chosen": "infinite", "rejected": "b"}])
    result = agreement.agreement(config, run)
    assert result["overall"]["no_verdict"] == 2 and result["overall"]["pairs"] == 4
    assert sum(result["masked"].values()) == 2 and "no opinion" in caplog.text


def test_many_pairs_keep_their_scores(offline, world):
    """Several calls to the reward actors: every pair has the scores of its own answers."""
    config, run = offline(*BY_LENGTH)
    rows = [{"chosen": "x" * (i % 7 + 1), "rejected": "y" * (i % 5 + 1)} for i in range(150)]
    write_pairs(config, world, [row for row in rows if row["chosen"] != row["rejected"]])
    records, _ = datasets.load_with_report(run, config.data.pairs_eval, "preferences")
    verdicts = agreement.reward_margins(config, run, records)
    assert run.topology.pool.calls == 5
    for record, margin in zip(records, verdicts.margins, strict=True):
        assert margin("detail") == 2 * (len(record.chosen) - len(record.rejected))
        assert margin("overall") == len(record.chosen) - len(record.rejected)


def test_agreement_rejects_missing_or_other_kinds_of_files(offline):
    with pytest.raises(ConfigError, match=r"data\.pairs_eval"):
        agreement.agreement(*offline("data.pairs_eval=null"))
    with pytest.raises(DataError, match=r"held_out\.jsonl"):
        agreement.agreement(*offline())
    with pytest.raises(DataError, match="preference pairs in data.pairs_eval"):
        agreement.agreement(*offline("data.pairs_eval=descriptions.jsonl"))


@pytest.mark.parametrize(
    ("reward", "expected"),
    [("{path: 'opinions:typo'}", "a function as"), ("{run}/nothing", "a reward model exported by `rlaif reward`")],
)
def test_a_missing_reward_is_rejected_before_actors_start(offline, world, reward, expected):
    config, run = offline(f"ppo.reward={reward}")
    write_pairs(config, world, ROWS)
    with pytest.raises(ConfigError, match=expected):
        agreement.agreement(config, run)
    assert run.topology.pool is None


def test_a_judge_is_not_asked_twice(offline, world, monkeypatch):
    config, run = offline(*BY_JUDGE)
    write_pairs(config, world, ROWS)
    first = agreement.agreement(config, run)
    monkeypatch.setattr("rlaif.stages.feedback.label.by_function", None)
    assert agreement.agreement(config, run)["overall"] == first["overall"]


# -- win rates


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Three models by name."""
    folder = tmp_path_factory.mktemp("models")
    return {name: str(build_tiny(folder / name, WORDS, seed=seed)) for seed, name in enumerate(("base", "sft", "rl"))}


LENGTHS = {"base": (1, 9, 4, 4), "sft": (5, 5, 5, 5), "rl": (6, 6, 5)}
"""Letters of each model's first answer to the first prompts; `rl` has not answered the fourth."""
WINS = [[0.5, 0.25, 1 / 3], [0.75, 0.5, 1 / 6], [2 / 3, 5 / 6, 0.5]]


def write_answers(config, models, lengths=LENGTHS) -> None:
    prompts = [json.loads(line) for line in (datasets.data_path(config, "descriptions.jsonl")).read_text().splitlines()]
    rows = []
    for name, letters in lengths.items():
        who = {"fingerprint": ModelDir(models[name]).fingerprint, "model": models[name]}
        for prompt, count in zip(prompts, letters, strict=False):
            rows.append({"prompt_id": prompt["prompt_id"], "answers": ["x" * count, "another sample"], **who})
    path = datasets.data_path(config, config.data.candidates)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def named(models, *names: str) -> str:
    return "winrate.models={" + ", ".join(f"{name}: {models[name]}" for name in names) + "}"


@pytest.mark.parametrize(
    "by",
    [
        ("winrate.by=reward", "ppo.reward={path: 'opinions:length'}"),
        ("winrate.by=judge", "label.judge={path: 'opinions:longer'}", "label.context=none", "label.comparisons=1"),
    ],
    ids=["reward", "judge"],
)
def test_the_win_matrix_of_three_models(offline, models, by):
    config, run = offline(*by, named(models, "base", "sft", "rl"))
    write_answers(config, models)
    result = winrate.winrate(config, run)
    assert result["models"] == ["base", "sft", "rl"]
    np.testing.assert_allclose(result["wins"], WINS)
    wins = np.array(result["wins"])
    assert np.allclose(wins + wins.T, 1) and (np.diag(wins) == 0.5).all()
    assert result["prompts"] == [[4, 4, 3], [4, 4, 3], [3, 3, 3]] and result["unanswered"] == {
        "base": 4,
        "sft": 4,
        "rl": 5,
    }
    assert result["low"][0][1] < 0.25 < result["high"][0][1]
    folder = run.directory.path / "eval"
    assert json.loads((folder / "winrate.json").read_text())["wins"] == result["wins"]
    page = ElementTree.parse(folder / "winrate.html").getroot()
    assert {"0.83", "0.75"} <= {cell.text for cell in page.iter("td")}
    lines = winrate.winrate_table(result).splitlines()
    assert lines[4] == "| overall | rl | 0.667 (0.208 to 0.939) | 0.833 (0.310 to 0.982) | 0.500 |"
    assert "| prompt_type: describe | rl | 0.667 | 0.833 | 0.500 |" in lines
    # a reward has parts, a judge one opinion for everything
    assert list(result["dimension"]) == (["brevity", "detail"] if "reward" in by[0] else [])
    for name, one in result["dimension"].items():
        np.testing.assert_allclose(one["wins"], WINS if name == "detail" else np.transpose(WINS))
        assert one["prompts"] == result["prompts"] and one["missing"] == result["missing"]
    assert len(lines) == 2 + 3 * (2 + len(result["dimension"]))


@pytest.mark.parametrize(
    "by",
    [
        ("ppo.reward={path: 'opinions:length'}",),
        ("winrate.by=judge", "label.judge={path: 'opinions:longer'}", "label.context=none"),
    ],
    ids=["reward", "judge"],
)
def test_win_rates_by_prompt_type(offline, world, models, tmp_path, by):
    """The type is what agreement takes for it, in the row of the prompt."""
    rows = [json.loads(line) for line in (world / "data" / "descriptions.jsonl").read_text().splitlines()]
    told = (
        {"prompt_type": "how"},
        {"safety": {"prompt_type": "who"}},
        {"provenance": {"prompt_type": "how"}},
        {"kind": ["?"]},
    )
    for row, further in zip(rows, told, strict=False):
        row |= further
    (tmp_path / "typed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    config, run = offline(*by, f"winrate.prompts=[{tmp_path}/typed.jsonl]", named(models, "base", "sft", "rl"))
    write_answers(config, models)
    result = winrate.winrate(config, run)
    np.testing.assert_allclose(result["wins"], WINS)
    assert list(result["prompt_type"]) == ["how", "who"]  # the fourth has none
    how, who = result["prompt_type"].values()
    np.testing.assert_allclose(how["wins"], [[0.5, 0, 0], [1, 0.5, 0.25], [1, 0.75, 0.5]])
    np.testing.assert_allclose(who["wins"], [[0.5, 1, 1], [0, 0.5, 0], [0, 1, 0.5]])
    assert how["prompts"] == [[2, 2, 2]] * 3 and who["prompts"] == [[1, 1, 1]] * 3
    page = (run.directory.path / "eval" / "winrate.html").read_text()
    for name in (
        "overall",
        *(f"dimension: {one}" for one in result["dimension"]),
        "prompt_type: how",
        "prompt_type: who",
    ):
        assert page.count(f">{name}<") == 1


def test_weights_count_in_the_total_as_in_ppo(offline, models, tmp_path, monkeypatch):
    """A dimension's own matrix is of what the head says, whatever it weighs in the total."""
    two, weights = ("help", "harm"), {"harm": -2.0, "help": 0.0}
    rm = reward_export(tmp_path / "rm", models["base"], two)
    config, run = offline(f"ppo.reward={rm}", "ppo.reward_weights={harm: -2, help: 0}", named(models, "base", "sft"))
    write_answers(config, models, {"base": (1, 2), "sft": (2, 3)})
    scores = [[(3.0, 1.0), (2.0, 2.0)], [(5.0, 1e308), (5.0, 1.0)]]
    parts = [[reward_outcome(dict(zip(two, pair, strict=True))) for pair in of] for of in scores]
    actor = SimpleNamespace(dimensions=two, weights=[weights[name] for name in two])
    assert ask_reward.apply_reward_weights(config, parts) == [
        [ModelScorer._outcome(actor, pair) for pair in of] for of in scores
    ]
    monkeypatch.setattr(winrate, "reward_answers", lambda *_: parts)
    result = winrate.winrate(config, run)
    assert result["wins"][0][1] == 1 and result["prompts"][0][1] == 1 and sum(result["masked"].values()) == 1
    assert result["dimension"]["help"]["wins"][0][1] == 0.75 and result["dimension"]["harm"]["wins"][0][1] == 0.5
    assert result["dimension"]["harm"]["prompts"][0][1] == 2


def test_the_weight_of_a_model_with_one_dimension_is_applied_to_its_only_part(offline, models, tmp_path):
    """Its part is not called like it."""
    config, _ = offline(
        f"ppo.reward={reward_export(tmp_path / 'rm', models['base'], ('overall',))}", "ppo.reward_weights={overall: -1}"
    )
    assert ask_reward.apply_reward_weights(config, [[reward_outcome(2.0), Masked("no")]]) == [
        [reward_outcome(-2.0), Masked("no")]
    ]
    plain = config.model_copy(update={"ppo": config.ppo.model_copy(update={"reward_weights": {}})})
    assert ask_reward.apply_reward_weights(plain, [[reward_outcome(2.0)]]) == [[reward_outcome(2.0)]]


def test_an_adapter_competes_with_its_base(offline, models, tmp_path):
    """What `rlaif ppo` exports by default."""
    both = {"base": models["base"], "rl": write_adapter(tmp_path / "adapter", models["base"])}
    config, run = offline("ppo.reward={path: 'opinions:length'}", named(both, "base", "rl"))
    write_answers(config, both, {name: LENGTHS[name] for name in both})
    result = winrate.winrate(config, run)
    np.testing.assert_allclose(result["wins"], [[0.5, 1 / 3], [2 / 3, 0.5]])
    assert result["paths"] == both


def test_an_adapter_judges_and_captions_with_the_tokenizer_of_its_base(offline, models, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", models["base"])
    config, run = offline(f"label.judge={adapter}", f"caption.model={adapter}", "caption.aggregate=summarise")
    judge = make_judge(config, run, adapter)
    assert judge.count("a red circle") == caption.token_counter(config)("a red circle") == 3
    assert (
        judge.name
        == f"{adapter}@{ModelDir(adapter).fingerprint}"
        != f"{adapter}@{ModelDir(models['base']).fingerprint}"
    )
    shutil.rmtree(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"label\.judge"):
        make_judge(config, run, adapter)


def test_models_are_named_by_the_shortest_distinct_ends_of_their_paths(offline, models):
    config, run = offline(
        f"candidates.models=[{models['base']}, {models['rl']}]", "ppo.reward={path: 'opinions:length'}"
    )
    write_answers(config, models)
    result = winrate.winrate(config, run)
    assert result["models"] == ["base", "rl"] and result["paths"] == {name: models[name] for name in ("base", "rl")}
    assert winrate._short_names(["/a/sft/export", "/a/export", "/b/x/sft/export"]) == {
        "a/sft/export": "/a/sft/export",
        "a/export": "/a/export",
        "x/sft/export": "/b/x/sft/export",
    }


def test_winrate_rejects_models_that_cannot_be_compared(offline, models, tmp_path):
    one = offline(named(models, "base"))
    with pytest.raises(ConfigError, match="two models or more"):
        winrate.winrate(*one)
    write_answers(one[0], models, {"base": (1, 2), "rl": (3,)})
    with pytest.raises(DataError, match=r"none of sft \(.*\) to the 8 prompts"):
        winrate.winrate(*offline(named(models, "base", "sft")))
    with pytest.raises(ConfigError, match=r"winrate\.models\.new"):
        winrate.winrate(*offline(f"winrate.models={{base: {models['base']}, new: {tmp_path}/none}}"))
    with pytest.raises(ConfigError, match="the same weights twice"):
        winrate.winrate(*offline(f"winrate.models={{a: {models['base']}, b: {models['base']}}}"))
    write_answers(one[0], models, {"base": (1,), "rl": ()})
    rows = datasets.data_path(one[0], one[0].data.candidates)
    other = json.loads(rows.read_text()) | {"prompt_id": "elsewhere", "fingerprint": ModelDir(models["rl"]).fingerprint}
    prompts = [json.loads(line) for line in (datasets.data_path(one[0], "descriptions.jsonl")).read_text().splitlines()]
    other["prompt_id"] = prompts[3]["prompt_id"]
    with rows.open("a") as file:
        file.write(json.dumps(other) + "\n")
    with pytest.raises(DataError, match="two of the models have answered"):
        winrate.winrate(*offline(named(models, "base", "rl")))


def reward_export(folder, base: str, dimensions=("overall", "length"), lora: str | None = None) -> str:
    """Write what is checked before a reward model is loaded: card, model, and the head's file."""
    shutil.copytree(base, folder)
    (folder / "head.safetensors").write_bytes(b"")
    card = card_text(lora or base, Lora(r=2) if lora else None, RewardPrompt.of(Reward()), dimensions)
    (folder / CARD).write_text(card)
    return str(folder)


BROKEN = {
    "no reward model": (lambda rm: rm.rename(rm.with_name("gone")), "{}", "a reward model exported by `rlaif reward`"),
    "no head": (lambda rm: (rm / "head.safetensors").unlink(), "{}", r"head\.safetensors in "),
    "no model": (lambda rm: (rm / "config.json").unlink(), "{}", r"ppo\.reward: a Hugging Face model"),
    "weights of another": (lambda rm: None, "{harmlessness: 1}", "a weight for each dimension .*: overall, length"),
    "weights of some": (lambda rm: None, "{overall: 1}", "a weight for each dimension .*: overall, length"),
    "a function that is not there": (None, "{path: 'opinions:typo'}", "a function as"),
}


@pytest.mark.parametrize(
    ("stage", "name"),
    [("winrate", name) for name in BROKEN] + [("agreement", name) for name in BROKEN if "weights" not in name],
)
def test_a_reward_model_is_checked_before_anything_is_read(offline, models, tmp_path, stage, name, monkeypatch):
    damage, value, expected = BROKEN[name]
    rm = tmp_path / "rm"
    reward_export(rm, models["base"])
    options = [f"ppo.reward={rm}", f"ppo.reward_weights={value}"] if damage else [f"ppo.reward={value}"]
    config, run = offline(*options, named(models, "base", "sft"))
    if damage:
        damage(rm)
    monkeypatch.setattr(winrate.datasets, "load_prompts", None)
    monkeypatch.setattr(agreement.datasets, "load_with_report", None)
    with pytest.raises(ConfigError, match=expected):
        {"winrate": winrate.winrate, "agreement": agreement.agreement}[stage](config, run)
    assert run.topology.pool is None


def test_weights_of_a_function_are_refused(offline, models):
    """The command checks the options of its own stage only."""
    config, run = offline("ppo.reward={path: 'opinions:length'}", named(models, "base", "sft"))
    config = config.model_copy(update={"ppo": config.ppo.model_copy(update={"reward_weights": {"detail": 1.0}})})
    with pytest.raises(ConfigError, match="which weighs its own parts(.|\n)*weights for detail"):
        winrate.winrate(config, run)


def test_the_base_of_a_reward_model_that_is_an_adapter_is_checked(offline, models, tmp_path):
    rm = reward_export(tmp_path / "rm", models["base"], lora=f"{tmp_path}/moved")
    config, run = offline(f"ppo.reward={rm}", named(models, "base", "sft"))
    with pytest.raises(ConfigError, match=r"ppo\.reward, its base: a Hugging Face model(.|\n)*moved"):
        winrate.winrate(config, run)


def test_row_verdicts_come_from_pairs_or_from_claim_scores():
    """Rows of labels as `rlaif label` writes them, read as verdicts."""
    from rlaif.records import Prompt
    from rlaif.stages.feedback.judge_inputs import Case

    case = Case(Prompt("p", "v", "q"), ("one", "two", "one"), ())
    row = {
        "scores": [{"score": 0.0}] * 3,
        "pairs": [{"a": 0, "b": 1, "winner": -1}, {"a": 1, "b": 2, "masked": "server down"}],
    }
    result = winrate.row_verdicts(case, ("x", "y", "z"), row)
    assert result == {("x", "y"): 0.0, ("x", "z"): 0.5, ("y", "z"): None}
    row = {"scores": [{"score": -1.0}, {"score": -3.0}, {"masked": "no"}], "claims": []}
    case = Case(Prompt("p", "v", "q"), ("one", "two", "three"), ())
    assert winrate.row_verdicts(case, ("x", "y", "z"), row) == {("x", "y"): 1.0, ("x", "z"): None, ("y", "z"): None}


@pytest.mark.parametrize("stage", ["eval agreement", "eval winrate"])
def test_label_options_are_checked_only_if_the_judge_is_asked(tmp_path, stage):
    section = stage.split()[1]
    file = tmp_path / "c.yaml"
    file.write_text(f"name: x\nstorage: {tmp_path}\nlabel: {{pairwise_prompt: nothing}}\n")
    load_config(file, [], scope_of(stage))
    with pytest.raises(ConfigError, match="needs {a} and {b}"):
        load_config(file, [f"{section}.by=judge"], scope_of(stage))
