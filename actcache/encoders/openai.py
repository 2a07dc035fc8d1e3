"""Embeds texts through a service: each distinct one once, batch by batch, paid for once.

Puts together what is kept, what it costs and who is asked. Knows no store.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from actcache.encoders.embedding_cache import Keeper, default_keeper
from actcache.encoders.price import Cost, estimate_cost
from actcache.encoders.service import RefusedError, Service, endpoint_of
from actcache.errors import ActcacheError

BATCH_TEXTS = 128
"""Texts of a request. OpenAI takes 2048, others as few as 10: where a batch is refused, halves are
tried. A batch is also what a kill costs at most."""

BATCH_BYTES = 250_000
"""UTF-8 bytes of a request, more only for a single text: below OpenAI's 300,000 tokens, since a
token is a byte at least."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Vectors as the service gave them."""

    vectors: Float32[np.ndarray, "n e"]
    """One for each text, in order; not scaled."""

    settings: dict[str, Any]
    """Model, endpoint and width."""

    n_new: int
    """Texts that the service was asked for now."""

    n_kept: int
    """Texts that were kept before."""

    tokens: int
    """Of the new ones, as the service counted."""


def ask_service(
    texts: Sequence[str],
    *,
    names: Sequence[str],
    model: str,
    dimensions: int | None = None,
    base_url: str | None = None,
    keeper: Path | None = None,
    confirm: Callable[[Cost], None] = lambda _cost: None,
    on_texts: Callable[[Sequence[str]], None] = lambda _texts: None,
    batch_texts: int = BATCH_TEXTS,
    timeout: float = 60.0,
    retries: int = 6,
) -> Answers:
    """Embed distinct texts, asking for those only that are not kept.

    Every batch is on disk before the next is asked for. So a kill, Ctrl-C or an error costs one
    batch at most, and the same call goes on from there. A batch is looked up once more just before
    it is asked for: a process that runs behind another asks for what that one has not got yet (two
    in step both ask). Where nothing is new the service is not asked, and no key is needed.

    Args:
        texts: distinct texts, none empty.
        names: what each is called, for messages.
        model: the service's name of the model.
        dimensions: width to ask for; None leaves it to the model.
        base_url: the service's address; by default `$OPENAI_BASE_URL`, or OpenAI's.
        keeper: the file of what was paid for; by default `default_keeper()`.
        confirm: given what it will cost before the first request; may raise to prevent it.
        on_texts: told which texts are there, each time.
        batch_texts: texts of a request at most.
        timeout: seconds that the service may stay silent.
        retries: requests after the first that a batch may take.

    Raises:
        ActcacheError: a text is empty, or the service or the file fails; see `Service`, `Keeper`.
        MismatchError: the model's vectors are not as wide as those that are kept.
    """
    for text, name in zip(texts, names, strict=True):
        if not text:
            raise ActcacheError(
                f"the prompt of sample '{name}' is empty, expected a text: services embed no empty "
                "one. Leave that sample out, or use the encoder cache."
            )
    endpoint = endpoint_of(base_url)
    with Keeper(keeper or default_keeper(), encoder=(endpoint, model, dimensions)) as kept:
        missing = kept.missing(texts)
        new = set(missing)
        on_texts([text for text in texts if text not in new])
        tokens = 0
        if missing:
            with Service(
                model, dimensions=dimensions, base_url=endpoint, timeout=timeout, retries=retries
            ) as service:
                n_kept = len(texts) - len(missing)
                confirm(estimate_cost(missing, model=model, endpoint=endpoint, n_kept=n_kept))
                called = dict(zip(texts, names, strict=True))
                tokens = _ask_all(missing, called, kept, service, on_texts, batch_texts)
        vectors = kept.read(texts)
    return Answers(
        vectors=vectors,
        settings={
            "model": model,
            "endpoint": endpoint,
            "dimensions_asked": dimensions,
            "dimension": vectors.shape[1],
        },
        n_new=len(missing),
        n_kept=len(texts) - len(missing),
        tokens=tokens,
    )


def _ask_all(
    missing: Sequence[str],
    called: dict[str, str],
    kept: Keeper,
    service: Service,
    on_texts: Callable[[Sequence[str]], None],
    batch_texts: int,
) -> int:
    """Ask for all missing texts; the tokens that were counted."""
    at, most, tokens = 0, batch_texts, 0
    while at < len(missing):
        batch = _batch(missing, at, most)
        unknown = kept.missing(batch)  # another process may have got some since
        if unknown:
            try:
                vectors, counted = service.ask(unknown, width=kept.dimension)
            except RefusedError as error:
                if len(unknown) == 1:
                    (text,) = unknown
                    raise ActcacheError(
                        f"{error}, even for the prompt of sample '{called[text]}' alone "
                        f"({len(text.encode())} bytes). Shorten or leave out that sample, or use "
                        "another model."
                    ) from None
                most = len(unknown) // 2
                continue
            kept.put(dict(zip(unknown, vectors, strict=True)))
            tokens += counted
        at += len(batch)
        on_texts(batch)
    return tokens


def _batch(texts: Sequence[str], start: int, most: int) -> Sequence[str]:
    """The next texts, as many as a request may hold; one at least."""
    stop, n_bytes = start, 0
    while stop < min(start + most, len(texts)):
        n_bytes += len(texts[stop].encode())
        if n_bytes > BATCH_BYTES and stop > start:
            break
        stop += 1
    return texts[start:stop]
