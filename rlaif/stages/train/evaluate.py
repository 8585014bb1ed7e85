"""Evaluation: answers on held-out prompts, checked and scored; `rlaif eval CONFIG` and the same during PPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from actors.rollout import Failure
from learners.spec import LearnerSpec
from rlaif.config.schema import Config, Sampling
from rlaif.errors import ConfigError, RlaifError
from rlaif.evaluation.claims import checker_rates
from rlaif.functions import load_function
from rlaif.io.rundir import RunDir, typed_command
from rlaif.io.terminal import phase
from rlaif.markdown import markdown_table
from rlaif.records import Masked, Prompt, RewardInput, Sample
from rlaif.seeds import derive
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.preflight.models import check_policy_and_reward
from rlaif.stages.run import datasets, row_checks
from rlaif.stages.run.reward_context import prompts_with_context
from rlaif.stages.run.run import Run
from rlaif.stages.run.summary import Summary
from rlaif.stages.train.workers import (
    Workers,
    learner_spec,
    require_inputs,
    start_workers,
)

DECODINGS = {"greedy": 0.0, "sample": 1.0}
"""Temperature by name."""


def evaluate(config: Config, run: Run) -> list[dict]:
    """Measure the start of a PPO run (row `sft`) and its export (row `rlaif`): `rlaif eval CONFIG`. Returns the rows."""
    require_inputs(config)
    export = run.directory.export("ppo")
    if not export.files():
        raise ConfigError(
            f"the export of a PPO run at {export}",
            "nothing there",
            "Run `rlaif ppo` first, or set name= to a run that has one.",
        )
    prompts = _load_prompts(config, run)
    workers = start_workers(config, run, frozen(config, None))
    rows = policy(config, run, workers, prompts, "sft")
    workers = workers.with_learners(run.topology.learners(frozen(config, str(export))))
    workers.weight_sync.publish(1)
    return rows + policy(config, run, workers, prompts, "rlaif")


def held_out(config: Config, run: Run) -> list[Prompt]:
    """Return the usable prompts of `data.eval`, none without that file. Raises the error of `_load_prompts`."""
    if not datasets.data_path(config, config.data.eval).is_file():
        return []
    return _load_prompts(config, run)


def _load_prompts(config: Config, run: Run) -> list[Prompt]:
    """Return the usable prompts of `data.eval`.

    Raises DataError, before an actor starts, if the reward model reads captions and no prompt has any.
    """
    prompts = datasets.load(run, config.data.eval, "prompts", row_checks.eval_checks(config, run))
    prompts_with_context(config, prompts)  # a checker sees the prompts' own captions, so only the check counts here
    return prompts


def frozen(config: Config, start: str | None) -> LearnerSpec:
    """Return the specification of policy (from `start`) and reference, for log-probs only."""
    spec = learner_spec(config)
    roles = {role.name: role for role in spec.roles}
    return replace(spec, roles=(replace(roles["policy"], optim=None, start=start), roles["reference"]))


def policy(config: Config, run: Run, workers: Workers, prompts: Sequence[Prompt], name: str) -> list[dict]:
    """Measure both decodings of the policy that the workers have now, and add the rows to `eval/ppo.json`.

    Returns no rows without held-out prompts.
    """
    if not prompts:
        return []
    rows: list[dict] = []
    for decoding in DECODINGS:
        with phase(f"evaluating {name}, {decoding}, {len(prompts)} prompts"):
            figures = measure(config, workers, prompts, decoding)
        rows.append({"policy": name, "seed": config.seed, "decoding": decoding, **figures})
    earlier = run.directory.read_eval("ppo") or {"rows": []}
    others = [row for row in earlier["rows"] if row["policy"] != name]
    run.directory.write_eval("ppo", {"command": typed_command(), "rows": others + rows})
    return rows


def during_training(config: Config, workers: Workers, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Measure greedy answers to the first `eval.in_training` prompts. `eval/score` decides which checkpoint is the best."""
    figures = measure(config, workers, prompts[: config.eval.in_training], "greedy")
    score = figures.get("recall", 0.0) - figures.get("hallucination", 0.0) + figures.get("qa_accuracy", 0.0)
    return {f"eval/{name}": value for name, value in figures.items()} | {"eval/score": score}


def measure(config: Config, workers: Workers, prompts: Sequence[Prompt], decoding: str) -> dict[str, float]:
    """Return the figures of one answer per prompt.

    They are hallucination, recall and qa_accuracy (with `eval.checker`), the mean reward, the KL to the reference (nats per
    response), the length in tokens, and the numbers of answers, of prompts without one and of masked rewards.
    """
    samples, failures = answer(config, workers, prompts, decoding)
    answers = [(s.prompt, s.response) for s in samples]
    claims = checker_rates(answers, load_function(config.eval.checker)) if config.eval.checker else {}
    with_context = {prompt.prompt_id: prompt for prompt in prompts_with_context(config, prompts)}
    inputs = [RewardInput(s.key, with_context[s.prompt.prompt_id], s.response) for s in samples]
    outcomes = workers.rewards.collect([workers.rewards.score(inputs)]).values()
    scores = [outcome.value for outcome in outcomes if not isinstance(outcome, Masked)]
    lengths = [len(s.response_ids) for s in samples]
    return claims | {
        "reward": float(np.mean(scores)) if scores else float("nan"),
        "kl": kl_to_reference(workers, samples),
        "length": float(np.mean(lengths)),
        "answers": len(samples),
        "failed_prompts": len(failures),
        "masked_rewards": len(outcomes) - len(scores),
    }


def answer(
    config: Config, workers: Workers, prompts: Sequence[Prompt], decoding: str
) -> tuple[list[Sample], list[Failure]]:
    """Return one answer per prompt by the weights published last, in the order of their keys, and the failed prompts.

    Raises RlaifError if more than `ppo.max_prompt_failures` of the prompts failed.
    """
    sampling = Sampling(temperature=DECODINGS[decoding], max_tokens=config.eval.max_tokens)
    workers.weight_sync.wait()
    batch = ("eval", decoding)
    workers.rollouts.submit(batch, prompts, 1, derive(config.seed, "eval", config.eval.seed), sampling)
    samples: list[Sample] = []
    failures: list[Failure] = []
    for answers in workers.rollouts.results(batch, workers.deadline_s):
        samples += answers.samples
        failures += answers.failures
    if not samples or len(failures) > config.ppo.max_prompt_failures * len(prompts):
        raise RlaifError(
            f"answers to at least {1 - config.ppo.max_prompt_failures:.0%} of the evaluation prompts",
            f"{len(failures)} of {len(prompts)} failed; first: {failures[0].prompt_id}: {failures[0].reason}",
            "Mend what the reason names, or raise ppo.max_prompt_failures.",
        )
    return sorted(samples, key=lambda sample: sample.key), failures


def kl_to_reference(workers: Workers, samples: Sequence[Sample]) -> float:
    """Return the mean over responses of sum(log pi - log ref) (k1, nats), computed by the learners.

    The temperature is that of PPO's sampling.
    """
    rows = [(s.prompt.video, s.prompt.question, s.response_ids) for s in samples]
    own = workers.learners.logprobs("policy", rows)
    reference = workers.learners.logprobs("reference", rows)
    divergences = [float(np.sum(p - r)) for p, r in zip(own, reference, strict=True)]
    return float(np.mean(divergences))


def table(rows: Sequence[dict]) -> str:
    """Return the rows as a Markdown table."""
    names = ("policy", "seed", "decoding", "hallucination", "recall", "qa_accuracy", "reward", "kl", "length")
    lines = []
    for row in rows:
        values = [row.get(name, "") for name in names]
        lines.append([f"{value:.3f}" if isinstance(value, float) else str(value) for value in values])
    return markdown_table(names, lines)


def check_eval(inquiry: Inquiry) -> None:
    """Check the models, the reward, the held-out prompts, and that PPO has exported a policy."""
    check_policy_and_reward(inquiry)
    inquiry.rows("eval")
    export = inquiry.export("ppo")
    if "ppo" not in inquiry.pending and not inquiry.attempt("name", export.files):
        inquiry.report(
            "name",
            f"the export of a PPO run at {export}",
            "nothing there",
            "Run `rlaif ppo` first, or set name to the run that has one.",
        )


def summarise_eval(config: Config, directory: RunDir, rows: Sequence[dict]) -> Summary:
    """Return the table of both policies."""
    return Summary({}, {"rows": directory.path / "eval" / "ppo.json"}, table(rows))
