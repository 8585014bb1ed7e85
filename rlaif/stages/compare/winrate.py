"""Whose answers win? `rlaif eval winrate CONFIG`: models against each other on the answers that `rlaif sample` made."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlaif.config.schema import Config
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation.agreement import named_groups, prompt_type_of
from rlaif.evaluation.winrate import WinRates, outcome_rates, verdict_rates
from rlaif.evaluation.winrate_page import winrate_page
from rlaif.markdown import markdown_table
from rlaif.models.check import require_model
from rlaif.models.model_dir import ModelDir
from rlaif.records import Masked, Prompt
from rlaif.stages.feedback.ask_reward import judged, require_reward, rewarded, weighted
from rlaif.stages.feedback.judge_inputs import Case, cases_of, reasons
from rlaif.stages.feedback.label_report import server
from rlaif.stages.feedback.sample import asked_of, open_candidates
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.train.evaluate import command

log = logging.getLogger(__name__)

Answers = Mapping[str, Mapping[str, str]]
"""prompt_id -> model's name -> its answer, as far as there is one."""
Measured = tuple[str, WinRates, dict[str, int], dict]
"""Who decided, the matrices, why answers have no verdict, and what a server took."""


def winrate(config: Config, run: Run) -> dict:
    """The win matrix (wins + its transpose = 1, diagonal 1/2) overall, by dimension and by prompt type, as
    `eval/winrate.json` and `eval/winrate.html`.

    Each model enters with its first answer to a prompt. Raises ConfigError for less than two models, DataError for a model
    that has no answers, or where no two models have answered the same prompt.
    """
    names = models_of(config)
    if config.winrate.by == "reward":
        require_reward(config, config.ppo.reward_weights)
    files = config.winrate.prompts or config.candidates.prompts
    prompts = datasets.load_prompts(run, files)
    answers = first_answers(config, names, prompts)
    asked = [prompt for prompt in prompts if len(answers[prompt.prompt_id]) > 1]
    if not asked:
        raise DataError(
            "prompts that two of the models have answered", "none", "Run `rlaif sample` for the same prompts"
        )
    measure = {"reward": by_reward, "judge": by_judge}[config.winrate.by]
    name, rates, masked, spent = measure(config, run, asked, answers, list(names))
    found = {"command": command(), "by": name, **rates.to_json(), "paths": dict(names), "masked": masked, **spent}
    found["unanswered"] = {one: sum(one not in answers[prompt.prompt_id] for prompt in prompts) for one in names}
    if masked or any(found["unanswered"].values()):
        log.warning("prompts without an answer: %s; answers without a verdict: %s", found["unanswered"], masked)
    run.directory.write_eval("winrate", found)
    matrices = {"overall": rates.overall, **dict(named_groups(vars(rates)))}
    run.directory.write_text("eval/winrate.html", winrate_page(matrices))
    return found


def models_of(config: Config) -> dict[str, str]:
    """Model by the name it is shown with."""
    named = config.winrate.models or _named(config.candidates.models)
    if len(named) < 2:
        raise ConfigError(
            "two models or more to compare",
            ", ".join(named.values()) or "none",
            "Set winrate.models, e.g. {sft: FOLDER, rlaif: FOLDER}, or candidates.models",
        )
    for name, model in named.items():
        require_model(f"winrate.models.{name}", model, or_adapter=True)
    return dict(named)


def _named(models: Sequence[str]) -> dict[str, str]:
    """The shortest ends of the paths that tell the models apart."""
    parts = [Path(model).parts for model in dict.fromkeys(models)]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]).lstrip("/") for part in parts]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, dict.fromkeys(models), strict=True))


def first_answers(config: Config, names: Mapping[str, str], prompts: Sequence[Prompt]) -> dict[str, dict[str, str]]:
    """What each model answered first. Raises DataError for a model without any answer, naming it."""
    store, wanted = open_candidates(config), {prompt.prompt_id: asked_of(prompt) for prompt in prompts}
    by_print = {ModelDir(model).fingerprint: name for name, model in names.items()}
    if len(by_print) < len(names):
        raise ConfigError("models that differ", f"the same weights twice in {dict(names)}", "Correct winrate.models")
    answers: dict[str, dict[str, str]] = {prompt_id: {} for prompt_id in wanted}
    for row in store.rows():
        own = row.get("asked") in (None, wanted.get(row["prompt_id"]))
        if row["prompt_id"] in wanted and own and row.get("fingerprint") in by_print and row.get("answers"):
            answers[row["prompt_id"]][by_print[row["fingerprint"]]] = row["answers"][0]
    count = Counter(name for of_prompt in answers.values() for name in of_prompt)
    if silent := [f"{name} ({model})" for name, model in names.items() if not count[name]]:
        raise DataError(
            f"answers of every model in {store.path}",
            f"none of {', '.join(silent)} to the {len(prompts)} prompts",
            "Run `rlaif sample` with candidates.models and candidates.prompts that hold them, or set data.candidates",
        )
    return answers


def by_reward(config: Config, run: Run, prompts: Sequence[Prompt], answers: Answers, names: Sequence[str]) -> Measured:
    """By the scores of `ppo.reward`, and by dimension by their parts."""
    told = [_present(answers, prompt, names) for prompt in prompts]
    asked = [(prompt, list(texts.values())) for prompt, texts in zip(prompts, told, strict=True)]
    found = rewarded(config, run, asked)
    totals = weighted(config, found)
    by_prompt = [
        {
            prompt.prompt_id: dict(zip(texts, outcomes, strict=True))
            for prompt, texts, outcomes in zip(prompts, told, said, strict=True)
        }
        for said in (found, totals)
    ]
    masked = Counter(one.reason for part in totals for one in part if isinstance(one, Masked))
    reward = config.ppo.reward
    name = reward if isinstance(reward, str) else reward.path
    return name, outcome_rates(*by_prompt, names, _types(prompts)), dict(masked), {}


def _present(answers: Answers, prompt: Prompt, names: Sequence[str]) -> dict[str, str]:
    """The answers to a prompt, in the order of the names."""
    given = answers[prompt.prompt_id]
    return {name: given[name] for name in names if name in given}


def _types(prompts: Sequence[Prompt]) -> dict[str, str]:
    return {prompt.prompt_id: prompt_type_of(prompt.extra) for prompt in prompts}


def by_judge(config: Config, run: Run, prompts: Sequence[Prompt], answers: Answers, names: Sequence[str]) -> Measured:
    """By the judge of `label`: every two answers in both orders, or the claims of each."""
    every = config.model_copy(update={"label": config.label.model_copy(update={"comparisons": None})})
    told = [_present(answers, prompt, names) for prompt in prompts]
    cases = cases_of(config, [(prompt, list(texts.values())) for prompt, texts in zip(prompts, told, strict=True)])
    judge, rows, spent = judged(every, run, cases, "winrate")
    verdicts = {
        case.prompt.prompt_id: verdicts_of(case, list(texts), row)
        for case, texts, row in zip(cases, told, rows, strict=True)
    }
    masked = Counter(reason for row in rows for reason in reasons(row))
    return judge, verdict_rates(verdicts, names, _types(prompts)), dict(masked), server(config, rows, spent)


def verdicts_of(case: Case, names: Sequence[str], row: dict) -> dict[tuple[str, str], float | None]:
    """What one row of labels says of every two models; equal answers are a tie, and were not asked about."""
    won = {(pair["a"], pair["b"]): _share(pair.get("winner")) for pair in row.get("pairs", ())}
    scores = [score.get("score") for score in row["scores"]]
    found = {}
    for a, b in itertools.combinations(range(len(names)), 2):
        if case.answers[a] == case.answers[b]:
            share = 0.5
        elif "pairs" in row:
            share = won.get((a, b))
        else:
            share = (
                None if None in (scores[a], scores[b]) else _share((scores[a] > scores[b]) - (scores[a] < scores[b]))
            )
        found[names[a], names[b]] = share
    return found


def _share(winner: int | None) -> float | None:
    return None if winner is None else (1 + winner) / 2


def table(found: dict) -> str:
    """The matrices as a Markdown table: how often the row's model wins against the column's; overall with 95 % intervals."""
    names = found["models"]
    rows = []
    for title, matrix in [("overall", found), *named_groups(found)]:
        for i, name in enumerate(names):
            cells = [_cell(matrix, i, j, matrix is found) for j in range(len(names))]
            rows.append([title, name, *cells])
    return markdown_table(["", "row beats column", *names], rows)


def _cell(matrix: dict, i: int, j: int, interval: bool) -> str:
    rate, low, high = (matrix[name][i][j] for name in ("wins", "low", "high"))
    if rate is None:
        return ""
    return f"{rate:.3f}" + (f" ({low:.3f} to {high:.3f})" if interval and low is not None else "")
