"""The stage `concepts`: directions of every concept of a store, and what they are compared with."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float32

from actcache.analysis.concepts.fit import ConceptFit, fit_concept
from actcache.analysis.concepts.rows import (
    class_names,
    concept_names,
    design_of,
    rows_of_concept,
)
from actcache.analysis.concepts.summary import ConceptSummary
from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.directions.token_choice import read_masses, text_order
from actcache.analysis.stats.units import MapUnits
from actcache.conventions import ATTENTION
from actcache.data.concepts import POOLS
from actcache.errors import MismatchError
from actcache.progress import SILENT, Progress
from actcache.store.store import Store


def check_concepts(store: Store, labels: tuple[str, str] | None) -> None:
    """Refuse a store that the stage cannot read; says what to build.

    Raises:
        MismatchError: attention masses or residuals are missing, or a concept has too few rows.
    """
    read_masses(store, np.zeros(store.n, bool))
    attended = _positions(store, ATTENTION)
    missing = [name for name in attended if name not in _positions(store, "resid_post")]
    if missing:
        raise MismatchError(
            f"'{store.path}' has attention masses at {', '.join(missing)} and no residuals there, "
            f"expected both. Build it with --sites resid_post,{ATTENTION}."
        )
    for name in dict.fromkeys(store["behavior"].tolist()):
        rows_of_concept(store, name, labels)


def fit_concepts(
    store: Store,
    *,
    labels: tuple[str, str] | None,
    config: AnalyzeConfig,
    names: Sequence[str] | None = None,
    progress: Progress = SILENT,
    map_units: MapUnits = map,
) -> tuple[ConceptSummary, dict[str, Float32[np.ndarray, "layer d_model"]]]:
    """Fit directions of every concept.

    Args:
        store: with attention masses, and residuals at the same positions.
        labels: of rows with the concept and without it; None for pairs in variants.
        config: its methods, draws, shuffles and seed.
        names: the concepts; by default all of the store.
        progress: shows how many concepts are done.
        map_units: runs the concepts.

    Returns:
        The scores, and the directions by `<concept>/<method>-<labels>-<token>`.

    Raises:
        MismatchError: as `check_concepts`; or a method needs validation rows and there are none.
    """
    check_concepts(store, labels)
    names = concept_names(store) if names is None else names
    positions = text_order(_positions(store, "resid_post"))
    pools = None
    if POOLS in store["behavior"].tolist():
        pools = rows_of_concept(store, POOLS, labels)
    fit = partial(
        fit_concept,
        store,
        methods=config.methods,
        positions=positions,
        pools=pools,
        draws=config.draws,
        control_draws=config.shuffles,
        seed=config.seed,
    )
    fits: dict[str, ConceptFit] = {}
    rows = [rows_of_concept(store, name, labels) for name in names]
    with progress.steps("concepts", len(names)) as advance:
        for name, of_concept in zip(names, map_units(fit, rows), strict=True):
            fits[name] = of_concept
            advance(1)
    summary = ConceptSummary(
        design=design_of(store, labels),
        classes=class_names(labels),
        methods=tuple(config.methods),
        layers=tuple(store.layers.tolist()),
        positions=tuple(positions),
        concepts={name: fit.scores for name, fit in fits.items()},
    )
    return summary, {
        f"{name}/{key}": values
        for name, fit in fits.items()
        for key, values in fit.directions.items()
    }


def _positions(store: Store, site: str) -> list[str]:
    prefix = f"{site}/"
    return [name.removeprefix(prefix) for name in store.arrays if name.startswith(prefix)]
