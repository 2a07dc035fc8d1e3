"""ActAdd: add the difference of two texts' activations to the start of a prompt.

Turner et al., "Activation Addition" (arXiv 2308.10248): h(p+) - h(p-) at the input of one block,
token by token, is added to as many first tokens of the prompt; the shorter text is filled up with
spaces.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from actcache.analysis.generation.methods.behavior import BehaviorInputs, chosen_layers
from actcache.analysis.generation.methods.candidate import Candidate, same_for_all
from actcache.data.personas import load_personas
from actcache.errors import MismatchError
from actcache.steering.source import SteeringSource
from actcache.steering.steering import Steering
from actcache.store.store import Store

if TYPE_CHECKING:  # imports torch
    from actcache.engine.model import LanguageModel


def actadd(inputs: BehaviorInputs) -> Candidate:
    """Add the difference of two texts to the prompt's first tokens."""
    layers = chosen_layers(inputs)
    chosen = () if layers.per_row else layers.of_row(None)
    if len(chosen) != 1:
        raise MismatchError(
            f"layers are {layers.selection}, but actadd adds to the input of one block, expected "
            "one layer. Pass one, or fixed."
        )
    positive, negative = contrast_texts(inputs)
    pair = contrast_tokens(inputs.store, positive, negative)
    difference = contrast_vectors(inputs.settings.model(), pair, layer=chosen[0])
    if not difference.any():
        raise MismatchError(
            f"the texts {positive!r} and {negative!r} leave the same values before block "
            f"{chosen[0]}, expected a difference. Pass other texts, or a higher layer."
        )
    store = inputs.store
    steering = Steering(
        site="resid_pre",
        layers=chosen,
        vectors=difference,
        tokens="front",
        source=SteeringSource.from_provenance(
            store.provenance,
            store_sha256=store.digest,
            behavior=inputs.behavior,
            method=f"actadd: {positive!r} minus {negative!r}",
        ),
    )
    return Candidate(
        method="actadd",
        behavior=inputs.behavior,
        operator="add",
        selection=layers.selection,
        notes=(*layers.notes, f"{positive!r} minus {negative!r}, {len(difference)} tokens"),
        make=same_for_all(steering),
    )


def contrast_texts(inputs: BehaviorInputs) -> tuple[str, str]:
    """Find a behavior's two texts: given ones, or its persona's sentences.

    Sentences are those of the store's rows that were framed by a system message, or built in.
    """
    if inputs.settings.contrast is not None:
        return inputs.settings.contrast
    store, behavior = inputs.store, inputs.behavior
    framed = [
        np.unique(store["system"][(store["behavior"] == behavior) & (store["variant"] == variant)])
        for variant in ("sys_pos", "sys_neg")
    ]
    if all(len(texts) == 1 for texts in framed):
        return str(framed[0][0]), str(framed[1][0])
    if (persona := load_personas().get(behavior)) is not None:
        return persona.positive, persona.negative
    raise MismatchError(
        f"actadd has no two texts to compare for '{behavior}', expected a persona's sentences. "
        "Pass --contrast 'TEXT|TEXT', or build with --variants base,sys_pos,sys_neg."
    )


def contrast_tokens(
    store: Store, positive: str, negative: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Make token ids of two texts, equally many.

    They begin with BOS if the store's prompts do; the shorter one ends in spaces.

    Raises:
        MismatchError: one is longer, and the tokenizer has no token for a space.
    """
    from actcache.engine.model import load_tokenizer

    tokenizer = load_tokenizer(
        store.provenance["model"]["name"],
        revision=store.config["revision"],
        trust_remote_code=store.config["trust_remote_code"],
    )
    first = store.ragged("prompt_tokens")[0][:1].tolist()
    start = first if first == [tokenizer.bos_token_id] else []

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    texts = [[*start, *ids(text)] for text in (positive, negative)]
    longest, space = max(map(len, texts)), ids(" ")
    if len(texts[0]) != len(texts[1]) and len(space) != 1:
        raise MismatchError(
            f"{positive!r} and {negative!r} are {len(texts[0])} and {len(texts[1])} tokens, and "
            "the tokenizer has no token for a space to fill up the shorter. Pass texts of equally "
            "many tokens."
        )
    filled = [tuple(text + space * (longest - len(text))) for text in texts]
    return filled[0], filled[1]


def contrast_vectors(
    model: "LanguageModel", pair: tuple[tuple[int, ...], tuple[int, ...]], *, layer: int
) -> Float32[np.ndarray, "k d"]:
    """Subtract a block's inputs under two texts, token by token."""
    import torch

    from actcache.engine.sites import find_taps

    seen: list[torch.Tensor] = []
    handle = find_taps(model.anatomy, "resid_pre")[layer].attach(seen.append)
    try:
        with torch.inference_mode():
            for tokens in pair:
                ids = torch.tensor([tokens], device=model.device)
                model.anatomy.decoder(input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    positive, negative = (value[0].float().cpu().numpy() for value in seen)
    return np.asarray(positive - negative)
