"""Scores of answers by a reward model or a judge, for `rlaif score`, `rlaif eval agreement` and `rlaif eval winrate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from actors.reward_pool import RewardPool
from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.errors import ConfigError
from rlaif.functions import load_function
from rlaif.models.reward import check_weights, dimensions_of, read_card, require_reward_model
from rlaif.records import Key, Masked, Outcome, RewardInput, reward_outcome
from rlaif.stages.feedback.judge_inputs import AnsweredPrompt, Case
from rlaif.stages.feedback.label import LabelResult, label_cases, label_store
from rlaif.stages.feedback.label_hash import label_hash
from rlaif.stages.run.reward_context import prompts_with_context
from rlaif.stages.run.run import Run

ANSWERS_PER_CALL = 64
"""Answers that one call to a reward actor scores."""


def require_reward(config: Config, weights: Mapping[str, float] | None = None) -> None:
    """Require that `ppo.reward` can be loaded and that `weights` fit it, before anything is read or started.

    Args:
        config: the configuration.
        weights: factors by dimension of a reward model; a function weighs its own parts.

    Raises:
        ConfigError: if the reward, or a file that it needs, is missing, or if the weights do not fit.
    """
    reward = config.ppo.reward
    if not isinstance(reward, Function):
        check_weights(read_card(reward), weights or {})
        require_reward_model("ppo.reward", reward)
        return
    load_function(reward.path)
    if weights:
        raise ConfigError(
            "a function, which weighs its own parts, without weights",
            f"weights for {', '.join(weights)}",
            "Leave ppo.reward_weights empty.",
        )


def reward_answers(config: Config, run: Run, answers: Sequence[AnsweredPrompt]) -> list[list[Outcome]]:
    """Score each prompt's answers with `ppo.reward` on the reward actors; weights are not applied.

    Returns the outcomes of each prompt's answers, in the order of the arguments.
    """
    prompts = prompts_with_context(config, [prompt for prompt, _ in answers])
    inputs = []
    for prompt, (_, texts) in zip(prompts, answers, strict=True):
        for index, text in enumerate(texts):
            inputs.append(RewardInput((prompt.prompt_id, index), prompt, text))
    ppo = config.ppo
    pool = run.topology.rewards(ppo.reward, ppo.tokens_per_microbatch, timeout_s=ppo.reward_timeout_s)
    by_key = collect_outcomes(pool, inputs)
    run.topology.stop_rewards()
    outcomes: list[list[Outcome]] = []
    for prompt, texts in answers:
        keys = [(prompt.prompt_id, index) for index in range(len(texts))]
        outcomes.append([by_key[key] for key in keys])
    return outcomes


def apply_reward_weights(config: Config, outcomes: Sequence[Sequence[Outcome]]) -> list[list[Outcome]]:
    """Return the outcomes with `ppo.reward_weights` applied, which are the scores that PPO trains on.

    `require_reward` must have checked the weights.
    """
    weights = config.ppo.reward_weights
    if not weights:
        return [list(of_prompt) for of_prompt in outcomes]
    dimensions = dimensions_of(read_card(config.ppo.reward))
    factors = [weights[name] for name in dimensions]
    weighted = []
    for of_prompt in outcomes:
        weighted.append([_weigh(outcome, factors) for outcome in of_prompt])
    return weighted


def _weigh(outcome: Outcome, factors: Sequence[float]) -> Outcome:
    if isinstance(outcome, Masked):
        return outcome
    # Parts and factors are matched by position: the part of a model with one dimension has another name than the dimension.
    parts = {}
    for (name, value), factor in zip(outcome.parts.items(), factors, strict=True):
        parts[name] = factor * value
    return reward_outcome(parts)


def collect_outcomes(pool: RewardPool, inputs: Sequence[RewardInput]) -> dict[Key, Outcome]:
    """Score answers on all reward actors in parallel. Returns one outcome per answer, by key."""
    calls = []
    for start in range(0, len(inputs), ANSWERS_PER_CALL):
        calls.append(pool.score(inputs[start : start + ANSWERS_PER_CALL]))
    return pool.collect(calls)


def judge_cases(config: Config, run: Run, cases: Sequence[Case], name: str) -> LabelResult:
    """Return a row of labels per case. The rows are stored below the run, so that no question is asked twice.

    The label hash is part of the file name: labels that were made with other options are in another file.
    """
    store = label_store(run.directory.path / "feedback" / f"{name}-{label_hash(config)}.jsonl")
    return label_cases(config, run, cases, store)
