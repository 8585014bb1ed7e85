"""Presets: defaults that reproduce the arithmetic of another system. Options that the user sets win.

vlm_rlaif: reward model and PPO of VLM-RLAIF (ACL 2024). docs/presets.md says which quirk each option stands for, which
test checks it, and what is not reproduced. The wording of the prompt is ours, its order theirs.
"""

from __future__ import annotations

from typing import Any, Literal

Preset = Literal["modern", "vlm_rlaif"]

# Adapter and optimizer of the released training script.
_LORA = {"r": 64, "alpha": 16.0, "dropout": 0.0}
_ADAMW = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "warmup_from_zero": True}
# The released code has one optimizer for policy and critic, so both get the same options.
_PPO_OPTIM = _ADAMW | {"lr": 3e-5, "warmup_steps": 5, "schedule": "cosine", "min_lr_ratio": 0.0, "max_grad_norm": 1.0}

VLM_RLAIF = {
    "reward": {
        "lora": _LORA,
        "head_init": "uniform",
        "prompt_template": "{question}",
        "captions_template": "\n   Notes on the video, in time order, that can be relied on:\n   * {captions}",
        "captions_separator": "\n   * ",
        "evaluation_turn": (
            "Please grade the answer that you just gave. Four things count:\n"
            "1. Truth: all that it says can be seen in the video; nothing is invented or mixed up.{context}\n"
            "2. Use: whoever asked learns what they wanted to know.\n"
            "3. Language: it reads as if a person had written it with care.\n"
            "4. Brevity: nothing in it could be left out."
        ),
        "verdict": "Taking all four together, my grade for the answer is",
        "centering": "mean_abs",
        "centering_coef": 1e-3,
        "epochs": 1,
        "batch_size": 16,
        "eval_every": 400,
        "export": "last",
        "optim": _ADAMW | {"lr": 2e-5, "warmup_ratio": 0.03, "schedule": "constant", "max_grad_norm": 0.3},
        "save": {"every": 400},
    },
    "ppo": {
        "lora": _LORA,
        "critic_init": "reward",
        "prompts_per_iteration": 256,
        "samples_per_prompt": 1,
        "minibatch_size": 128,
        "epochs": 2,
        "sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 896, "truncate_at": ("?",)},
        "max_staleness": 0,
        # The released trainer recomputes log-probs and has no importance weights.
        "old_logprobs": "learner",
        "importance_cap": None,
        "terms": {"no_eos": -8.0, "length": -10.0},
        "kl": {"estimator": "k1", "clamp": True, "coef": 0.1, "controller": "fixed"},
        "score_slot": "last_slot",
        "reward_scale": 10.0,
        "whiten_rewards": False,
        "advantage": "gae",
        "gamma": 1.0,
        "lam": 1.0,
        "whiten_advantages": True,
        "whiten_eps": "deviation",
        # Every mean of the released code is over the padded length, padding included.
        "loss_mean": "slots",
        "clip": 0.2,
        "value_clip": 0.2,
        "value_clip_unit": "absolute",
        "value_coef": 0.1,
        "target_kl": None,
        "entropy_coef": 0.0,
        "critic_warmup": 0,
        # The scheduler of the released code steps once per iteration, not once per optimizer step.
        "schedule_per": "iteration",
        "optim": _PPO_OPTIM,
        "critic_optim": _PPO_OPTIM,
        "save": {"every": 10},
    },
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {"vlm_rlaif": VLM_RLAIF}


def with_preset(section: Literal["ppo", "reward"], options: Any) -> Any:
    """Return a section's raw options, completed by the defaults of the preset that they name.

    Options that are no mapping, or name no preset, are returned as they are: validation reports them.
    """
    preset = options.get("preset") if isinstance(options, dict) else None
    if not isinstance(preset, str) or preset not in PRESETS:
        return options
    return _merge(PRESETS[preset][section], options)


def _merge(defaults: Any, options: Any) -> Any:
    """Return `options` completed by `defaults`. Groups are merged; any other value (a list, null) replaces its default."""
    if not (isinstance(defaults, dict) and isinstance(options, dict)):
        return options
    merged = dict(defaults)
    for key, value in options.items():
        merged[key] = _merge(defaults.get(key), value)
    return merged
