"""Capture through a TransformerBridge's own hooks: the slow reference that users know.

One sequence at a time, unpadded, `run_with_cache`. A bridge rewrites the model that it is given, so
it gets an instance of its own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from actcache.conventions import ATTENTION, MEAN
from actcache.engine.model import LanguageModel
from actcache.engine.sites import HOOKS
from actcache.errors import ModelError
from actcache.prompts.positions import from_the_end
from actcache.prompts.render import Rendered


class BridgeCapture:
    """Stands in for `capture`; called in the same way.

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
        """Read `sites` at `positions`; see `capture`.

        Raises:
            ModelError: the bridge has no such hook.
        """
        found: dict[str, list[Tensor]] = {site: [] for site in sites}
        for row in rows:
            read = [
                self._read(row, position, answer, sites, model.device) for position in positions
            ]
            for site in sites:
                found[site].append(torch.stack([each[site] for each in read], 1))
        return {site: torch.stack(each) for site, each in found.items()}

    def _read(
        self,
        row: Rendered,
        position: str,
        answer: str,
        sites: Sequence[str],
        device: torch.device,
    ) -> dict[str, Tensor]:
        """Each site at one position, `[layer, width]`."""
        branch = {"positive": row.positive, "negative": row.negative}.get(position, ())
        back = from_the_end(position)
        sequence = (*row.chain, *(branch[:1] if answer == "first" else branch))
        if back is not None or position == MEAN:
            sequence = row.prompt
        names = {site: _names(site, self._n_layers) for site in sites}
        with torch.inference_mode():
            _, cache = self._bridge.run_with_cache(
                torch.tensor([sequence], device=device),
                names_filter=[name for each in names.values() for name in each],
            )
        found = {}
        for site, each in names.items():
            missing = [name for name in each if name not in cache]
            if missing:
                raise ModelError(
                    f"the TransformerBridge of '{type(self._bridge.original_model).__name__}' has "
                    f"no hook '{missing[0]}', expected one for the site '{site}'. Leave "
                    f"'{site}' out of the sites."
                )
            if site == ATTENTION:
                assert row.span is not None
                asked = [cache[name][0, :, -(back or 1), slice(*row.span)] for name in each]
                found[site] = torch.stack(asked).sum(-1, dtype=torch.float32)
                continue
            tokens = torch.stack([cache[name].reshape(len(sequence), -1) for name in each])
            if position == MEAN:
                wide = torch.promote_types(tokens.dtype, torch.float32)
                found[site] = tokens.mean(1, dtype=wide).to(tokens.dtype)
            else:
                found[site] = tokens[:, -(back or 1)]
        return found


def _names(site: str, n_layers: int) -> list[str]:
    """What TransformerLens calls `site` in each block."""
    if site == "embed":
        return ["blocks.0.hook_in"]
    hook = {**HOOKS, ATTENTION: "attn.hook_pattern"}.get(site, "hook_out")
    return [f"blocks.{layer}.{hook}" for layer in range(n_layers)]
