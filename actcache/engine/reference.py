"""The definitions that the fast paths must equal: one row alone, plain forward passes.

No batch, no padding, no tree, no cache. The checks before a build or a sweep, the certificate of a
store and the tests compare with these.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from actcache.conventions import ATTENTION, MASS_SITES, MEAN, check_sites
from actcache.engine.attention_mass import reference_masses
from actcache.engine.forward import residual_of
from actcache.engine.model import LanguageModel
from actcache.engine.sites import find_taps
from actcache.engine.steered_scores import SteeringRule, first_steered_position
from actcache.engine.tree_capture import branch_length
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
    sequence, back = sequence_of(row, position, answer=answer)
    if site in MASS_SITES:
        check_sites(MASS_SITES, [position])
        span = row.span if site == ATTENTION else row.control_span
        assert span is not None
        return reference_masses(model.hf, model.anatomy, sequence, back=back, span=span)
    layers: list[Tensor] = []

    def see(value: Tensor) -> None:
        value = value.reshape(len(sequence), -1)
        if position == MEAN:
            wide = torch.promote_types(value.dtype, torch.float32)
            token = value.mean(0, dtype=wide).to(value.dtype)
        else:
            token = value[-back].clone()
        layers.append(token.to(model.device))

    handles = [tap.attach(see) for tap in find_taps(model.anatomy, site)]
    try:
        with torch.inference_mode():
            ids = torch.tensor([sequence], device=model.device)
            model.anatomy.decoder(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(layers)


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
