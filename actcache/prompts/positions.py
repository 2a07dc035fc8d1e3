"""Names of the tokens (positions) and sites that a build can read.

`template:K` means K positions at once: `template_-1` (the prompt's last token) to `template_-K`;
`last:K` likewise, where the prompts need not end alike.
"""

import re
from collections.abc import Sequence

from actcache.conventions import PAIR_POSITIONS
from actcache.errors import RenderError
from actcache.prompts.render import Rendered


def of_samples(positions: Sequence[str], *, paired: bool) -> list[str]:
    """Keep the positions that samples have; labelled prompts have no completions to read."""
    return [p for p in positions if paired or p == "prompt" or p not in PAIR_POSITIONS]


def from_the_end(position: str) -> int | None:
    """Count from the prompt's end to a position, 1 for the last token; None for other kinds."""
    if position == "prompt":
        return 1
    match = re.fullmatch(r"(?:template|last)_-(\d+)", position)
    return int(match[1]) if match else None


def check_template(rows: Sequence[Rendered], positions: Sequence[str]) -> None:
    """Check that all prompts have the tokens of `last:K`, and end alike where `template:K` is read.

    The last K tokens belong to the template if all prompts end in them, as in the code of
    attention-guided steering (Davarmanesh et al. 2026).
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
