"""The names of what a build can read, tokens and sites, and what each is called in the store.

`template:K` is a way to ask for K positions at once: `template_-1` (the prompt's last token) to
`template_-K`; `last:K` likewise, where the prompts need not end alike. Knows names and counts;
knows no model and no tokenizer.
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
    """Those of a store's `positions` that its samples have: of labelled prompts, the prompt's."""
    return [p for p in positions if paired or p == "prompt" or p not in PAIR_POSITIONS]


def from_the_end(position: str) -> int | None:
    """How far before the end of the prompt a token lies, 1 for the last; None for other kinds."""
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
    """The last K tokens of a prompt are the template's where all prompts end in them.

    So the code of attention-guided steering counts them too (Davarmanesh et al. 2026). `last:K`
    asks for no more than that every prompt has K tokens.

    Raises:
        RenderError: prompts end in fewer tokens that all share, or have fewer.
    """
    last = max((from_the_end(p) or 0 for p in positions if p.startswith("last_")), default=0)
    shortest = min(len(row.prompt) for row in rows)
    if last > shortest:
        raise RenderError(
            f"last:{last} asks for the last {last} tokens of each prompt, but the shortest has "
            f"{shortest}. Pass last:{shortest}, or drop the short prompts."
        )
    wanted = max((from_the_end(p) or 0 for p in positions if p.startswith("template_")), default=0)
    shared = min(_shared_end(rows[0].prompt, row.prompt) for row in rows)
    if wanted > shared:
        remedy = f"Pass template:{shared}" if shared else "Pass a chat template with --template"
        raise RenderError(
            f"template:{wanted} asks for the last {wanted} tokens of the chat template, but only "
            f"the last {shared} tokens are the same in all prompts. {remedy}, or leave it out."
        )


def _shared_end(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens at their ends two prompts share."""
    pairs = enumerate(zip(left[::-1], right[::-1], strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
