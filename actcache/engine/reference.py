"""The definitions that the fast paths must equal: one row alone, plain forward passes.

No batch, no padding, no tree, no cache. The checks before a build or a sweep, the certificate of a
store and the tests compare with these. `BridgeCapture` reads through a TransformerBridge's own
hooks instead: the slow reference that users know.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from actcache.conventions import ATTENTION, MASS_SITES, MEAN, check_sites
from actcache.engine.attention_mass import reference_masses
from actcache.engine.forward import residual_of
from actcache.engine.model import LanguageModel
from actcache.engine.sites import HOOKS, find_taps
from actcache.engine.steered_scores import SteeringRule, first_steered_position
from actcache.engine.tree_capture import branch_length
from actcache.errors import ModelError
from actcache.prompts.positions import from_the_end
from actcache.prompts.render import Rendered


def reference_capture(
    model: LanguageModel,
    row: Rendered,
    *,
    position: str,
    answer: str,
    site: str = "resid_post",
) -> Float[Tensor, "layer _"]:
    """Read one site at one position: the row alone, in a plain forward pass of the model."""
    values = reference_values(model, row, positions=[position], answer=answer, sites=[site])
    return values[site][:, 0]


def reference_values(
    model: LanguageModel,
    row: Rendered,
    *,
    positions: Sequence[str],
    answer: str,
    sites: Sequence[str],
) -> dict[str, Float[Tensor, "layer position _"]]:
    """Read sites at positions: the row alone, in as few plain forward passes as hold them all.

    A token's value is the same in every sequence that continues it, so the prompt is read in the
    pass of a completion; a model that looks ahead differs from `capture` there, and is refused.
    """
    check_sites(sites, positions)
    sequences = {name: sequence_of(row, name, answer=answer) for name in positions}
    values: dict[str, dict[str, list[Tensor]]] = {
        site: {name: [] for name in positions} for site in sites if site not in MASS_SITES
    }

    def see(site: str, names: Sequence[str], value: Tensor) -> None:
        value = value.reshape(-1, value.shape[-1])
        for name in names:
            sequence, back = sequences[name]
            if name == MEAN:
                wide = torch.promote_types(value.dtype, torch.float32)
                token = value[: len(sequence)].mean(0, dtype=wide).to(value.dtype)
            else:
                token = value[len(sequence) - back].clone()
            values[site][name].append(token.to(model.device))

    for run, names in _runs({name: tokens for name, (tokens, _) in sequences.items()}).items():
        handles = [
            tap.attach(partial(see, site, names))
            for site in values
            for tap in find_taps(model.anatomy, site)
        ]
        try:
            if values:
                with torch.inference_mode():
                    ids = torch.tensor([run], device=model.device)
                    model.anatomy.decoder(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
    stacked = {
        site: torch.stack([torch.stack(by_position[name]) for name in positions], 1)
        for site, by_position in values.items()
    }
    if marked := [site for site in MASS_SITES if site in sites]:
        stacked |= _masses(model, row, sequences, marked)
    return stacked


def _masses(
    model: LanguageModel,
    row: Rendered,
    sequences: Mapping[str, tuple[tuple[int, ...], int]],
    sites: Sequence[str],
) -> dict[str, Float[Tensor, "layer position head"]]:
    """Read the attention masses at all positions; passes of their own, since they run eager."""
    spans = [row.span if site == ATTENTION else row.control_span for site in sites]
    by_position: dict[str, Tensor] = {}
    for run, names in _runs({name: tokens for name, (tokens, _) in sequences.items()}).items():
        columns = [len(sequences[name][0]) - sequences[name][1] for name in names]
        masses = reference_masses(
            model.hf,
            model.anatomy,
            run,
            read=columns,
            spans=[span for span in spans if span is not None],
        )
        by_position |= {name: masses[:, :, i] for i, name in enumerate(names)}
    stacked = torch.stack([by_position[name] for name in sequences], 2)
    return dict(zip(sites, stacked, strict=True))


def _runs(sequences: Mapping[str, tuple[int, ...]]) -> dict[tuple[int, ...], list[str]]:
    """Which sequences to run, and the positions that each holds."""
    runs: dict[tuple[int, ...], list[str]] = {}
    for name in sorted(sequences, key=lambda name: -len(sequences[name])):
        tokens = sequences[name]
        run = next((run for run in runs if run[: len(tokens)] == tokens), tokens)
        runs.setdefault(run, []).append(name)
    return runs


def sequence_of(row: Rendered, position: str, *, answer: str) -> tuple[tuple[int, ...], int]:
    """The sequence that a position is read in, and how far from its end the token lies (1: last).

    For the mean it is the prompt.
    """
    back = from_the_end(position)
    if back is not None or position == MEAN:
        return row.prompt, back or 1
    completion = {"positive": row.positive, "negative": row.negative}.get(position, ())
    n = branch_length(row, position, positions=[position], answer=answer)
    return (*row.chain, *completion[:n]), 1


def reference_cell(
    model: LanguageModel,
    row: Rendered,
    direction: Float[Tensor, " d"],
    multiplier: float,
    layer: int,
    rule: SteeringRule,
) -> float:
    """Compute one cell of a sweep by its definition: two full forward passes with a hook."""
    first = first_steered_position(row, rule)
    push = multiplier * direction.to(model.device)

    def steer(_block: nn.Module, _args: Any, output: Any) -> Any:
        residual = residual_of(output).clone()
        steered = residual[:, first:] + push.to(residual.device)
        residual[:, first:] = steered.to(residual.dtype)
        return (residual, *output[1:]) if isinstance(output, tuple) else residual

    scores = []
    for completion in (row.positive, row.negative):
        n_scored = len(completion) if rule.whole else 1
        ids = torch.tensor([[*row.chain, *completion]], device=model.device)
        handle = model.anatomy.blocks[layer].register_forward_hook(steer)
        try:
            with torch.inference_mode():
                logits = model.hf(input_ids=ids, use_cache=False).logits[0].double()
        finally:
            handle.remove()
        if rule.score == "logprob":
            logits = torch.log_softmax(logits, -1)
        # The token before each scored token predicts it; the fork predicts the first.
        predictor = torch.arange(n_scored, device=logits.device) + len(row.chain) - 1
        target = torch.tensor(completion[:n_scored], device=logits.device)
        scores.append(logits[predictor, target].sum())
    difference = scores[0] - scores[1]
    return float(torch.sigmoid(difference) if rule.score == "probability" else difference)


class BridgeCapture:
    """Reads the same values as `capture`, and is called in the same way.

    One sequence at a time, unpadded, `run_with_cache`.

    Args:
        hf: a Hugging Face model that nothing else uses: a bridge rewrites it in place.
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
