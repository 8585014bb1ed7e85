"""What each stage needs: files, models and functions that must be there, and numbers that must fit them."""

from __future__ import annotations

from collections.abc import Callable

from learners.spec import RoleSpec
from rlaif.config.schema import Config
from rlaif.config.section import Function
from rlaif.errors import ConfigError
from rlaif.models.reward import require_reward_model
from rlaif.stages.compare.winrate import models_of
from rlaif.stages.feedback.score import paths as score_paths
from rlaif.stages.preflight.functions import check_checker, check_function
from rlaif.stages.preflight.inquiry import Inquiry
from rlaif.stages.preflight.models import check_judge, check_model, check_policy, check_reward
from rlaif.stages.run.datasets import check_captions, data_path
from rlaif.stages.train import sft as sft_stage
from rlaif.stages.train.reward import compared, hold_out


def sft(inquiry: Inquiry) -> None:
    config = inquiry.config
    check_model(inquiry, "sft.init", config.sft.init)
    rows = inquiry.rows("sft")
    if rows:
        inquiry.attempt("data.sft", sft_stage.check_videos, config, _trained_by_sft(config), rows)


def _trained_by_sft(config: Config) -> RoleSpec:
    """Return what fine-tuning trains, as far as the check of its rows asks."""
    section, model = config.sft, config.model
    vision = model.train_vision if section.train_vision is None else section.train_vision
    projector = model.train_projector if section.train_projector is None else section.train_projector
    return RoleSpec("policy", section.init, section.lora, train_vision=vision, train_projector=projector)


def reward(inquiry: Inquiry) -> None:
    config = inquiry.config
    check_model(inquiry, "reward.init", config.reward.init)
    names = ["pairs", "pairs_eval"] if config.data.pairs_eval else ["pairs"]
    for name in names:
        rows = inquiry.rows(name)
        if not rows:
            continue
        option, file = f"data.{name}", getattr(config.data, name)
        rows = inquiry.attempt("reward.dimensions", compared, rows, config.reward, file)
        # with a file of captions, which rows have some depends on the videos' contents: the stage finds that out
        if rows and config.reward.context != "none" and not inquiry.has_file("captions"):
            inquiry.attempt(option, check_captions, config, rows, file)
        if rows and name == "pairs" and not config.data.pairs_eval:
            inquiry.attempt(option, hold_out, rows, config.reward.eval_fraction, config.seed)


def ppo(inquiry: Inquiry) -> None:
    config = inquiry.config
    _policy_and_reward(inquiry)
    rows = inquiry.rows("prompts")
    if rows and len(rows) < config.ppo.prompts_per_iteration:
        inquiry.wrong(
            "ppo.prompts_per_iteration",
            f"at most the {len(rows)} usable prompts of data.prompts",
            f"{config.ppo.prompts_per_iteration}",
            f"Set ppo.prompts_per_iteration={len(rows)}, or add prompts",
        )
    if config.ppo.eval_every or inquiry.has_file("eval"):
        inquiry.rows("eval")
    else:
        inquiry.note("data.eval: no such file: PPO measures nothing on held-out prompts, and `rlaif eval` needs it")


def evaluate(inquiry: Inquiry) -> None:
    _policy_and_reward(inquiry)
    inquiry.rows("eval")
    if "ppo" not in inquiry.pending and not inquiry.attempt("name", inquiry.export("ppo").files):
        inquiry.wrong(
            "name",
            f"the export of a PPO run at {inquiry.export('ppo')}",
            "nothing there",
            "Run `rlaif ppo` first, or set name to the run that has one",
        )


def _policy_and_reward(inquiry: Inquiry) -> None:
    check_policy(inquiry)
    check_reward(inquiry)
    check_checker(inquiry, inquiry.config.eval.checker)


def caption(inquiry: Inquiry) -> None:
    config = inquiry.config
    check_model(inquiry, "caption.model", config.caption.model, adapter=True)
    if config.data.captions is None:
        inquiry.wrong("data.captions", "the file to write captions to", "none", "Set data.captions=captions.jsonl")


def sample(inquiry: Inquiry) -> None:
    config = inquiry.config
    for model in config.candidates.models:
        check_model(inquiry, "candidates.models", model, adapter=True)
    _prompt_files(inquiry, "candidates.prompts", config.candidates.prompts)


def label(inquiry: Inquiry) -> None:
    config = inquiry.config
    _judged(inquiry)
    _prompt_files(inquiry, "candidates.prompts", config.candidates.prompts)
    _needs_file(inquiry, "data.candidates", config.data.candidates, "rlaif sample")


def pairs(inquiry: Inquiry) -> None:
    config = inquiry.config
    _needs_file(inquiry, "data.candidates", config.data.candidates, "rlaif sample")
    _needs_file(inquiry, "data.labels", config.data.labels, "rlaif label")


def score(inquiry: Inquiry) -> None:
    config = inquiry.config
    for model in config.score.models:
        inquiry.attempt("score.models", require_reward_model, "score.models", model)
    inquiry.attempt("score.file", score_paths, config)


def agreement(inquiry: Inquiry) -> None:
    config = inquiry.config
    _by_reward_or_judge(inquiry, config.agreement.by)
    if config.data.pairs_eval is None:
        inquiry.wrong(
            "data.pairs_eval", "the preferences to compare with", "none", "Set data.pairs_eval to a file of pairs"
        )
    else:
        _needs_file(inquiry, "data.pairs_eval", config.data.pairs_eval)


def winrate(inquiry: Inquiry) -> None:
    config = inquiry.config
    _by_reward_or_judge(inquiry, config.winrate.by)
    inquiry.attempt("winrate.models", models_of, config)
    _needs_file(inquiry, "data.candidates", config.data.candidates, "rlaif sample")


def context(inquiry: Inquiry) -> None:
    _judged(inquiry)
    if inquiry.config.label.reference is None:
        inquiry.wrong(
            "label.reference",
            "code that knows which of two answers is truer",
            "none",
            "Set label.reference to a function",
        )
    if inquiry.config.data.captions is None:
        inquiry.wrong(
            "data.captions", "the captions that are the context", "none", "Run `rlaif caption` and set data.captions"
        )


def demo(inquiry: Inquiry) -> None:
    """Everything else of the demo is made by the demo itself."""
    config = inquiry.config
    check_function(inquiry, "eval.checker", config.eval.checker)
    _label_functions(inquiry)
    if isinstance(config.ppo.reward, Function):
        check_function(inquiry, "ppo.reward", config.ppo.reward.path)


def _judged(inquiry: Inquiry) -> None:
    check_judge(inquiry)
    _label_functions(inquiry)


def _label_functions(inquiry: Inquiry) -> None:
    options = inquiry.config.label
    check_function(inquiry, "label.reference", options.reference)
    if options.method == "claims" and options.split not in ("sentences", "model"):
        check_function(inquiry, "label.split", options.split)


def _by_reward_or_judge(inquiry: Inquiry, by: str) -> None:
    if by == "judge":
        _judged(inquiry)
    else:
        check_reward(inquiry)


def _prompt_files(inquiry: Inquiry, option: str, files: tuple[str, ...]) -> None:
    for file in files:
        _needs_file(inquiry, option, file)


def _needs_file(inquiry: Inquiry, option: str, file: str, command: str | None = None) -> None:
    """Add a problem unless a dataset file is there; `command` makes it."""
    inquiry.attempt(option, _require_file, inquiry.config, option, file, command)


def _require_file(config: Config, option: str, file: str, command: str | None) -> None:
    path = data_path(config, file)
    if not path.is_file():
        fix = (
            f"run `{command}` first, or set {option}" if command else f"Set {option}, or data.root ({config.data.root})"
        )
        raise ConfigError(f"{option}: a file", f"no file at {path}", fix)


CHECKS: dict[str, Callable[[Inquiry], None]] = {
    "sft": sft,
    "reward": reward,
    "ppo": ppo,
    "eval": evaluate,
    "caption": caption,
    "sample": sample,
    "label": label,
    "pairs": pairs,
    "score": score,
    "eval agreement": agreement,
    "eval winrate": winrate,
    "eval context": context,
    "demo": demo,
}
"""By stage, as it is typed."""


def chain(config: Config) -> list[str]:
    """Return the stages that lead from the files to a measured policy, in order: those that PPO starts from, those whose
    file is there, and the evaluation if there is something to evaluate on."""
    inquiry = Inquiry(config)
    starts = {"ppo": [config.ppo.policy, config.ppo.reward], "reward": [config.reward.init]}
    wanted = ["ppo"]
    if str(inquiry.export("reward")) in starts["ppo"] or inquiry.has_file("pairs"):
        wanted.insert(0, "reward")
    if any(str(inquiry.export("sft")) in starts[stage] for stage in wanted) or inquiry.has_file("sft"):
        wanted.insert(0, "sft")
    return [*wanted, "eval"] if inquiry.has_file("eval") else wanted
