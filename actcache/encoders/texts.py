"""Which text of a row is embedded, and how a set of texts is known again.

Reads columns; knows no encoder.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from actcache.store.store import Store


def texts_of(store: Store) -> list[str]:
    """The text of each row that an encoder of texts sees.

    It is the prompt; where the row has a system message of its own, that comes first, then a blank
    line. The variants sys_pos and sys_neg differ from base in their system message alone: without
    it the three would be one text, and nothing that looks at the embedding could tell them apart,
    though the model does. The message that a build gives to all rows that bring none (`--system`)
    is left out, as is the chat template: both are alike in all rows and say nothing about one.
    The store's column `system` holds the rows' own messages only.

    Returns:
        `n` texts; an empty prompt stays empty.
    """
    prompts = store.prompts.tolist()
    if "system" not in store.columns:  # not every store holds the samples' texts
        return [str(prompt) for prompt in prompts]
    return [
        f"{system}\n\n{prompt}" if system else str(prompt)
        for system, prompt in zip(store["system"].tolist(), prompts, strict=True)
    ]


def row_names(store: Store) -> list[str]:
    """What rows are called in messages: their ids, or their numbers where there are none."""
    if "id" in store.columns:
        return [str(name) for name in store["id"].tolist()]
    return [str(row) for row in range(store.n)]


def distinct(texts: Sequence[str]) -> tuple[list[str], Int64[np.ndarray, " n"]]:
    """Each text once, in order of first appearance, and for every row which of them it has."""
    places: dict[str, int] = {}
    rows = [places.setdefault(text, len(places)) for text in texts]
    return list(places), np.array(rows, np.int64)


def texts_digest(texts: Sequence[str]) -> str:
    """64 hex digits of SHA-256 over all texts, in order, each preceded by its length in bytes."""
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode()
        digest.update(b"%d:" % len(raw) + raw)
    return digest.hexdigest()
