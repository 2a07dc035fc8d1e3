"""One concept: its tokens, its directions at them and at every fixed position, its scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Shaped

from actcache.analysis.concepts.controls import control_scores, pool_scores
from actcache.analysis.concepts.rows import ConceptRows
from actcache.analysis.concepts.summary import (
    ATTENDED,
    RANDOM_SPAN,
    ConceptScores,
    PoolScores,
    SetScores,
)
from actcache.analysis.directions.fitting.methods import FittedDirections, fit_directions
from actcache.analysis.directions.fitting.scores import auc_intervals
from actcache.analysis.directions.token_choice import (
    TokenChoice,
    read_masses,
    soft_labels,
    token_choice,
)
from actcache.analysis.stats.bootstrap import Interval
from actcache.conventions import ATTENTION_CONTROL
from actcache.store.store import Store


@dataclass(frozen=True, kw_only=True)
class ConceptFit:
    """Directions of one concept, and their scores."""

    directions: dict[str, Float32[np.ndarray, "layer d_model"]]
    """By `<method>-<labels>-<token>`; of norm 1."""

    scores: ConceptScores


@dataclass(frozen=True, kw_only=True)
class _SetFit:
    values: Float32[np.ndarray, "layer d_model"]
    auc: list[Interval]
    validation: Float64[np.ndarray, " layer"]


def fit_concept(
    store: Store,
    rows: ConceptRows,
    *,
    methods: Sequence[str],
    positions: Sequence[str],
    pools: ConceptRows | None = None,
    draws: int = 1000,
    control_draws: int = 20,
    seed: int = 0,
) -> ConceptFit:
    """Choose the token of each layer, and fit directions there and at every fixed position.

    Args:
        store: with residuals at `positions`, and attention masses.
        rows: of the concept.
        methods: of `fit_directions`, each with hard labels everywhere, and with soft ones at the
            attended token.
        positions: in the order of the text.
        pools: rows of the two pools without a prefix, in the published design.
        draws: bootstrap draws of intervals.
        control_draws: shufflings of the labels, and random directions.
        seed: of both.
    """
    chosen = np.zeros(store.n, bool)
    chosen[rows.numbers] = True
    masses = read_masses(store, chosen)
    choice = token_choice({name: values[rows.scanned] for name, values in masses.items()})
    sets: dict[str, _SetFit] = {}
    for position in positions:
        fitted = _fit(store, rows, [position] * store.n_layers, rows.positive, methods, draws)
        for method, set_fit in fitted.items():
            sets[f"{method}-hard-{position}"] = set_fit
    choices = {ATTENDED: choice}
    if any(name.startswith(f"{ATTENTION_CONTROL}/") for name in store.arrays):
        control = read_masses(store, chosen, site=ATTENTION_CONTROL)
        choices[RANDOM_SPAN] = token_choice(
            {name: values[rows.scanned] for name, values in control.items()}
        )
    for token, made in choices.items():
        for method in methods:
            sets[f"{method}-hard-{token}"] = _gathered(
                [sets[f"{method}-hard-{position}"] for position in made.tokens]
            )
    soft = soft_labels(masses, choice, positive=rows.positive)
    seeing = np.flatnonzero(~choice.blind)
    if seeing.size:
        tokens = [choice.tokens[layer] for layer in seeing]
        fitted = _fit(store, rows, tokens, soft[:, seeing], methods, draws, layers=seeing)
        for method, set_fit in fitted.items():
            hard = sets[f"{method}-hard-{ATTENDED}"]
            sets[f"{method}-soft-{ATTENDED}"] = _filled(set_fit, hard, seeing)
    return ConceptFit(
        directions={key: set_fit.values for key, set_fit in sets.items()},
        scores=_scores(
            store,
            rows,
            sets,
            choices,
            first=f"{methods[0]}-hard-{ATTENDED}",
            pools=pools,
            control_draws=control_draws,
            draws=draws,
            seed=seed,
        ),
    )


def _fit(
    store: Store,
    rows: ConceptRows,
    tokens: Sequence[str],
    y: Shaped[np.ndarray, "..."],
    methods: Sequence[str],
    draws: int,
    *,
    layers: Sequence[int] | np.ndarray | None = None,
) -> dict[str, _SetFit]:
    """Fit every method, each layer at its own token."""
    numbers = range(store.n_layers) if layers is None else layers
    fitted = fit_directions(
        layer_values(store, rows, tokens, numbers),
        y.astype(np.float64),
        train=rows.split == "train",
        validation=rows.split == "validation",
        test=rows.split == "test",
        positive=rows.positive,
        methods=methods,
        draws=draws,
    )
    return {
        name: _SetFit(
            values=set_fit.values,
            auc=list(set_fit.auc) or _validation_auc(store, rows, tokens, numbers, set_fit, draws),
            validation=set_fit.validation,
        )
        for name, set_fit in fitted.items()
    }


def layer_values(
    store: Store, rows: ConceptRows, tokens: Sequence[str], layers: Sequence[int] | np.ndarray
) -> Iterator[Float32[np.ndarray, "n d_model"]]:
    """Read one layer after the other, each at its own token."""
    for layer, token in zip(layers, tokens, strict=True):
        values = store.resid(token)[rows.numbers, int(layer)]
        yield np.asarray(values, np.float32)


def _validation_auc(
    store: Store,
    rows: ConceptRows,
    tokens: Sequence[str],
    layers: Sequence[int] | np.ndarray,
    fitted: FittedDirections,
    draws: int,
) -> list[Interval]:
    """AUC of validation rows, where there are no test rows."""
    judged = rows.split == "validation"
    projections = [
        values[judged] @ direction
        for values, direction in zip(
            layer_values(store, rows, tokens, layers), fitted.values, strict=True
        )
    ]
    rng = np.random.default_rng(0)
    return auc_intervals(np.stack(projections, axis=1), rows.positive[judged], rng, draws=draws)


def _gathered(of_layer: Sequence[_SetFit]) -> _SetFit:
    """Take each layer from its own set."""
    places = range(len(of_layer))
    return _SetFit(
        values=np.stack([of_layer[i].values[i] for i in places]),
        auc=[of_layer[i].auc[i] for i in places],
        validation=np.array([of_layer[i].validation[i] for i in places]),
    )


def _filled(some: _SetFit, others: _SetFit, layers: np.ndarray) -> _SetFit:
    """Put what was fitted in some layers into the place of what was fitted in all."""
    values, auc, validation = others.values.copy(), list(others.auc), others.validation.copy()
    values[layers], validation[layers] = some.values, some.validation
    for place, layer in enumerate(layers):
        auc[layer] = some.auc[place]
    return _SetFit(values=values, auc=auc, validation=validation)


def _scores(
    store: Store,
    rows: ConceptRows,
    sets: dict[str, _SetFit],
    choices: dict[str, TokenChoice],
    *,
    first: str,
    pools: ConceptRows | None,
    control_draws: int,
    draws: int,
    seed: int,
) -> ConceptScores:
    choice, control = choices[ATTENDED], choices.get(RANDOM_SPAN)
    best = sets[first]
    score = best.validation
    if np.isnan(score).all():
        score = np.array([interval.value for interval in best.auc])
    by_score = np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable")
    tokens = choice.tokens
    values = list(layer_values(store, rows, tokens, range(store.n_layers)))
    compared: PoolScores | None = None
    if pools is not None:
        concept = fit_directions(
            iter(values), rows.positive.astype(float), train=rows.split == "train",
            positive=rows.positive, draws=1,
        )["mean"].values  # fmt: skip
        others = layer_values(store, pools, tokens, range(store.n_layers))
        compared = pool_scores(others, pools, concept=concept, draws=draws)
    return ConceptScores(
        counts=rows.counts,
        held_out=rows.held_out,
        tokens=tuple(tokens),
        peak=tuple(choice.peak.tolist()),
        blind=_numbers(store, np.flatnonzero(choice.blind)),
        mass=_by_position(choice),
        random_span_tokens=tuple(control.tokens) if control else None,
        random_span_mass=_by_position(control) if control else None,
        layers_by_mass=_numbers(store, choice.order),
        layers_by_score=_numbers(store, by_score),
        sets={
            key: SetScores(
                auc=tuple(set_fit.auc),
                validation=tuple(None if np.isnan(x) else float(x) for x in set_fit.validation),
            )
            for key, set_fit in sets.items()
        },
        controls=control_scores(values, rows, draws=control_draws, seed=seed),
        pools=compared,
    )


def _numbers(store: Store, places: np.ndarray) -> tuple[int, ...]:
    return tuple(int(store.layers[place]) for place in places)


def _by_position(choice: TokenChoice) -> dict[str, tuple[float, ...]]:
    return {
        name: tuple(mass.tolist())
        for name, mass in zip(choice.positions, choice.by_position, strict=True)
    }
