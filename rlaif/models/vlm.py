"""One video-language backbone with adapters and scalar heads: policy, reference, critic and reward model are views of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Literal

import torch
import transformers
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlaif.config.schema import Lora
from rlaif.errors import CheckpointError
from rlaif.io.storage import fetch
from rlaif.io.tensors import load_tensors
from rlaif.models.batch import Batch
from rlaif.models.family import family_of, media_token_ids
from rlaif.objectives.logprobs import token_logprobs_entropy

Output = Literal["logprobs", "values", "score"]

ADAPTER = "adapter_model.safetensors"
"""An adapter's file, as PEFT names it. PEFT's own loader would unpickle a file of another name."""

LOGIT_CHUNK = 2048
"""Response tokens whose logits exist at the same time; the rest are recomputed in the backward pass."""


class VideoLM(nn.Module):
    """A Hugging Face video VLM, optionally with PEFT adapters that share its frozen weights, and scalar heads by name.

    The scalar heads are plain linear layers on the last hidden state (no auto-class): `values` reads the position
    before each response token, `score` the last token, so both are independent of padding.
    """

    def __init__(
        self,
        model: nn.Module,
        heads: Iterable[str] | Mapping[str, int] = (),
        adapters: Mapping[str, Lora] | None = None,
    ):
        """Wrap a model; `heads`: names, or how many outputs each has (a reward model: one per dimension)."""
        super().__init__()
        self.config = model.config
        self.family = family_of(model.config)
        self.banned_ids = media_token_ids(model.config)
        self.model = with_adapters(model, adapters) if adapters else model
        self.has_adapters = bool(adapters)
        hidden = model.config.get_text_config().hidden_size
        # plain linear layers: the auto-classes for values and scores know no video models
        outputs = heads if isinstance(heads, Mapping) else dict.fromkeys(heads, 1)
        self.heads = nn.ModuleDict()
        """Linear layers; all zeros until trained or loaded."""
        for name, count in outputs.items():
            self.heads[name] = scalar_head(hidden, model.dtype, count)
        self.head_override: Tensor | None = None
        """[V, H] used instead of the output head, only to check whether it is the head that the engine uses."""

    @property
    def causal(self) -> nn.Module:
        """Return the Hugging Face model itself, whether or not adapters wrap it."""
        return self.model.get_base_model() if self.has_adapters else self.model

    def activate(self, adapter: str | None) -> None:
        """Choose whose adapter the next forward *and its backward* use; None is the bare base (the reference)."""
        if not self.has_adapters:
            return
        # `set_adapter` also switches off the gradients of all other adapters: it comes before the forward whose backward follows
        if adapter is None:
            self.model.base_model.disable_adapter_layers()
            return
        self.model.base_model.enable_adapter_layers()
        self.model.set_adapter(adapter)

    def forward(
        self, batch: Batch, output: Output, head: str | None = None, temperature: float = 1.0
    ) -> dict[str, Tensor]:
        """Return `logprobs` and `entropy` [B, T], or `values` [B, T], or `score` [B] ([B, K] of K outputs); float32.

        They are 0 outside responses.
        """
        # Positions are explicit, by the engine's rule: transformers' own would shift the text after a video.
        hidden = self.causal.model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            position_ids=batch.positions,
            use_cache=False,
            **self._video_inputs(batch),
        ).last_hidden_state
        # only rows that are read go through a head: [B, L, V] of a long prompt would not fit into memory
        rows = torch.arange(len(hidden), device=hidden.device)
        if output == "score":
            score = self.heads[head](hidden[rows, batch.last])
            return {"score": score.squeeze(-1)}
        # the state before a token predicts it; a response that begins the sequence has none, and takes its own
        has_previous = (batch.index > 0).long()
        before = hidden[rows[:, None], batch.index - has_previous]
        if output == "values":
            return {"values": self.heads[head](before)[..., 0] * batch.valid}
        return self._logprobs(before, batch, temperature)

    def _logprobs(self, before: Tensor, batch: Batch, temperature: float) -> dict[str, Tensor]:
        """Return the log-probs of the response tokens only: no logits are computed for prompts or padding."""
        valid = batch.valid.bool()
        states, targets = before[valid], batch.targets[valid]
        score = partial(self._token_logprobs, temperature=temperature)
        # under ZeRO-3 a call of the head is a collective, and ranks hold different numbers of tokens: one call each
        sharded = hasattr(self.causal.lm_head.weight, "ds_id")
        size = max(1, len(states)) if sharded else LOGIT_CHUNK
        chunks = zip(states.split(size), targets.split(size), strict=True)
        # more than one chunk: their logits are computed again in the backward pass instead of being kept
        recompute = torch.is_grad_enabled() and len(states) > size
        logprob_parts, entropy_parts = [], []
        for part, part_targets in chunks:
            if recompute:
                logprobs, entropy = checkpoint(score, part, part_targets, use_reentrant=False)
            else:
                logprobs, entropy = score(part, part_targets)
            logprob_parts.append(logprobs)
            entropy_parts.append(entropy)
        logprobs, entropy = torch.cat(logprob_parts), torch.cat(entropy_parts)
        blank = torch.zeros_like(batch.valid)
        return {"logprobs": blank.masked_scatter(valid, logprobs), "entropy": blank.masked_scatter(valid, entropy)}

    def _token_logprobs(self, states: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        override = self.head_override
        logits = self.causal.lm_head(states) if override is None else nn.functional.linear(states, override)
        logprobs, entropy = token_logprobs_entropy(logits[None], targets[None], temperature, self.banned_ids)
        return logprobs[0], entropy[0]

    def _video_inputs(self, batch: Batch) -> dict:
        """Return precomputed outputs of the tower, or the videos with pixels in the model's dtype; grids and times stay."""
        if batch.vision is not None:
            return {"mm_encoder_outputs": dict(batch.vision)}
        inputs = dict(batch.video)
        for name, tensor in batch.video.items():
            if name.startswith("pixel"):
                inputs[name] = tensor.to(self.causal.dtype)
        return inputs


def load_vlm(path: str, dtype: str, attention: str = "sdpa") -> nn.Module:
    """Load a causal video VLM from a directory, URI or hub name, on the CPU, in `dtype`.

    Only safetensors: nothing unpickles.
    """
    # without `use_safetensors` transformers would unpickle weights of another format
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        fetch(path), dtype=getattr(torch, dtype), attn_implementation=attention, use_safetensors=True
    )
    model.config.use_cache = False  # keys and values are for generation, which is vLLM's work
    return model


def load_tower(path: str, dtype: str, attention: str = "sdpa") -> nn.Module:
    """Load the vision tower and projector of a model as `load_vlm` does, without its language model and output head."""
    folder = fetch(path)
    config = transformers.AutoConfig.from_pretrained(folder)
    text, language = config.get_text_config(), family_of(config).language
    text.layer_types, text.num_hidden_layers = [], 0  # its layers are never read from the files
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        folder, config=config, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    model.set_submodule(language, nn.Identity())
    model.set_submodule("lm_head", nn.Identity())
    return model.requires_grad_(False).eval()


class ScalarHead(nn.Linear):
    """hidden -> 1 (or K), computed in float32 whatever dtype the weights have: near 4, bfloat16 has steps of 0.02."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Return scores [..., K] of hidden states [..., H]."""
        return nn.functional.linear(hidden.float(), self.weight.float(), self.bias.float())


def scalar_head(hidden: int, dtype: torch.dtype, outputs: int = 1) -> ScalarHead:
    """Return a head with zero weight and bias: a critic starts without an opinion (a reward model re-initialises it)."""
    head = ScalarHead(hidden, outputs, dtype=dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def with_adapters(model: nn.Module, adapters: Mapping[str, Lora]) -> PeftModel:
    """Return the model with adapters by name, on the language model's linear layers only, in the model's dtype.

    They start as the identity.
    """
    (first, lora), *others = adapters.items()
    language = family_of(model.config).language
    # PEFT would make adapters of a bfloat16 model float32. DeepSpeed casts them back, plain inference does not: a reward
    # actor would give other scores than the learner that trained its model.
    options = {"autocast_adapter_dtype": False}
    peft = PeftModel(model, lora_config(lora, language), adapter_name=first, **options)
    for name, lora in others:
        peft.add_adapter(name, lora_config(lora, language), **options)
    return peft


def lora_config(lora: Lora, language: str) -> LoraConfig:
    """Return PEFT's settings of an adapter on the language model at path `language`."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        target_modules=target_pattern(lora.targets, language),
    )


def target_pattern(targets: Iterable[str], language: str) -> str:
    """Return a pattern of the layers `targets` in the language model at path `language`.

    Vision towers have layers of the same names, which must not match.
    """
    return rf".*{language.split('.')[-1]}\..*\.({'|'.join(targets)})"


def load_adapter(module: VideoLM, adapter: str, export: str | Path) -> None:
    """Load a saved adapter, of a folder or URI, in the place of one that the module has.

    Raises CheckpointError naming the first tensor that is missing, unexpected or of another shape: PEFT would leave what
    is missing as it was initialised.
    """
    tensors = load_tensors(Path(fetch(str(export))) / ADAPTER)
    # PEFT saves an adapter without its name inside the module
    saved = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    own = {}
    for name, parameter in module.model.named_parameters():
        if "lora_" in name and f".{adapter}." in name:
            own[name.replace(f".{adapter}.", ".")] = tuple(parameter.shape)
    if saved != own:
        odd = min(name for name, _ in saved.items() ^ own.items())
        raise CheckpointError(
            f"an adapter of {len(own)} tensors, {odd!r} as {own.get(odd, 'none of them')}",
            f"{len(saved)} tensors in {export}, {odd!r} as {saved.get(odd, 'none of them')}",
            "Set rank and targets of the adapter, and its base, as they were when it was written.",
        )
    set_peft_model_state_dict(module.model, tensors, adapter_name=adapter)


def freeze_for_full_training(model: nn.Module, train_vision: bool, train_projector: bool) -> None:
    """Let everything train except the tower and the projector, which train only if the arguments say so."""
    family = family_of(model.config)
    model.requires_grad_(True)
    attrgetter(family.vision)(model).requires_grad_(train_vision)
    for path in family.projector:
        attrgetter(path)(model).requires_grad_(train_projector)
