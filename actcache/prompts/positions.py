"""Names of the tokens (positions) and sites that a build can read.

`template:K` means K positions at once: `template_-1` (the prompt's last token) to `template_-K`;
`last:K` likewise, where the prompts need not end alike.
"""

import re
from collections.abc import Sequence

from actcache.errors import ActcacheError, RenderError
from actcache.prompts.render import Rendered

PAIR_POSITIONS = ("prompt", "fork", "positive", "negative")
"""Tokens that are read of a pair: the last of the prompt, the last that both completions share, and
the answer token of each completion."""

ATTENTION = "attention"
"""The site of attention masses: what the read token's attention, head by head, puts on the marked
span of the prompt; after the softmax, so from 0 to 1."""

SITES = ("resid_post", "embed", "resid_mid", "attn_out", "mlp_out", "heads", ATTENTION)
"""The residual after a block; what enters block 0; the residual between attention and MLP; what
attention and MLP add to the residual; the heads' outputs before the output projection, head after
head, `n_heads · head_dim` wide (ITI); and the attention mass on a marked span, `n_heads` wide."""

MEAN = "mean"
"""The mean over all tokens of the prompt, BOS and chat template with them, taken in float32."""

KNOWN = (*PAIR_POSITIONS, MEAN, "template:K", "last:K")
"""What can be asked for."""


def expand_positions(positions: Sequence[str]) -> list[str]:
    """The positions of a store: `template:K` becomes `template_-1`, …, `template_-K`, and so on.

    Raises:
        ActcacheError: a name is unknown, or a position is asked for twice.
    """
    found: list[str] = []
    for name in positions:
        if match := re.fullmatch(r"(template|last):([1-9]\d{0,3})", name):
            found += [f"{match[1]}_-{back}" for back in range(1, int(match[2]) + 1)]
        elif name in (*PAIR_POSITIONS, MEAN):
            found.append(name)
        else:
            raise ActcacheError(
                f"positions: '{name}' is unknown, expected {', '.join(KNOWN)} with K = 1 or more. "
                "Pass some of them, separated by commas."
            )
    if not found or len(set(found)) != len(found):
        raise ActcacheError(
            f"positions are {list(positions)}, expected one or more, each once of "
            f"{', '.join(KNOWN)}. Pass them separated by commas."
        )
    return found


def of_samples(positions: Sequence[str], *, paired: bool) -> list[str]:
    """Keep the positions that samples have; labelled prompts have no completions to read."""
    return [p for p in positions if paired or p == "prompt" or p not in PAIR_POSITIONS]


def from_the_end(position: str) -> int | None:
    """Count from the prompt's end to a position, 1 for the last token; None for other kinds."""
    if position == "prompt":
        return 1
    match = re.fullmatch(r"(?:template|last)_-(\d+)", position)
    return int(match[1]) if match else None


def check_sites(sites: Sequence[str], positions: Sequence[str]) -> None:
    """Attention is read of single tokens: all tokens' attention would be a square of them.

    Raises:
        ActcacheError: it is asked for at the mean.
    """
    if ATTENTION in sites and MEAN in positions:
        raise ActcacheError(
            f"the site {ATTENTION} is asked for at the position {MEAN}, expected single tokens. "
            f"Leave out {MEAN}, or build it as a store of its own."
        )


def check_template(rows: Sequence[Rendered], positions: Sequence[str]) -> None:
    """Check that all prompts have the tokens of `last:K`, and end alike where `template:K` is read.

    The last K tokens belong to the template if all prompts end in them, as in the code of
    attention-guided steering (Davarmanesh et al. 2026).

    Raises:
        RenderError: fewer than K tokens are shared, or a prompt has fewer.
    """
    last = max((from_the_end(p) or 0 for p in positions if p.startswith("last_")), default=0)
    shortest = min(len(row.prompt) for row in rows)
    if last > shortest:
        raise RenderError(
            f"last:{last} reads the last {last} tokens of each prompt, but the shortest has "
            f"{shortest}. Pass last:{shortest}, or drop the short prompts."
        )
    depth = max((from_the_end(p) or 0 for p in positions if p.startswith("template_")), default=0)
    shared = min(_shared_end(rows[0].prompt, row.prompt) for row in rows)
    if depth > shared:
        remedy = f"Pass template:{shared}" if shared else "Pass a chat template with --template"
        raise RenderError(
            f"template:{depth} reads the last {depth} tokens of the chat template, but only "
            f"the last {shared} tokens are the same in all prompts. {remedy}, or leave it out."
        )


def _shared_end(left: Sequence[int], right: Sequence[int]) -> int:
    """Count the tokens that two prompts share at their ends."""
    pairs = enumerate(zip(left[::-1], right[::-1], strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
