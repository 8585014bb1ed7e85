"""Scores for answers that nobody trains on, for `rlaif score`, `rlaif eval agreement` and `winrate`: by a reward model, or by
a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from actors.reward_pool import RewardPool
from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.errors import ConfigError
from rlaif.functions import load_function
from rlaif.models.reward import check_weights, dimensions_of, read_card, require_reward_model
from rlaif.records import Key, Masked, Outcome, Prompt, RewardInput, reward_outcome
from rlaif.stages.feedback.judge_inputs import Case
from rlaif.stages.feedback.label import Labelled, label_store, labelled
from rlaif.stages.feedback.label_hash import kind_of
from rlaif.stages.run.run import Run
from rlaif.stages.train.workers import prompts_with_context

AT_ONCE = 64
"""Answers that one call to a reward actor scores."""


def require_reward(config: Config, weights: Mapping[str, float] | None = None) -> None:
    """`ppo.reward` is there with all that it needs, and `weights` fit it: ConfigError before anything is read or started."""
    reward = config.ppo.reward
    if isinstance(reward, Function):
        load_function(reward.path)
        if weights:
            found = f"weights for {', '.join(weights)}"
            raise ConfigError(
                "a function, which weighs its own parts, without weights", found, "Leave ppo.reward_weights empty"
            )
        return
    check_weights(read_card(reward), weights or {})
    require_reward_model("ppo.reward", reward)


def rewarded(config: Config, run: Run, answers: Sequence[tuple[Prompt, Sequence[str]]]) -> list[list[Outcome]]:
    """What `ppo.reward` says of each prompt's answers, on the reward actors, in the order given, without weights."""
    prompts = prompts_with_context(config, [prompt for prompt, _ in answers])
    inputs = []
    for prompt, (_, texts) in zip(prompts, answers, strict=True):
        for index, text in enumerate(texts):
            inputs.append(RewardInput((prompt.prompt_id, index), prompt, text))
    ppo = config.ppo
    pool = run.topology.rewards(ppo.reward, ppo.tokens_per_microbatch, timeout_s=ppo.reward_timeout_s)
    found = outcomes(pool, inputs)
    run.topology.stop_rewards()
    return [[found[prompt.prompt_id, index] for index in range(len(texts))] for prompt, texts in answers]


def weighted(config: Config, found: Sequence[Sequence[Outcome]]) -> list[list[Outcome]]:
    """The same with `ppo.reward_weights`, which `require_reward` has checked: what PPO's reward actors say."""
    weights = config.ppo.reward_weights
    if not weights:
        return [list(outcomes) for outcomes in found]
    factors = [weights[name] for name in dimensions_of(read_card(config.ppo.reward))]
    return [[_weighted(one, factors) for one in outcomes] for outcomes in found]


def _weighted(outcome: Outcome, factors: Sequence[float]) -> Outcome:
    if isinstance(outcome, Masked):
        return outcome
    # by place, as the part of a single dimension is not called like the dimension
    parts = zip(outcome.parts.items(), factors, strict=True)
    return reward_outcome({name: factor * value for (name, value), factor in parts})


def outcomes(pool: RewardPool, inputs: Sequence[RewardInput]) -> dict[Key, Outcome]:
    """Return one outcome per answer, shared out to all reward actors."""
    return pool.collect([pool.score(inputs[start : start + AT_ONCE]) for start in range(0, len(inputs), AT_ONCE)])


def judged(config: Config, run: Run, cases: Sequence[Case], name: str) -> Labelled:
    """A row of labels per case, kept below the run, so that nothing is asked twice.

    A file for each way of asking: other options do not meet these labels.
    """
    store = label_store(run.directory.path / "feedback" / f"{name}-{kind_of(config)}.jsonl")
    return labelled(config, run, cases, store)
