"""The names of what a build can read, tokens and sites, and what each is called in the store.

`template:K` is a way to ask for K positions at once: `template_-1` (the prompt's last token) to
`template_-K`; `last:K` likewise, where the prompts need not end alike. Knows names and counts;
knows no model and no tokenizer.
"""

import re
from collections.abc import Sequence

from actcache.conventions import PAIR_POSITIONS
from actcache.errors import RenderError
from actcache.prompts.render import Rendered


def of_samples(positions: Sequence[str], *, paired: bool) -> list[str]:
    """Those of a store's `positions` that its samples have: of labelled prompts, the prompt's."""
    return [p for p in positions if paired or p == "prompt" or p not in PAIR_POSITIONS]


def from_the_end(position: str) -> int | None:
    """How far before the end of the prompt a token lies, 1 for the last; None for other kinds."""
    if position == "prompt":
        return 1
    match = re.fullmatch(r"(?:template|last)_-(\d+)", position)
    return int(match[1]) if match else None


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
