"""The names of what a build can read, tokens and sites, and what each is called in the store.

`template:K` is a way to ask for K positions at once: `template_-1` (the prompt's last token) to
`template_-K`. Knows names and counts; knows no model and no tokenizer.
"""

import re
from collections.abc import Sequence

from actcache.errors import ActcacheError, RenderError
from actcache.render import Rendered

PAIR_POSITIONS = ("prompt", "fork", "positive", "negative")
"""Tokens that are read of a pair: the last of the prompt, the last that both completions share, and
the answer token of each completion."""

SITES = ("resid_post", "embed", "resid_mid", "attn_out", "mlp_out", "heads")
"""The residual after a block; what enters block 0; the residual between attention and MLP; what
attention and MLP add to the residual; and the heads' outputs before the output projection, head
after head, `n_heads · head_dim` wide (ITI)."""

MEAN = "mean"
"""The mean over all tokens of the prompt, BOS and chat template with them, taken in float32."""

KNOWN = (*PAIR_POSITIONS, MEAN, "template:K")
"""What can be asked for."""


def expand_positions(positions: Sequence[str]) -> list[str]:
    """The positions of a store: `template:K` becomes `template_-1`, …, `template_-K`.

    Raises:
        ActcacheError: a name is unknown, or a position is asked for twice.
    """
    found: list[str] = []
    for name in positions:
        if match := re.fullmatch(r"template:([1-9]\d{0,3})", name):
            found += [f"template_-{back}" for back in range(1, int(match[1]) + 1)]
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
    return int(position.removeprefix("template_-")) if position.startswith("template_-") else None


def check_template(rows: Sequence[Rendered], positions: Sequence[str]) -> None:
    """The last K tokens of a prompt are the template's where all prompts end in them.

    So the code of attention-guided steering counts them too (Davarmanesh et al. 2026).

    Raises:
        RenderError: prompts end in fewer tokens that all share.
    """
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
