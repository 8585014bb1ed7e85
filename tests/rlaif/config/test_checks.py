"""Options that do not fit together: they are reported before anything starts."""

from __future__ import annotations

import pytest
import yaml

from rlaif.config.checks import problems_of
from rlaif.config.schema import Config

BASE = {"name": "x", "cluster": {"learner": {"actors": 2}}, "ppo": {"prompts_per_iteration": 4, "minibatch_size": 8}}

HANDED = ("rollout.vision=shared", "ppo.lora=null", "reward.lora=null")
LONE = ("ppo.samples_per_prompt=1", "ppo.minibatch_size=4")


def changed(*changes: str) -> Config:
    """Return BASE with some options, written as `a.b=value`, replaced."""
    raw = yaml.safe_load(yaml.safe_dump(BASE))
    for change in changes:
        key, value = change.split("=")
        *parents, last = key.split(".")
        node = raw
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = yaml.safe_load(value)
    return Config.model_validate(raw)


GPUS = ["cluster.rollout.gpus=1", "cluster.learner.gpus=1"]
SHARED = ["cluster.rollout.gpus=0.4", "cluster.learner.gpus=0.4"]


def test_a_plain_configuration_has_no_problems():
    assert problems_of(changed()) == []


@pytest.mark.parametrize(
    ("changes", "stage", "named"),
    [
        (["name=../x"], "sft", "name"),
        (["name=/x"], "sft", "name"),
        (["video.height=56"], "sft", "video.height and video.width"),
        (["model.device=cuda"], "sft", "cluster.learner.gpus is 0"),
        (["model.device=cuda", "cluster.learner.gpus=1", "cluster.rollout.gpus=1"], "ppo", "cluster.reward.gpus is 0"),
        (["cluster.learner.gpus=2"], "sft", "cluster.learner.gpus"),
        (["sft.batch_size=33"], "sft", "cluster.learner.actors (2) must divide sft.batch_size (33)"),
        (["reward.batch_size=33"], "reward", "cluster.learner.actors (2) must divide reward.batch_size (33)"),
        (["ppo.minibatch_size=10"], "ppo", "ppo.minibatch_size (10) must divide"),
        (["cluster.learner.actors=3"], "ppo", "cluster.learner.actors (3) must divide ppo.minibatch_size (8)"),
        (["ppo.minibatch_size=32"], "ppo", "ppo.minibatch_size (32) must divide"),
        (["ppo.advantage=leave_one_out", *LONE], "ppo", "ppo.samples_per_prompt must be at least 2"),
        (["ppo.advantage=leave_one_out", "ppo.critic_warmup=1"], "ppo", "ppo.critic_warmup needs a critic"),
        (["ppo.sampling.top_p=0.9"], "ppo", "ppo.sampling.top_p"),
        (["ppo.sampling.top_k=5"], "ppo", "ppo.sampling.top_p"),
        (["ppo.sampling.temperature=0"], "ppo", "ppo.sampling.temperature"),
        (["ppo.eval_every=5"], "ppo", "eval.checker"),
        (["model.train_vision=true"], "ppo", "ppo.lora"),
        (["ppo.train_projector=true"], "ppo", "ppo.lora"),
        (["model.train_vision=true"], "reward", "reward.lora"),
        (["sft.lora={}", "sft.train_vision=true"], "sft", "sft.lora"),
        (["rollout.max_model_len=256"], "ppo", "rollout.max_model_len (256)"),
        (["cluster.rollout.gpus=2"], "ppo", "rollout.tensor_parallel_size"),
        (["rollout.transport=nccl", *GPUS], "ppo", "set ppo.lora null"),
        (["rollout.transport=nccl", "ppo.lora=null", *GPUS, "cluster.learner.gpus=0.5"], "ppo", "cluster.learner.gpus"),
        (["rollout.transport=ipc", "ppo.lora=null", *SHARED, "cluster.rollout.gpus=0"], "ppo", "cluster.rollout.gpus"),
        (["rollout.transport=ipc", "ppo.lora=null", *SHARED, "cluster.rollout.gpus=1"], "ppo", "a shared GPU"),
        (["rollout.sleep_level=1"], "ppo", "cluster.rollout.gpus is 0"),
        (["rollout.sleep_level=1", *SHARED, "ppo.max_staleness=1"], "ppo", "ppo.max_staleness=0"),
        (["rollout.sleep_level=2", *SHARED], "ppo", "rollout.sleep_level=2"),
        ([*HANDED, "model.train_vision=true"], "ppo", "rollout.vision=engine"),
        ([*HANDED, "ppo.train_projector=true"], "ppo", "rollout.vision=engine"),
        (["reward.dimensions=[a, b, a]"], "reward", "reward.dimensions names a twice"),
        (["score.models=[m, m]"], "score", "score.models names m twice"),
        (["caption.dependent=true", "caption.prompt=see"], "caption", "caption.prompt needs {previous}"),
        (["caption.dependent=true", "caption.previous_slot=see"], "caption", "caption.previous_slot needs {previous}"),
        (["caption.conditioned=true", "caption.prompt=see"], "caption", "caption.prompt needs {question}"),
        (
            ["caption.conditioned=true", "caption.question_slot=see"],
            "caption",
            "caption.question_slot needs {question}",
        ),
        (["caption.aggregate=summarise", "caption.summary_prompt=see"], "eval context", "caption.summary_prompt needs"),
        (["reward.prompt_template='{context}'"], "reward", "reward.prompt_template needs {question}"),
        (["reward.prompt_template='{question}'"], "reward", "reward.context=captions needs {context}"),
        (["reward.captions_template=see"], "reward", "reward.captions_template needs {captions}"),
        (["label.pairwise_prompt='{a} or {b}'"], "label", "label.context=captions needs {context}"),
        (["label.captions_template=see"], "label", "label.captions_template needs {captions}"),
        (["label.method=claims", "label.split=model", "label.split_prompt=see"], "label", "needs {answer}"),
        (["sft.optim.projector_lr=1.0e-5"], "sft", "sft.optim.projector_lr"),
        (["reward.optim.projector_lr=1.0e-5"], "reward", "reward.optim.projector_lr"),
        (["ppo.critic_optim.projector_lr=1.0e-5"], "ppo", "ppo.critic_optim.projector_lr"),
        (["ppo.reward_weights={a: 1}", "ppo.reward={path: 'a:b'}"], "ppo", "ppo.reward_weights"),
    ],
)
def test_each_problem_is_named_in_its_stage(changes, stage, named):
    problems = problems_of(changed(*changes), stage)
    assert len(problems) == 1 and named in problems[0]
    assert named in " ".join(problems_of(changed(*changes)))


def test_stage_reports_only_its_own_problems():
    config = changed("sft.batch_size=33", "ppo.minibatch_size=3")
    assert problems_of(config, "reward") == []
    assert len(problems_of(config, "sft")) == 1 and len(problems_of(config, "ppo")) == 2
    assert len(problems_of(config)) == 3


@pytest.mark.parametrize(
    "changes",
    [
        ["model.train_vision=true", "ppo.train_vision=false", "reward.train_vision=false"],
        ["model.train_projector=true", "ppo.lora=null", "reward.lora=null"],
        ["cluster.rollout.gpus=2", "rollout.tensor_parallel_size=2"],
        ["cluster.learner.gpus=0.5"],
        ["model.device=cuda", "cluster.learner.gpus=1", "cluster.rollout.gpus=1", "ppo.reward={path: 'a:b'}"],
        ["ppo.eval_every=5", "eval.checker='a:b'"],
        ["rollout.transport=nccl", "ppo.lora=null", *GPUS],
        ["rollout.transport=ipc", "ppo.lora=null", "rollout.sleep_level=2", *SHARED],
        ["rollout.sleep_level=1", *SHARED],
        [*HANDED, "model.train_vision=true", "ppo.train_vision=false"],
        ["rollout.vision=shared"],
        ["caption.prompt=see", "caption.summary_prompt=see"],
        ["reward.prompt_template='{question}'", "reward.evaluation_turn='{context} good ?'"],
        ["reward.prompt_template='{question}'", "reward.captions_template=see", "reward.context=none"],
        ["label.pairwise_prompt='{a} or {b}'", "label.captions_template=see", "label.context=none"],
        ["label.method=claims", "label.split_prompt=see"],
        ["caption.dependent=true", "caption.conditioned=true", "caption.aggregate=summarise"],
        ["sft.train_projector=true", "sft.optim.projector_lr=1.0e-5"],
        ["reward.dimensions=[helpfulness, harmlessness]", "ppo.reward_weights={helpfulness: 1, harmlessness: -0.5}"],
    ],
)
def test_compatible_options_have_no_problems(changes):
    assert problems_of(changed(*changes)) == []


def test_feedback_without_an_engine_needs_no_rollout_gpu():
    cuda = "model.device=cuda"
    assert problems_of(changed(cuda), "pairs") == []
    assert problems_of(changed(cuda, "label.judge={path: 'a:b'}"), "label") == []
    for stage in ("caption", "sample", "label"):
        assert "cluster.rollout.gpus is 0" in "".join(problems_of(changed(cuda), stage))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["label.context=none", "label.pairwise_prompt='{a} or {b}'"], "label.context=captions needs {context}"),
        (["label.context=none", "label.captions_template=see"], "label.captions_template needs {captions}"),
        (["reward.context=none", "reward.prompt_template='{question}'"], "reward.context=captions needs {context}"),
        (["label.judge={path: 'a:b'}"], "a function reads no captions"),
        (["context.num_frames=4", "label.show_video=false"], "context.num_frames"),
    ],
)
def test_eval_context_needs_slots_for_captions(changes, named):
    problems = problems_of(changed(*changes), "eval context")
    assert len(problems) == 1 and named in problems[0]
    assert problems_of(changed(*changes)) == []
