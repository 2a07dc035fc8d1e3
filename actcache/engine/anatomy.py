"""A model's parts, found by TransformerLens: blocks, final norm, unembedding.

TransformerLens' architecture adapters know, for some hundred families, where each part lies on the
plain Hugging Face model. The model itself is not rewritten (a bridge would replace its layers and
force eager attention), so Hugging Face's own code runs and the numbers are its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from actcache.engine.masks import BufferedMask, buffered_masks
from actcache.errors import ModelError


@dataclass(frozen=True)
class Anatomy:
    """The parts of one causal language model."""

    decoder: nn.Module
    """Everything up to and with the final norm; its forward pass computes no logits."""

    blocks: list[nn.Module]
    """The decoder blocks, in order. Layer ℓ is the residual after `blocks[ℓ]`."""

    buffered: Sequence[BufferedMask | None]
    """For each block the mask that it keeps in a buffer (GPT-Neo), or None."""

    ln_final: nn.Module
    """The norm between the last block and the unembedding."""

    unembed: nn.Module
    """The language model head: `weight` `[vocab, d_model]` and perhaps `bias` `[vocab]`."""

    block_components: Any
    """TransformerLens' description of a block: its bridge of a block, without a module."""

    logit_scale: float
    """Factor on the logits (Cohere, Granite); 1 in most families."""

    softcap: float | None
    """Logits are `softcap · tanh(logits / softcap)` (Gemma 2), or not capped."""

    def scale_and_cap(self, logits: Tensor) -> Tensor:
        """Turn raw products with the unembedding into the family's logits."""
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def take_apart(hf: nn.Module) -> Anatomy:
    """Find the parts of a Hugging Face causal language model, which stays as it is."""
    config: Any = hf.config
    family = _family(config)
    if not config.architectures:  # a model made in memory; the adapters look the family up by it
        config.architectures = [type(hf).__name__]
    components = find_components(config)
    try:
        paths = {part: str(bridge.name) for part, bridge in components.items() if bridge.name}
        blocks = hf.get_submodule(paths["blocks"])
        ln_final = hf.get_submodule(paths["ln_final"])
        unembed = hf.get_submodule(paths["unembed"])
    except (KeyError, AttributeError) as error:
        raise _unknown_family(family, error) from error
    if not isinstance(blocks, nn.ModuleList):
        raise ModelError(
            f"the blocks of '{family}' are a {type(blocks).__name__}, expected a list of decoder "
            "blocks. Use a model of another family."
        )
    return Anatomy(
        decoder=hf.base_model,  # type: ignore[arg-type]  # a module on every PreTrainedModel
        blocks=list(blocks),
        buffered=buffered_masks(list(blocks)),
        ln_final=ln_final,
        unembed=unembed,
        block_components=components["blocks"],
        logit_scale=_logit_scale(config),
        softcap=getattr(config, "final_logit_softcapping", None),
    )


def find_components(config: Any) -> Mapping[str, Any]:
    """Look up TransformerLens' components of a family, from its config alone.

    They are `blocks`, `ln_final`, `unembed` and more; the config must name its `architectures`.
    """
    from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_config_from_hf
    from transformer_lens.model_bridge.sources.transformers import (
        determine_architecture_from_hf_config,
    )

    refuse_unsupported(config)
    try:
        architecture = determine_architecture_from_hf_config(config)
        # The dtype does not matter for where the parts lie.
        bridge_config = build_bridge_config_from_hf(config, architecture, "", torch.float32)
        adapter = ArchitectureAdapterFactory.select_architecture_adapter(bridge_config)
    except (ValueError, KeyError, AttributeError) as error:
        raise _unknown_family(_family(config), error) from error
    return dict(adapter.component_mapping or {})


RECURRENT = (
    *("mamba", "jamba", "bamba", "zamba", "rwkv", "xlstm", "recurrent_gemma", "nemotron_h"),
    *("falcon_h1", "granitemoehybrid", "lfm2", "qwen3_next", "minimax", "kimi_linear"),
)
"""Families with a state-space, convolution or linear-attention layer, by parts of their names."""


def refuse_unsupported(config: Any) -> None:
    """Refuse, from the config alone, families on which the engine would be wrong."""
    family = _family(config)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"'{family}' is an encoder-decoder, expected a decoder-only language model. "
            "Use a causal language model."
        )
    # A branch would need the state at the fork, and with it a copy of the whole recurrence.
    recurrent = {"mamba", "linear_attention", "recurrent", "conv", "rwkv"}
    layer_types = set(getattr(config, "layer_types", None) or [])
    layer_types |= set(getattr(config, "layers_block_type", None) or [])
    if recurrent & layer_types or any(word in family for word in RECURRENT):
        raise ModelError(
            f"'{family}' carries a recurrent state from token to token, expected attention blocks "
            "only: the prompt's state could not be shared. Use an attention model."
        )


def _family(config: Any) -> str:
    return str(getattr(config, "model_type", "") or type(config).__name__)


def _unknown_family(family: str, error: Exception) -> ModelError:
    reason = str(error).split(". ")[0]  # a list of all known architectures may follow
    return ModelError(
        f"TransformerLens does not know the parts of the family '{family}' ({reason}), expected a "
        "decoder whose blocks, final norm and unembedding it knows. Use a known family."
    )


def _logit_scale(config: Any) -> float:
    if (scale := getattr(config, "logit_scale", None)) is not None:  # Cohere multiplies
        return float(scale)
    if (scaling := getattr(config, "logits_scaling", None)) is not None:  # Granite divides
        return 1.0 / float(scaling)
    return 1.0
