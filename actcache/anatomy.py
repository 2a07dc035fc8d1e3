"""What a model is made of, as TransformerLens says it: blocks, final norm, unembedding.

TransformerLens' architecture adapters know for some hundred families where on the plain Hugging
Face model each part lies. The model itself is not rewritten (a bridge would force eager attention
and replace its layers), so what runs is Hugging Face's own code and the numbers are its own.
"""

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
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources.transformers import (
        determine_architecture_from_hf_config,
        map_default_transformer_lens_config,
    )

    config: Any = hf.config
    family = str(getattr(config, "model_type", type(hf).__name__))
    _refuse(config, family)
    if not config.architectures:  # a model made in memory; the adapters look the family up by it
        config.architectures = [type(hf).__name__]
    try:
        architecture = determine_architecture_from_hf_config(config)
        fields = {**vars(map_default_transformer_lens_config(config)), "architecture": architecture}
        bridge_config = TransformerBridgeConfig.from_dict(fields)
        adapter = ArchitectureAdapterFactory.select_architecture_adapter(bridge_config)
        parts = adapter.component_mapping or {}
        paths = {part: str(at.name) for part, at in parts.items() if at.name}
        blocks = hf.get_submodule(paths["blocks"])
        ln_final = hf.get_submodule(paths["ln_final"])
        unembed = hf.get_submodule(paths["unembed"])
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"TransformerLens cannot take the family '{family}' apart ({error}); expected a "
            "decoder whose blocks, final norm and unembedding it knows. Use a known family."
        ) from error
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
        logit_scale=_logit_scale(config),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def _refuse(config: Any, family: str) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"'{family}' is an encoder-decoder, expected a decoder-only language model. "
            "Use a causal language model."
        )
    recurrent = {"mamba", "linear_attention", "recurrent", "conv", "rwkv"}
    layer_types = set(getattr(config, "layer_types", None) or [])
    named = [word for word in ("mamba", "rwkv", "xlstm", "recurrent_gemma") if word in family]
    if named or recurrent & layer_types:
        raise ModelError(
            f"'{family}' carries a recurrent state from token to token, expected attention blocks "
            "only: the prompt's state could not be shared. Use an attention model."
        )


def _logit_scale(config: Any) -> float:
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere multiplies
        return float(scale)
    if (scaling := getattr(config, "logits_scaling", None)) is not None:  # Granite divides
        return 1.0 / float(scaling)
    return 1.0
