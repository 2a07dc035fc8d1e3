"""Does the capture equal a plain forward pass on this model, row by row? Asked before a build.

A family that the engine would get wrong stops here, with one line, and not after an hour. Also
whether what is read within a block is what its name says: attention's and MLP's outputs must add
up to the residual.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from actcache.conventions import ATTENTION
from actcache.engine.capture import reference_capture
from actcache.engine.model import LanguageModel
from actcache.engine.sites import find_taps
from actcache.errors import ModelError
from actcache.prompts.positions import of_samples
from actcache.prompts.render import Rendered

Read = Callable[..., Mapping[str, Tensor]]
"""`capture`, or what stands in for it."""

FULL_PRECISION_BOUND = 1e-3
"""Largest relative error of a residual in float32 or float64; measured ones are below 1e-5."""

HALF_PRECISION_BOUND = 0.1
"""The same in bfloat16 and float16, where each step rounds to 8 or 11 bits."""


def check_capture(
    model: LanguageModel,
    rows: Sequence[Rendered],
    *,
    read: Read,
    positions: Sequence[str],
    sites: Sequence[str],
    answer: str,
) -> dict[str, Any]:
    """Capture the shortest and the middle row together, and compare with each alone, unpadded.

    Args:
        model: the model.
        rows: all rows of the build.
        read: what captures; called as `capture` is.
        positions: what is read.
        sites: where.
        answer: which token of a completion is its answer token.

    Returns:
        `largest_relative_error`, of any value over the largest absolute value of what was read at
        that layer, and the `bound` that it is under.

    Raises:
        ModelError: it is over the bound, or a site is not what its name says.
    """
    bound = bound_of(model)
    order = np.argsort([row.length for row in rows], kind="stable")
    few = [rows[i] for i in dict.fromkeys((order[0], order[len(order) // 2]))]
    check_sites(model, few[0], sites)
    found = read(model, few, positions=positions, sites=sites, answer=answer)
    paired = bool(few[0].positive)
    worst = 0.0
    for site in sites:
        for j, position in enumerate(positions):
            if position not in of_samples([position], paired=paired):
                continue
            for i, row in enumerate(few):
                true = reference_capture(model, row, position=position, answer=answer, site=site)
                error = float(relative_error(site, found[site][i, :, j], true).max())
                # A residual that overflows is the writer's to report, by row and layer.
                if torch.isfinite(true).all() and not error <= bound:
                    raise ModelError(
                        f"on '{model.name}' ({model.hf.config.model_type}) the batched {site} at "
                        f"'{position}' is off by {error:.2g} of its size from a plain forward "
                        f"pass, expected at most {bound:g}: the engine does not handle this "
                        "family or attention. Try --engine transformer-lens, or --dtype float32."
                    )
                worst = max(worst, error) if error == error else worst
    return {"largest_relative_error": worst, "bound": bound}


def check_sites(model: LanguageModel, row: Rendered, sites: Sequence[str]) -> None:
    """Refuse sites that are not what their names say: what is added, and what that gives.

    Raises:
        ModelError: attention's and MLP's outputs do not add up to the residual in this family.
    """
    wanted = {"resid_mid", "attn_out", "mlp_out"} & set(sites)
    for site in sorted(wanted):
        find_taps(model.anatomy, site)
    if not wanted:
        return

    def at(site: str) -> Tensor:
        return reference_capture(model, row, position="prompt", answer="first", site=site)

    post = at("resid_post")
    before = torch.cat([at("embed"), post[:-1]])
    attention, mlp = at("attn_out"), at("mlp_out")
    try:
        middle = at("resid_mid")
    except ModelError:  # attention and MLP side by side
        sums = {"attn_out": (before, attention + mlp, post)}
        sums["mlp_out"] = sums["attn_out"]
    else:
        sums = {"attn_out": (before, attention, middle), "mlp_out": (middle, mlp, post)}
    broken = {site for site, parts in sums.items() if not _adds_up(model, *parts)}
    if broken:
        raise ModelError(
            f"in '{model.name}' ({model.hf.config.model_type}) {' and '.join(sorted(broken))} are "
            "not what the block adds to the residual, expected them to add up to it. Leave "
            "resid_mid, attn_out and mlp_out out of the sites."
        )


def _adds_up(model: LanguageModel, start: Tensor, added: Tensor, end: Tensor) -> bool:
    """Whether `start + added` is `end`, up to rounding of the sum itself."""
    start, added, end = start.double(), added.double(), end.double()
    rounding = 8 * torch.finfo(model.hf.dtype).eps * end.abs().amax(-1)
    room = bound_of(model) * added.abs().amax(-1) + rounding
    off = (start + added - end).abs().amax(-1)
    return bool((off <= room).all()) or not bool(torch.isfinite(end).all())


def relative_error(
    site: str, found: Float[Tensor, "layer d"], true: Float[Tensor, "layer d"]
) -> Tensor:
    """Largest difference of any value over the largest absolute value, `[layer]`.

    Of attention masses the difference itself: they are shares of a whole that is 1.
    """
    found, true = found.double().cpu(), true.double().cpu()
    off = (found - true).abs().amax(-1)
    if site == ATTENTION:
        return off
    return off / true.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny)


def bound_of(model: LanguageModel) -> float:
    """The largest relative error that counts as right in the model's dtype."""
    half = model.dtype in ("float16", "bfloat16")
    return HALF_PRECISION_BOUND if half else FULL_PRECISION_BOUND
