"""Evaluation: answers on held-out prompts, checked and scored; `rlaif eval CONFIG` and the same during PPO."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from actors.reward import load_function
from actors.rollout import Failure
from learners.spec import LearnerSpec
from rlaif.config.schema import Config, Sampling
from rlaif.errors import ConfigError, RlaifError
from rlaif.evaluation.claims import rates
from rlaif.io.terminal import phase
from rlaif.records import Answer, Masked, Prompt, Sample
from rlaif.seeds import derive
from rlaif.stages.run import datasets, row_checks
from rlaif.stages.run.run import Run
from rlaif.stages.train.workers import Roles, context_of, learner_spec, require_inputs, start_roles

DECODINGS = {"greedy": 0.0, "sample": 1.0}
"""Temperature by name."""


def evaluate(config: Config, run: Run) -> list[dict]:
    """`rlaif eval CONFIG`: the start of a PPO run (row `sft`) and its export (row `rlaif`), side by side."""
    require_inputs(config)
    export = run.directory.export("ppo")
    if not export.files():
        raise ConfigError(
            f"the export of a PPO run at {export}",
            "nothing there",
            "Run `rlaif ppo` first, or set name= to a run that has one",
        )
    prompts = datasets.load(run, config.data.eval, "prompts", row_checks.eval_checks(config, run))
    roles = start_roles(config, run, prompts, frozen(config, None))
    roles.eval_prompts = prompts
    rows = policy(config, run, roles, "sft")
    roles.learners = roles.publisher.learners = run.topology.learners(frozen(config, str(export)))
    roles.publisher.publish(1)
    return rows + policy(config, run, roles, "rlaif")


def held_out(config: Config, run: Run) -> list[Prompt]:
    """Return the usable prompts of `data.eval`, none without that file.

    Raises DataError, before anything is trained, when the reward model reads captions and none of them has any.
    """
    if not datasets.data_path(config, config.data.eval).is_file():
        return []
    prompts = datasets.load(run, config.data.eval, "prompts", row_checks.eval_checks(config, run))
    context_of(config, prompts)
    return prompts


def frozen(config: Config, start: str | None) -> LearnerSpec:
    """Policy (from `start`) and reference, for log-probs only."""
    spec = learner_spec(config)
    roles = {role.name: role for role in spec.roles}
    return replace(spec, roles=(replace(roles["policy"], optim=None, start=start), roles["reference"]))


def policy(config: Config, run: Run, roles: Roles, name: str) -> list[dict]:
    """Measure both decodings of the policy the roles hold now; the rows join `eval/ppo.json`. None without `data.eval`."""
    prompts = roles.eval_prompts
    if not prompts:
        return []
    rows = []
    for decoding in DECODINGS:
        with phase(f"evaluating {name}, {decoding}, {len(prompts)} prompts"):
            figures = measure(config, roles, prompts, decoding)
        rows.append({"policy": name, "seed": config.seed, "decoding": decoding, **figures})
    kept = [row for row in (run.directory.read_eval("ppo") or {"rows": []})["rows"] if row["policy"] != name]
    run.directory.write_eval("ppo", {"command": command(), "rows": kept + rows})
    return rows


def during_training(config: Config, roles: Roles) -> dict[str, float]:
    """Greedy answers to the first `eval.in_training` prompts; `score` is what the best checkpoint is chosen by."""
    found = measure(config, roles, roles.eval_prompts[: config.eval.in_training], "greedy")
    score = found.get("recall", 0.0) - found.get("hallucination", 0.0) + found.get("qa_accuracy", 0.0)
    return {f"eval/{name}": value for name, value in found.items()} | {"eval/score": score}


def measure(config: Config, roles: Roles, prompts: Sequence[Prompt], decoding: str) -> dict[str, float]:
    """hallucination, recall, qa_accuracy (with `eval.checker`); mean reward; KL to the reference (nats per response);
    length in tokens; how many answers there are, how many prompts gave none and how many rewards were masked."""
    samples, failures = answer(config, roles, prompts, decoding)
    answers = [(s.prompt, s.response) for s in samples]
    found = rates(answers, load_function(config.eval.checker)) if config.eval.checker else {}
    captions = context_of(config, prompts)
    asked = [Answer(s.key, s.prompt, captions[s.prompt.prompt_id], s.response) for s in samples]
    outcomes = roles.rewards.collect([roles.rewards.score(asked)]).values()
    scores = [outcome.value for outcome in outcomes if not isinstance(outcome, Masked)]
    lengths = [len(s.response_ids) for s in samples]
    return found | {
        "reward": float(np.mean(scores)) if scores else float("nan"),
        "kl": kl_to_reference(roles, samples),
        "length": float(np.mean(lengths)),
        "answers": len(samples),
        "failed_prompts": len(failures),
        "masked_rewards": len(outcomes) - len(scores),
    }


def answer(
    config: Config, roles: Roles, prompts: Sequence[Prompt], decoding: str
) -> tuple[list[Sample], list[Failure]]:
    """One answer per prompt by the weights published last, in the order of their keys; prompts that gave none.

    Raises RlaifError when more than `ppo.max_prompt_failures` of the prompts gave none.
    """
    sampling = Sampling(temperature=DECODINGS[decoding], max_tokens=config.eval.max_tokens)
    roles.publisher.wait()
    batch = ("eval", decoding)
    roles.rollouts.submit(batch, prompts, 1, derive(config.seed, "eval", config.eval.seed), sampling)
    samples, failures = [], []
    for answers in roles.rollouts.results(batch, roles.deadline_s):
        samples += answers.samples
        failures += answers.failures
    if not samples or len(failures) > config.ppo.max_prompt_failures * len(prompts):
        raise RlaifError(
            f"answers to at least {1 - config.ppo.max_prompt_failures:.0%} of the evaluation prompts",
            f"{len(failures)} of {len(prompts)} failed; first: {failures[0].prompt_id}: {failures[0].reason}",
            "Mend what the reason names, or raise ppo.max_prompt_failures",
        )
    return sorted(samples, key=lambda sample: sample.key), failures


def kl_to_reference(roles: Roles, samples: Sequence[Sample]) -> float:
    """Mean over responses of sum log pi - log ref (k1, nats), at the temperature PPO samples with, by the learners."""
    rows = [(s.prompt.video, s.prompt.question, s.response_ids) for s in samples]
    own, reference = (roles.learners.logprobs(role, rows) for role in ("policy", "reference"))
    return float(np.mean([float(np.sum(p - r)) for p, r in zip(own, reference, strict=True)]))


def command() -> str:
    """What was typed."""
    return " ".join(["rlaif", *sys.argv[1:]])


def table(rows: Sequence[dict]) -> str:
    """The rows as a Markdown table."""
    names = ("policy", "seed", "decoding", "hallucination", "recall", "qa_accuracy", "reward", "kl", "length")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [f"{row[n]:.3f}" if isinstance(row.get(n), float) else str(row.get(n, "")) for n in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
