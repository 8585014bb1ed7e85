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
        """`heads`: names, or how many outputs each has (a reward model: one per dimension)."""
        super().__init__()
        self.config = model.config
        self.family = family_of(model.config)
        self.banned_ids = media_token_ids(model.config)
        self.model = with_adapters(model, adapters) if adapters else model
        self.has_adapters = bool(adapters)
        hidden = model.config.get_text_config().hidden_size
        outputs = heads if isinstance(heads, Mapping) else dict.fromkeys(heads, 1)
        self.heads = nn.ModuleDict({name: scalar_head(hidden, model.dtype, n) for name, n in outputs.items()})
        """Linear layers; all zeros until trained or loaded."""
        self.head_override: Tensor | None = None
        """[V, H] used instead of the output head: only to find out whether somebody else uses it."""

    @property
    def causal(self) -> nn.Module:
        """The Hugging Face model itself, whether or not adapters wrap it."""
        return self.model.get_base_model() if self.has_adapters else self.model

    def activate(self, adapter: str | None) -> None:
        """Choose whose adapter the next forward *and its backward* use; None is the bare base (the reference)."""
        if not self.has_adapters:
            return
        if adapter is None:
            self.model.base_model.disable_adapter_layers()
            return
        self.model.base_model.enable_adapter_layers()
        self.model.set_adapter(adapter)

    def forward(
        self, batch: Batch, output: Output, head: str | None = None, temperature: float = 1.0
    ) -> dict[str, Tensor]:
        """`logprobs` and `entropy` [B, T], or `values` [B, T], or `score` [B] ([B, K] of K outputs); float32.

        0 outside responses.
        """
        hidden = self.causal.model(
            input_ids=batch.ids,
            attention_mask=batch.attention,
            position_ids=batch.positions,
            use_cache=False,
            **(self._cast(batch.video) if batch.vision is None else {"mm_encoder_outputs": dict(batch.vision)}),
        ).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        if output == "score":
            return {"score": self.heads[head](hidden[rows, batch.last]).squeeze(-1)}
        before = hidden[rows[:, None], batch.index - (batch.index > 0).long()]
        if output == "values":
            return {"values": self.heads[head](before)[..., 0] * batch.valid}
        return self._logprobs(before, batch, temperature)

    def _logprobs(self, before: Tensor, batch: Batch, temperature: float) -> dict[str, Tensor]:
        """Log-probs of the response tokens only: no logits are computed for prompts or padding."""
        wanted = batch.valid.bool()
        states, targets = before[wanted], batch.targets[wanted]
        score = partial(self._token_logprobs, temperature=temperature)
        # under ZeRO-3 a call of the head is a collective, and ranks hold different numbers of tokens: one call each
        sharded = hasattr(self.causal.lm_head.weight, "ds_id")
        size = max(1, len(states)) if sharded else LOGIT_CHUNK
        chunks = zip(states.split(size), targets.split(size), strict=True)
        if torch.is_grad_enabled() and len(states) > size:
            parts = [checkpoint(score, s, t, use_reentrant=False) for s, t in chunks]
        else:
            parts = [score(s, t) for s, t in chunks]
        logprobs, entropy = (torch.cat(part) for part in zip(*parts, strict=True))
        blank = torch.zeros_like(batch.valid)
        return {"logprobs": blank.masked_scatter(wanted, logprobs), "entropy": blank.masked_scatter(wanted, entropy)}

    def _token_logprobs(self, states: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        override = self.head_override
        logits = self.causal.lm_head(states) if override is None else nn.functional.linear(states, override)
        logprobs, entropy = token_logprobs_entropy(logits[None], targets[None], temperature, self.banned_ids)
        return logprobs[0], entropy[0]

    def _cast(self, video: dict[str, Tensor]) -> dict[str, Tensor]:
        dtype = self.causal.dtype
        return {name: tensor.to(dtype) if name.startswith("pixel") else tensor for name, tensor in video.items()}


def load_vlm(path: str, dtype: str, attention: str = "sdpa") -> nn.Module:
    """A causal video VLM from a directory, URI or hub name, on the CPU, in `dtype`; safetensors only: nothing unpickles."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        fetch(path), dtype=getattr(torch, dtype), attn_implementation=attention, use_safetensors=True
    )
    model.config.use_cache = False
    return model


def load_tower(path: str, dtype: str, attention: str = "sdpa") -> nn.Module:
    """What `load_vlm` loads, without its language model and output head: vision tower and projector alone."""
    path = fetch(path)
    config = transformers.AutoConfig.from_pretrained(path)
    text, language = config.get_text_config(), family_of(config).language
    text.layer_types, text.num_hidden_layers = [], 0  # its layers are never read from the files
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        path, config=config, dtype=getattr(torch, dtype), attn_implementation=attention
    )
    model.set_submodule(language, nn.Identity())
    model.set_submodule("lm_head", nn.Identity())
    return model.requires_grad_(False).eval()


class ScalarHead(nn.Linear):
    """hidden -> 1 (or K), computed in float32 whatever the weights are kept in: near 4, bfloat16 has steps of 0.02."""

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden.float(), self.weight.float(), self.bias.float())


def scalar_head(hidden: int, dtype: torch.dtype, outputs: int = 1) -> ScalarHead:
    """hidden -> outputs, zero weight and bias: a critic starts without an opinion (a reward model re-initialises it)."""
    head = ScalarHead(hidden, outputs, dtype=dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def with_adapters(model: nn.Module, adapters: Mapping[str, Lora]) -> PeftModel:
    """Adapters by name, on the language model's linear layers only, in the model's dtype; they start as the identity."""
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
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        bias="none",
        target_modules=target_pattern(lora.targets, language),
    )


def target_pattern(targets: Iterable[str], language: str) -> str:
    """Vision towers have layers of the same names; only those of the language model, at path `language`, are meant."""
    return rf".*{language.split('.')[-1]}\..*\.({'|'.join(targets)})"


def load_adapter(module: VideoLM, adapter: str, export: str | Path) -> None:
    """Put a saved adapter, of a folder or URI, in the place of one that the module has.

    Raises CheckpointError naming the first tensor that is missing, unexpected or of another shape: PEFT would leave what
    is missing as it was initialised.
    """
    tensors = load_tensors(Path(fetch(str(export))) / ADAPTER)
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = {
        name.replace(f".{adapter}.", "."): tuple(parameter.shape)
        for name, parameter in module.model.named_parameters()
        if "lora_" in name and f".{adapter}." in name
    }
    if found != wanted:
        odd = min(name for name, _ in found.items() ^ wanted.items())
        raise CheckpointError(
            f"an adapter of {len(wanted)} tensors, {odd!r} as {wanted.get(odd, 'none of them')}",
            f"{len(found)} tensors in {export}, {odd!r} as {found.get(odd, 'none of them')}",
            "Set rank and targets of the adapter, and its base, as they were when it was written",
        )
    set_peft_model_state_dict(module.model, tensors, adapter_name=adapter)


def freeze_for_full_training(model: nn.Module, train_vision: bool, train_projector: bool) -> None:
    """Everything trains except the tower and the projector, unless asked for."""
    family = family_of(model.config)
    model.requires_grad_(True)
    attrgetter(family.vision)(model).requires_grad_(train_vision)
    for path in family.projector:
        attrgetter(path)(model).requires_grad_(train_projector)
