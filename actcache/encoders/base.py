"""What encoders share: their names, the text of a row, and the vectors that they return."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from jaxtyping import Float32, Int64, Real

from actcache.errors import ActcacheError, MismatchError, NotFiniteError
from actcache.store.store import Store

Kind = Literal["cache", "hf", "openai"]
Pooling = Literal["cls", "mean"]

_CACHE = re.compile(r"cache(?::(prompt|mean))?(?::(\d{1,6}))?")
_HF = re.compile(r"hf:(.+?)(?::(cls|mean))?")
_OPENAI = re.compile(r"openai:(.+?)(?::([1-9]\d{0,5}))?")


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """An encoder's name, taken apart."""

    text: str
    """The name as it was given."""

    kind: Kind
    """Where vectors come from: the store, a model that runs here, or a service."""

    position: str = "prompt"
    """Of `cache`: which residual, that of the last prompt token or the mean over the prompt."""

    layer: int | None = None
    """Of `cache`: after which block; None is the middle one, `n_layers // 2`."""

    model: str = ""
    """Of `hf` and `openai`: Hub id, folder, or the service's name of the model."""

    pooling: Pooling | None = None
    """Of `hf`: how tokens become one vector; None does what the model's folder says."""

    dimensions: int | None = None
    """Of `openai`: the width to request; None is the model's own."""


def parse_encoder(text: str) -> EncoderSpec:
    """Read the name of an encoder.

    - `cache:LAYER`: the residual of the last prompt token after that block, free and offline;
      `cache` alone is the middle layer; `cache:mean:LAYER` the mean over the prompt's tokens.
    - `hf:NAME_OR_FOLDER`: a BERT or a sentence encoder that transformers loads; `:cls` or `:mean`
      at the end chooses how its tokens are pooled.
    - `openai:MODEL`: a service that speaks OpenAI's protocol; a number at the end requests that
      many dimensions. Other colons belong to the model's name (`openai:nomic-embed-text:v1.5`).

    Example:
        >>> spec = parse_encoder("hf:bert-base-uncased:cls")
        >>> spec.kind, spec.model, spec.pooling
        ('hf', 'bert-base-uncased', 'cls')
    """
    if match := _CACHE.fullmatch(text):
        layer = int(match[2]) if match[2] else None
        return EncoderSpec(text=text, kind="cache", position=match[1] or "prompt", layer=layer)
    if match := _HF.fullmatch(text):
        pooling = cast("Pooling | None", match[2])
        return EncoderSpec(text=text, kind="hf", model=match[1], pooling=pooling)
    if match := _OPENAI.fullmatch(text):
        width = int(match[2]) if match[2] else None
        return EncoderSpec(text=text, kind="openai", model=match[1], dimensions=width)
    raise ActcacheError(
        f"the encoder is '{text}', expected cache, cache:LAYER, cache:mean:LAYER, "
        "hf:NAME_OR_FOLDER[:cls|mean] or openai:MODEL[:DIMENSIONS]. Pass one of them; cache needs "
        "neither a model nor the network."
    )


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The prompts of a store as vectors."""

    values: Float32[np.ndarray, "n e"]
    """One row for each of the store's, in its order; each of length 1."""

    name: str
    """The encoder's, as `parse_encoder` reads it, with the layer filled in."""

    settings: dict[str, Any]
    """What identifies the vectors, as JSON: model, digest of its weights where it is known,
    pooling, dimension, digest of the texts. Vectors of equal settings can be compared."""

    n_new: int
    """Distinct texts that were embedded now."""

    n_cached: int
    """Distinct texts whose vectors were cached; for `cache` the rows."""

    tokens: int
    """Tokens of the new texts, as the model or the service counted them."""

    n_truncated: int = 0
    """Distinct texts that the model's limit cut short."""


@dataclass(frozen=True, kw_only=True)
class TextVectors:
    """Vectors of distinct texts, as a model or a service gave them; fields as in `Embeddings`."""

    vectors: Float32[np.ndarray, "n e"]
    """One for each text, in order; not scaled."""

    settings: dict[str, Any]
    n_new: int
    tokens: int
    n_cached: int = 0
    n_truncated: int = 0


def unit_rows(
    vectors: Real[np.ndarray, "n e"], *, names: Sequence[str], what: str
) -> Float32[np.ndarray, "n e"]:
    """Scale each row to length 1; norms are summed in float64.

    `names` (one a row) and `what` ("the residual after layer 3") are for messages.
    """
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    for row in np.flatnonzero(~np.isfinite(squares))[:1]:
        raise NotFiniteError(
            f"{what} of sample '{names[row]}' is not finite, expected numbers. Leave out this "
            "encoder or that sample."
        )
    for row in np.flatnonzero(squares == 0)[:1]:
        raise MismatchError(
            f"{what} of sample '{names[row]}' is all zeros, expected a vector that can be scaled "
            "to length 1. Use another layer or encoder, or leave that sample out."
        )
    units = np.empty(vectors.shape, np.float32)
    np.divide(vectors, np.sqrt(squares)[:, None], out=units, casting="same_kind")
    return units


def texts_of(store: Store) -> list[str]:
    """Return the text of each row that encoders of texts embed.

    It is the prompt; where the row has a system message of its own, that comes first, then a blank
    line, and likewise the earlier turns of a conversation. The variants sys_pos and sys_neg differ
    from base in their system message alone: without it the three would be one text. What all rows
    share is left out: the chat template, and the message that a build gives to the other rows
    (`--system`).
    """
    prompts = store.prompts.tolist()
    if "history" in store.columns:
        turns = [json.loads(text) if text else [] for text in store["history"].tolist()]
        prompts = [
            "\n\n".join([*(turn["content"] for turn in earlier), prompt])
            for earlier, prompt in zip(turns, prompts, strict=True)
        ]
    if "system" not in store.columns:  # not every store holds the samples' texts
        return [str(prompt) for prompt in prompts]
    return [
        f"{system}\n\n{prompt}" if system else str(prompt)
        for system, prompt in zip(store["system"].tolist(), prompts, strict=True)
    ]


def row_names(store: Store) -> list[str]:
    """Return what messages call the rows: their ids, or their numbers if there are none."""
    if "id" in store.columns:
        return [str(name) for name in store["id"].tolist()]
    return [str(row) for row in range(store.n)]


def distinct(texts: Sequence[str]) -> tuple[list[str], Int64[np.ndarray, " n"]]:
    """Return each text once, in order of first appearance, and each row's index into them."""
    index: dict[str, int] = {}
    rows = [index.setdefault(text, len(index)) for text in texts]
    return list(index), np.array(rows, np.int64)


def texts_digest(texts: Sequence[str]) -> str:
    """Return the SHA-256 of all texts in order, each preceded by its length in bytes."""
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode()
        digest.update(b"%d:" % len(raw) + raw)
    return digest.hexdigest()
