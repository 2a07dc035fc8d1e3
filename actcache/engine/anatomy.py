"""What a model is made of, as TransformerLens says it: blocks, final norm, unembedding.

TransformerLens' architecture adapters know for some hundred families where on the plain Hugging
Face model each part lies. The model itself is not rewritten (a bridge would force eager attention
and replace its layers), so what runs is Hugging Face's own code and the numbers are its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actcache.errors import ModelError


@dataclass(frozen=True)
class Anatomy:
    """The parts of one causal language model."""

    decoder: nn.Module
    """Everything up to and with the final norm; its forward gives no logits."""

    blocks: list[nn.Module]
    """The decoder blocks, in order. Layer ℓ is the residual after `blocks[ℓ]`."""

    ln_final: nn.Module
    """The norm between the last block and the unembedding."""

    unembed: nn.Module
    """The language model head: `weight` `[vocab, d_model]` and perhaps `bias` `[vocab]`."""

    block_parts: Any
    """What TransformerLens says a block is made of: its bridge of a block, without a module."""

    logit_scale: float
    """What logits are multiplied by (Cohere, Granite); 1 in most families."""

    softcap: float | None
    """Logits are `softcap · tanh(logits / softcap)` (Gemma 2), or not capped."""

    def shaped(self, logits: Tensor) -> Tensor:
        """What the family does to raw logits: scale, then cap."""
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def take_apart(hf: nn.Module) -> Anatomy:
    """Find the parts of a Hugging Face causal language model.

    Args:
        hf: the model, as `AutoModelForCausalLM` gives it. It is read, not changed.

    Raises:
        ModelError: the family is unknown to TransformerLens, is no decoder of attention blocks
            (encoder-decoder, state space), or its head does something that is not handled.
    """
    config: Any = hf.config
    family = _family(config)
    if not config.architectures:  # a model made in memory; the adapters look the family up by it
        config.architectures = [type(hf).__name__]
    parts = known_parts(config)
    try:
        paths = {part: str(at.name) for part, at in parts.items() if at.name}
        blocks = hf.get_submodule(paths["blocks"])
        ln_final = hf.get_submodule(paths["ln_final"])
        unembed = hf.get_submodule(paths["unembed"])
    except (KeyError, AttributeError) as error:
        raise _unknown(family, error) from error
    if not isinstance(blocks, nn.ModuleList):
        raise ModelError(
            f"the blocks of '{family}' are a {type(blocks).__name__}, expected a list of decoder "
            "blocks. Use a model of another family."
        )
    return Anatomy(
        decoder=hf.base_model,  # type: ignore[arg-type]  # a module on every PreTrainedModel
        blocks=list(blocks),
        ln_final=ln_final,
        unembed=unembed,
        block_parts=parts["blocks"],
        logit_scale=_logit_scale(config),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def known_parts(config: Any) -> Mapping[str, Any]:
    """What TransformerLens says that a family is made of, from its config alone.

    Args:
        config: the model's config, with its `architectures`.

    Returns:
        TransformerLens' components by their names: `blocks`, `ln_final`, `unembed`, …

    Raises:
        ModelError: the family is unknown to TransformerLens, or `refuse_family` refuses it.
    """
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
    from transformer_lens.model_bridge.sources.transformers import (
        determine_architecture_from_hf_config,
    )

    refuse_family(config)
    try:
        architecture = determine_architecture_from_hf_config(config)
        # The dtype is of no consequence to where parts lie.
        bridge_config = build_bridge_config_from_hf(config, architecture, "", torch.float32)
        adapter = ArchitectureAdapterFactory.select_architecture_adapter(bridge_config)
    except (ValueError, KeyError, AttributeError) as error:
        raise _unknown(_family(config), error) from error
    return dict(adapter.component_mapping or {})


RECURRENT = (
    *("mamba", "jamba", "bamba", "zamba", "rwkv", "xlstm", "recurrent_gemma", "nemotron_h"),
    *("falcon_h1", "granitemoehybrid", "lfm2", "qwen3_next", "minimax", "kimi_linear"),
)
"""Families with a state-space, convolution or linear-attention layer, by parts of their names."""


def refuse_family(config: Any) -> None:
    """Refuse, by name and from the config alone, what the engine cannot be right about.

    Raises:
        ModelError: it is an encoder-decoder, or carries a state from token to token.
    """
    family = _family(config)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"'{family}' is an encoder-decoder, expected a decoder-only language model. "
            "Use a causal language model."
        )
    recurrent = {"mamba", "linear_attention", "recurrent", "conv", "rwkv"}
    kinds = set(getattr(config, "layer_types", None) or [])
    kinds |= set(getattr(config, "layers_block_type", None) or [])
    if recurrent & kinds or any(word in family for word in RECURRENT):
        raise ModelError(
            f"'{family}' carries a recurrent state from token to token, expected attention blocks "
            "only: the prompt's state could not be shared. Use an attention model."
        )


def _family(config: Any) -> str:
    return str(getattr(config, "model_type", "") or type(config).__name__)


def _unknown(family: str, error: Exception) -> ModelError:
    return ModelError(
        f"TransformerLens cannot take the family '{family}' apart ({error}); expected a "
        "decoder whose blocks, final norm and unembedding it knows. Use a known family."
    )


def _logit_scale(config: Any) -> float:
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere multiplies
        return float(scale)
    if (scaling := getattr(config, "logits_scaling", None)) is not None:  # Granite divides
        return 1.0 / float(scaling)
    return 1.0
