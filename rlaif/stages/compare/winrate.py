"""`rlaif eval winrate CONFIG`: which model's answers win, on the answers that `rlaif sample` made."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlaif.config.schema import Config
from rlaif.errors import ConfigError, DataError
from rlaif.evaluation.agreement import named_groups, prompt_type_of
from rlaif.evaluation.winrate import WinRates, outcome_rates, verdict_rates
from rlaif.evaluation.winrate_page import winrate_page
from rlaif.io.rundir import RunDir, typed_command
from rlaif.markdown import markdown_table
from rlaif.models.check import require_model
from rlaif.models.model_dir import ModelDir
from rlaif.records import Masked, Outcome, Prompt
from rlaif.stages.feedback.ask_reward import (
    apply_reward_weights,
    judge_cases,
    require_reward,
    reward_answers,
)
from rlaif.stages.feedback.judge_inputs import AnsweredPrompt, Case, cases_of, masked_reasons
from rlaif.stages.feedback.label_report import server_usage
from rlaif.stages.feedback.sample import open_candidates, prompt_digest
from rlaif.stages.preflight.files import check_file
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.preflight.judges import check_judge_or_reward
from rlaif.stages.run import datasets
from rlaif.stages.run.run import Run
from rlaif.stages.run.summary import Summary

log = logging.getLogger(__name__)

Answers = Mapping[str, Mapping[str, str]]
"""By prompt_id: the answer of each model that has one, by the model's name."""
Shares = dict[tuple[str, str], float | None]
"""By names of two models: 1 if the first wins, 1/2 for a tie, 0 if it loses, None without a verdict."""


@dataclass(frozen=True)
class WinVerdicts:
    """The verdicts of a reward model or a judge on the models' answers."""

    name: str
    rates: WinRates
    masked: dict[str, int]
    """Reasons of missing verdicts, with counts."""
    usage: dict
    """What a server spent; empty for others."""


def winrate(config: Config, run: Run) -> dict:
    """Compute the win matrix (wins + its transpose = 1, diagonal 1/2) overall, by dimension and by prompt type.

    Each model takes part with its first answer to a prompt. Writes `eval/winrate.json` and `eval/winrate.html`.

    Raises:
        ConfigError: for less than two models.
        DataError: for a model without answers, or if no two models have answered the same prompt.
    """
    names = compared_models(config)
    if config.winrate.by == "reward":
        require_reward(config, config.ppo.reward_weights)
    files = config.winrate.prompts or config.candidates.prompts
    prompts = datasets.load_prompts(run, files)
    answers = first_answers(config, names, prompts)
    contest = Contest.of(list(names), prompts, answers)
    if not contest.prompts:
        raise DataError(
            "prompts that two of the models have answered", "none", "Run `rlaif sample` for the same prompts."
        )
    measure = {"reward": rates_by_reward, "judge": rates_by_judge}[config.winrate.by]
    verdicts = measure(config, run, contest)
    rates, masked = verdicts.rates, verdicts.masked
    result = {"command": typed_command(), "by": verdicts.name, **rates.to_json()}
    result |= {"paths": dict(names), "masked": masked, **verdicts.usage}
    unanswered = dict.fromkeys(names, len(prompts))
    for prompt in prompts:
        for name in answers[prompt.prompt_id]:
            unanswered[name] -= 1
    result["unanswered"] = unanswered
    if masked or any(unanswered.values()):
        log.warning("prompts without an answer: %s; answers without a verdict: %s", unanswered, masked)
    run.directory.write_eval("winrate", result)
    matrices = {"overall": rates.overall, **dict(named_groups(vars(rates)))}
    run.directory.write_text("eval/winrate.html", winrate_page(matrices))
    return result


def compared_models(config: Config) -> dict[str, str]:
    """Return the paths of the models by the names they are shown with."""
    named = config.winrate.models or _short_names(config.candidates.models)
    if len(named) < 2:
        raise ConfigError(
            "two models or more to compare",
            ", ".join(named.values()) or "none",
            "Set winrate.models, e.g. {sft: FOLDER, rlaif: FOLDER}, or candidates.models.",
        )
    for name, model in named.items():
        require_model(f"winrate.models.{name}", model, or_adapter=True)
    return dict(named)


def _short_names(models: Sequence[str]) -> dict[str, str]:
    """Name the models by the shortest ends of their paths that tell them apart."""
    distinct = list(dict.fromkeys(models))
    parts = [Path(model).parts for model in distinct]
    names: list[str] = []
    # The longest ends are the whole paths, which differ.
    for length in range(1, max(map(len, parts)) + 1):
        # An absolute path begins with the part "/", which joining would double.
        names = ["/".join(part[-length:]).lstrip("/") for part in parts]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, distinct, strict=True))


def first_answers(config: Config, names: Mapping[str, str], prompts: Sequence[Prompt]) -> dict[str, dict[str, str]]:
    """Return each model's first answer to each prompt.

    Raises:
        ConfigError: if two of the models have the same weights.
        DataError: if a model has no answer to any of the prompts.
    """
    store = open_candidates(config)
    digests = {prompt.prompt_id: prompt_digest(prompt) for prompt in prompts}
    # By weights, not by path: a model may have moved since it answered.
    by_fingerprint = {ModelDir(model).fingerprint: name for name, model in names.items()}
    if len(by_fingerprint) < len(names):
        raise ConfigError("models that differ", f"the same weights twice in {dict(names)}", "Correct winrate.models.")
    answers: dict[str, dict[str, str]] = {}
    for prompt in prompts:
        answers[prompt.prompt_id] = {}
    counts: Counter[str] = Counter()
    for row in store.rows():
        prompt_id = row["prompt_id"]
        name = by_fingerprint.get(row.get("fingerprint"))
        if prompt_id not in digests or name is None or not row.get("answers"):
            continue
        # A row without `asked`, which a user may write, fits the prompt as it is.
        if row.get("asked") in (None, digests[prompt_id]):
            answers[prompt_id][name] = row["answers"][0]
            counts[name] += 1
    silent = []
    for name, model in names.items():
        if not counts[name]:
            silent.append(f"{name} ({model})")
    if silent:
        raise DataError(
            f"answers of every model in {store.path}",
            f"none of {', '.join(silent)} to the {len(prompts)} prompts",
            "Run `rlaif sample` with candidates.models and candidates.prompts that hold them, or set data.candidates.",
        )
    return answers


@dataclass(frozen=True)
class Contest:
    """The models' answers to the prompts that at least two of them have answered."""

    names: list[str]
    prompts: list[Prompt]
    texts: list[dict[str, str]]
    """Per prompt: the answer of each model that has one, in the order of the names."""

    @classmethod
    def of(cls, names: Sequence[str], prompts: Sequence[Prompt], answers: Answers) -> Contest:
        """Leave out prompts with fewer than two answers."""
        contest = cls(list(names), [], [])
        for prompt in prompts:
            own = answers[prompt.prompt_id]
            if len(own) > 1:
                contest.prompts.append(prompt)
                contest.texts.append({name: own[name] for name in names if name in own})
        return contest

    def answered(self) -> list[AnsweredPrompt]:
        """Return each prompt with its answers."""
        answered: list[AnsweredPrompt] = []
        for prompt, texts in zip(self.prompts, self.texts, strict=True):
            answered.append((prompt, list(texts.values())))
        return answered

    def by_name(self, outcomes: Sequence[Sequence[Outcome]]) -> dict[str, dict[str, Outcome]]:
        """Return the outcomes of all answers by prompt_id and by model's name."""
        result = {}
        for index, prompt in enumerate(self.prompts):
            pairs = zip(self.texts[index], outcomes[index], strict=True)
            result[prompt.prompt_id] = dict(pairs)
        return result

    def prompt_types(self) -> dict[str, str]:
        """Return the type of each prompt by its id."""
        return {prompt.prompt_id: prompt_type_of(prompt.extra) for prompt in self.prompts}


def rates_by_reward(config: Config, run: Run, contest: Contest) -> WinVerdicts:
    """Return the win rates by the scores of `ppo.reward`, and by dimension by the parts of the scores."""
    parts = reward_answers(config, run, contest.answered())
    # Weights apply to the totals only: a dimension is compared by its own part.
    totals = apply_reward_weights(config, parts)
    masked: Counter[str] = Counter()
    for outcome in itertools.chain.from_iterable(totals):
        if isinstance(outcome, Masked):
            masked[outcome.reason] += 1
    reward = config.ppo.reward
    name = reward if isinstance(reward, str) else reward.path
    of_parts, of_totals = contest.by_name(parts), contest.by_name(totals)
    rates = outcome_rates(of_parts, of_totals, contest.names, contest.prompt_types())
    return WinVerdicts(name, rates, dict(masked), {})


def rates_by_judge(config: Config, run: Run, contest: Contest) -> WinVerdicts:
    """Return the win rates by the judge of `label`: every two answers in both orders, or the claims of each."""
    # Every two models are compared, however many pairs `label.comparisons` draws for training.
    label = config.label.model_copy(update={"comparisons": None})
    every_pair = config.model_copy(update={"label": label})
    cases = cases_of(config, contest.answered())
    judge, rows, spent = judge_cases(every_pair, run, cases, "winrate")
    verdicts = {}
    masked: Counter[str] = Counter()
    for case, texts, row in zip(cases, contest.texts, rows, strict=True):
        verdicts[case.prompt.prompt_id] = row_verdicts(case, list(texts), row)
        masked.update(masked_reasons(row))
    rates = verdict_rates(verdicts, contest.names, contest.prompt_types())
    return WinVerdicts(judge, rates, dict(masked), server_usage(config, rows, spent))


def row_verdicts(case: Case, names: Sequence[str], row: dict) -> Shares:
    """Return the shares of every two models. Equal answers are a tie: the judge was not asked about them."""
    winners = {}
    for pair in row.get("pairs", ()):
        winners[pair["a"], pair["b"]] = pair.get("winner")
    scores = [score.get("score") for score in row["scores"]]
    shares: Shares = {}
    for a, b in itertools.combinations(range(len(names)), 2):
        if case.answers[a] == case.answers[b]:
            winner = 0
        elif "pairs" in row:
            winner = winners.get((a, b))
        elif scores[a] is None or scores[b] is None:
            winner = None
        else:
            winner = (scores[a] > scores[b]) - (scores[a] < scores[b])
        # The winner is 1, 0 or -1.
        share = None if winner is None else (1 + winner) / 2
        shares[names[a], names[b]] = share
    return shares


def winrate_table(found: dict) -> str:
    """Return a Markdown table of how often the row's model wins against the column's; overall with 95 % intervals."""
    names = found["models"]
    rows = []
    for title, matrix in [("overall", found), *named_groups(found)]:
        for i, name in enumerate(names):
            cells = [_cell(matrix, i, j, matrix is found) for j in range(len(names))]
            rows.append([title, name, *cells])
    return markdown_table(["", "row beats column", *names], rows)


def _cell(matrix: dict, i: int, j: int, interval: bool) -> str:
    rate = matrix["wins"][i][j]
    low, high = matrix["low"][i][j], matrix["high"][i][j]
    if rate is None:
        return ""
    return f"{rate:.3f}" + (f" ({low:.3f} to {high:.3f})" if interval and low is not None else "")


def check_eval_winrate(inquiry: Inquiry) -> None:
    """Check the judge or the reward model, the models that are compared, and their answers."""
    config = inquiry.config
    check_judge_or_reward(inquiry, config.winrate.by)
    inquiry.attempt("winrate.models", compared_models, config)
    check_file(inquiry, "data.candidates", config.data.candidates, "rlaif sample")


def summarise_eval_winrate(config: Config, directory: RunDir, report: dict) -> Summary:
    """Return the matrices of win rates."""
    folder = directory.path / "eval"
    return Summary({}, {"report": folder / "winrate.json", "page": folder / "winrate.html"}, winrate_table(report))
