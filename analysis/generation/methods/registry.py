"""From the names of methods to their candidates, with controls, for every behavior."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from actcache.analysis.generation.methods.additive import caa, l2s, random_vector, w2s
from actcache.analysis.generation.methods.behavior import (
    LAYER_WORDS,
    BehaviorInputs,
    MethodSettings,
    require_layers,
)
from actcache.analysis.generation.methods.candidate import Candidate
from actcache.analysis.generation.methods.conditions import cast
from actcache.analysis.generation.methods.contrast import actadd
from actcache.analysis.generation.methods.rotations import (
    aas,
    ablation,
    random_plane,
    sas,
    ss,
    ss_controls,
)
from actcache.analysis.names import L2S
from actcache.analysis.results import Results
from actcache.errors import MismatchError
from actcache.settings import check_word
from actcache.steering.checks import SteeredTokens
from actcache.store.store import Store

if TYPE_CHECKING:  # imports torch
    from actcache.engine.model import LanguageModel

ROTATIONS = ("ss", "sas", "aas")

METHODS: Mapping[str, Callable[[BehaviorInputs], Candidate]] = {
    "caa": caa,
    "l2s": l2s,
    "w2s": w2s,
    "ss": ss,
    "sas": sas,
    "aas": aas,
    "ablation": ablation,
    "actadd": actadd,
    "cast": cast,
}
"""Each by its name; `random` and `random_plane` are made to fit the others."""

CONTROLS = ("random", "random_plane")


def candidates(
    results: Results,
    store: Store,
    *,
    methods: Sequence[str],
    behaviors: Sequence[str] | None = None,
    layers: str | Sequence[int] = "fixed",
    tokens: SteeredTokens | None = None,
    window: tuple[int, int | None] | None = None,
    whole_blocks: bool = True,
    contrast: tuple[str, str] | None = None,
    in_store: bool = True,
    seed: int = 0,
    model: "Callable[[], LanguageModel] | None" = None,
) -> list[Candidate]:
    """Make the candidates of methods, with controls, for every behavior.

    `ss` brings two controls, all sites and a random half of them. `random` is a random vector as
    long as CAA's, and beside rotations a random plane turned in the same way, beside ablation a
    random direction; `w2s` beside `l2s` chooses layers for the vectors of either.

    Args:
        results: what `analyze` left.
        store: the store that was analyzed.
        methods: of `METHODS` and `CONTROLS`.
        behaviors: names of directions in OUT; by default all.
        layers: of methods that steer few layers: fixed, predicted, discriminative or numbers;
            rotations steer discriminative or all norm outputs, unless numbers name their blocks.
        tokens: steered tokens; None for each method's own.
        window: steered decode steps; None for all.
        whole_blocks: steer a block's norm outputs only where all are discriminative.
        contrast: two texts whose difference ActAdd adds.
        in_store: whether all prompts to steer are rows of the store; `l2s`, `w2s` and predicted
            layers need that.
        seed: of whatever is drawn at random.
        model: gives the store's model, called only for ActAdd; by default it is loaded.

    Raises:
        ActcacheError: OUT or the store lack what a method needs; says with which flags to build or
            analyze.
    """
    for method in methods:
        check_word("method", method, (*METHODS, *CONTROLS))
    if tokens == "front" and set(methods) != {"actadd"}:
        raise MismatchError(
            f"tokens are front with {', '.join(methods)}, expected actadd alone: it adds a vector "
            "of its own to each first token. Pass other tokens, or --method actadd."
        )
    if not in_store and (by_row := _by_row(methods, layers)):
        raise MismatchError(
            f"{by_row} steers each row by its residuals, and prompts are given that are not in "
            f"'{store.path}', expected rows of it. Steer the store's own rows, or leave it out."
        )
    if isinstance(layers, str):
        check_word("layers", layers, LAYER_WORDS)
    else:
        require_layers(layers, store.n_layers)

    @cache
    def load() -> "LanguageModel":
        if model is not None:
            return model()
        from actcache.build.replay import load_store_model

        return load_store_model(store)

    settings = MethodSettings(
        layers=layers,
        tokens=tokens,
        window=window,
        whole_blocks=whole_blocks,
        contrast=contrast,
        seed=seed,
        model=load,
    )
    made: list[Candidate] = []
    for behavior in behaviors or list(results.directions):
        inputs = BehaviorInputs(results=results, store=store, behavior=behavior, settings=settings)
        made += _of_behavior(inputs, dict.fromkeys(methods))
    return made


def _by_row(methods: Sequence[str], layers: str | Sequence[int]) -> str:
    """What would steer each row in its own way; empty if nothing would."""
    named = [method for method in methods if method in ("l2s", "w2s")]
    return ", ".join([*named, *(["--layers predicted"] if layers == "predicted" else [])])


def _of_behavior(inputs: BehaviorInputs, methods: Mapping[str, None]) -> list[Candidate]:
    """The candidates of one behavior, controls last."""
    made = [METHODS[method](inputs) for method in methods if method in METHODS]
    if "w2s" in methods and "l2s" in methods:
        place = [candidate.method for candidate in made].index("w2s")
        made.insert(place + 1, w2s(inputs, vectors=L2S))
    rotations = [method for method in methods if method in ROTATIONS]
    if "ss" in methods:
        made += ss_controls(inputs)
    others = methods.keys() - {*ROTATIONS, *CONTROLS, "ablation"}
    if "random" in methods:
        if others or methods.keys() <= set(CONTROLS):
            made.append(random_vector(inputs))
        if "ablation" in methods:
            made.append(ablation(inputs, control=True))
    if "random_plane" in methods and not rotations:
        rotations = ["ss"]
    if "random" in methods or "random_plane" in methods:
        made += [random_plane(inputs, method) for method in rotations]
    return made
