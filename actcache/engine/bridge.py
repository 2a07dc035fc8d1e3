"""Capture through a TransformerBridge's own hooks: the slow reference that users know.

One sequence at a time, unpadded, `run_with_cache`. A bridge rewrites the model that it is given, so
it needs an instance of its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from actcache.conventions import ATTENTION, MASS_SITES, MEAN
from actcache.engine.model import LanguageModel
from actcache.engine.reference import sequence_of
from actcache.engine.sites import HOOKS
from actcache.errors import ModelError
from actcache.prompts.render import Rendered


class BridgeCapture:
    """Reads the same values as `capture`, and is called in the same way.

    Args:
        hf: a Hugging Face model that nothing else uses: it is rewritten in place.
    """

    def __init__(self, hf: Any):
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        architecture = (hf.config.architectures or [type(hf).__name__])[0]
        self._n_layers = int(hf.config.get_text_config().num_hidden_layers)
        self._bridge = build_bridge_from_module(hf, architecture, hf_config=hf.config)

    def __call__(
        self,
        model: LanguageModel,
        rows: Sequence[Rendered],
        *,
        positions: Sequence[str],
        answer: str,
        sites: Sequence[str],
    ) -> dict[str, Float[Tensor, "b layer position _"]]:
        """Read `sites` at `positions`; see `capture`."""
        by_row: dict[str, list[Tensor]] = {site: [] for site in sites}
        for row in rows:
            by_position = [
                self._read(row, position, answer, sites, model.device) for position in positions
            ]
            for site in sites:
                by_row[site].append(torch.stack([values[site] for values in by_position], 1))
        return {site: torch.stack(values) for site, values in by_row.items()}

    def _read(
        self,
        row: Rendered,
        position: str,
        answer: str,
        sites: Sequence[str],
        device: torch.device,
    ) -> dict[str, Tensor]:
        """Read each site at one position, `[layer, width]`."""
        sequence, back = sequence_of(row, position, answer=answer)
        hooks = {site: _hook_names(site, self._n_layers) for site in sites}
        with torch.inference_mode():
            _, cache = self._bridge.run_with_cache(
                torch.tensor([sequence], device=device),
                names_filter=[name for names in hooks.values() for name in names],
            )
        values = {}
        for site, names in hooks.items():
            # A wrong name in `names_filter` is dropped without a word, hence this check.
            missing = [name for name in names if name not in cache]
            if missing:
                raise ModelError(
                    f"the TransformerBridge of '{type(self._bridge.original_model).__name__}' has "
                    f"no hook '{missing[0]}', expected one for the site '{site}'. Leave "
                    f"'{site}' out of the sites."
                )
            if site in MASS_SITES:
                span = row.span if site == ATTENTION else row.control_span
                assert span is not None
                weights = [cache[name][0, :, -back, slice(*span)] for name in names]
                values[site] = torch.stack(weights).sum(-1, dtype=torch.float32)
                continue
            tokens = torch.stack([cache[name].reshape(len(sequence), -1) for name in names])
            if position == MEAN:
                wide = torch.promote_types(tokens.dtype, torch.float32)
                values[site] = tokens.mean(1, dtype=wide).to(tokens.dtype)
            else:
                values[site] = tokens[:, -back]
        return values


def _hook_names(site: str, n_layers: int) -> list[str]:
    """TransformerLens' name of `site` in each block."""
    if site == "embed":
        return ["blocks.0.hook_in"]
    hook = {**HOOKS, **dict.fromkeys(MASS_SITES, "attn.hook_pattern")}.get(site, "hook_out")
    return [f"blocks.{layer}.{hook}" for layer in range(n_layers)]
