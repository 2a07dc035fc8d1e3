"""The stage `predictors`: W2S and L2S from a sweep to scores and files.

Embeds the prompts, trains layer predictors on the sweep's slopes, scores every strategy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.names import (
    CAA,
    CONTROL,
    L2S,
    L2S_WITHOUT_LETTER,
    METHOD,
    OWN_DIFFERENCE,
    W2S_SHUFFLED,
    slugs,
    w2s,
)
from actcache.analysis.predict.artifacts import embedding_plane, write_selections
from actcache.analysis.predict.outcome import Plane, PredictorScores
from actcache.analysis.predict.reuse import digest_of, identity_of, load_or_make
from actcache.analysis.predict.scores import (
    letters_of,
    score_encoder,
    score_networks,
    score_set,
    variants_of,
)
from actcache.analysis.predict.selections import (
    BehaviorRows,
    LayerSelections,
    select_layers,
    train_predictors,
)
from actcache.analysis.predict.w2s.layer_predictor import LayerPredictor
from actcache.analysis.predict.w2s.settings import W2SSettings
from actcache.analysis.sweep.open_sweep import Sweep
from actcache.analysis.sweep.strategies import SlopeTable, fixed_layer, slope_table
from actcache.encoders import Embeddings, encode, parse_encoder
from actcache.progress import Progress
from actcache.store.store import Store

if TYPE_CHECKING:
    from actcache.analysis.predict.learned_vectors import LearnedVectors

FOLDER = "predictors"
"""Where predictors lie in a results folder, each in `<behavior>/<set>-<encoder>/`."""


@dataclass(frozen=True, kw_only=True)
class SteeredSet:
    """One set of directions: what each sample's slopes are, and who chooses its fixed layer."""

    slopes: SlopeTable
    """Of all rows of the store."""

    predicted: bool
    """Whether layers are predicted for it."""

    fixed: Mapping[str, int] | None = None
    """Place of each behavior's fixed layer, where other slopes choose it."""


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What the layer predictors of all sets, behaviors and encoders share."""

    folder: Path
    store: str
    """Identity of the store."""

    layers: Sequence[int]
    settings: W2SSettings
    device: str
    on_network: Callable[[int], object]


def run_predictors(
    out: Path,
    store: Store,
    behaviors: Mapping[str, BehaviorRows],
    *,
    sweep: Sweep,
    learned: "LearnedVectors | None",
    config: AnalyzeConfig,
    progress: Progress,
    device: str = "cpu",
) -> PredictorScores:
    """Train, select, score; leave `predictors/` and `predictors.npz`.

    The store is of pairs, `behaviors` are its rows as `predictor_rows` gives them. The sweep has
    the behaviors' directions, random ones, and those of the `learned` vectors, which are trained.
    `progress` shows what a paid encoder will cost before it is asked. What was trained on another
    device is reused.
    """
    layers = sweep.layers.tolist()
    specs = [parse_encoder(text) for text in config.encoders]  # all, before any is paid for
    embedded = [
        encode(store, spec, cache=config.embeddings, base_url=config.base_url, progress=progress)
        for spec in specs
    ]
    sets = _steered_sets(sweep, behaviors, config)
    settings = W2SSettings(
        top=tuple(top for top in config.top if top <= len(layers)) or (1,),
        seeds=config.seeds,
        seed=config.seed,
    )
    # The first encoder serves every set; the others are compared on the first set alone.
    first = next(name for name, steered in sets.items() if steered.predicted)
    main, *others = embedded
    folders = slugs(encoder.name for encoder in embedded)
    n_trained = sum(steered.predicted for steered in sets.values()) + len(others)
    total = n_trained * len(behaviors) * _n_networks(settings)
    with progress.steps("layer predictors", total) as on_network:
        training = _Training(
            folder=out / FOLDER,
            store=identity_of(store),
            layers=layers,
            settings=settings,
            device=device,
            on_network=on_network,
        )

        def select(name: str, encoder: Embeddings) -> dict[str, LayerSelections]:
            folder = f"{name}-{folders[encoder.name]}"
            return {
                behavior: _select(training, folder, behavior, rows, sets[name], encoder)
                for behavior, rows in behaviors.items()
            }

        by_set = {name: select(name, main) for name in sets}
        by_encoder = [by_set[first], *(select(first, other) for other in others)]
    plane = embedding_plane(store, main, seed=config.seed) if len(behaviors) > 1 else None
    write_selections(out, store, by_set, layers, plane)
    variants, letters = variants_of(by_set[first]), letters_of(by_set[first])
    return PredictorScores(
        behaviors=tuple(behaviors),
        layers=tuple(layers),
        top=settings.top,
        seeds=config.seeds,
        encoder=main.name,
        settings=settings,
        variants=variants,
        letters=letters,
        sets={
            name: score_set(
                of_set,
                layers=layers,
                variants=variants,
                letters=letters,
                top=settings.top,
                seed=config.seed,
                draws=config.draws,
            )
            for name, of_set in by_set.items()
        },
        networks={} if learned is None else score_networks(learned, by_set[L2S], layers),
        encoders={
            encoder.name: score_encoder(encoder, selections, store["behavior"])
            for encoder, selections in zip(embedded, by_encoder, strict=True)
        },
        plane=None if plane is None else Plane(method=plane.method, explained=plane.explained),
    )


def _steered_sets(
    sweep: Sweep,
    behaviors: Mapping[str, BehaviorRows],
    config: AnalyzeConfig,
) -> dict[str, SteeredSet]:
    """Every set of directions that layers are chosen for; the control last."""
    sets = {}
    if CAA in config.vectors:
        sets[CAA] = SteeredSet(slopes=_slopes(sweep, METHOD), predicted=True)
    if L2S in config.vectors:
        oracle = _slopes(sweep, OWN_DIFFERENCE)
        # L2S is steered where the vectors that it learns from work best ("Where to Steer", 4.5).
        fixed = {
            behavior: fixed_layer(oracle.slope[rows.at], rows.train)
            for behavior, rows in behaviors.items()
        }
        for name in (L2S, OWN_DIFFERENCE, L2S_WITHOUT_LETTER):
            if name not in sweep.names:
                continue
            slopes = oracle if name == OWN_DIFFERENCE else _slopes(sweep, name)
            sets[name] = SteeredSet(slopes=slopes, predicted=name != OWN_DIFFERENCE, fixed=fixed)
    if config.controls:
        sets[CONTROL] = SteeredSet(slopes=_slopes(sweep, CONTROL), predicted=True)
    return sets


def _slopes(sweep: Sweep, name: str) -> SlopeTable:
    return slope_table(sweep.propensity_of(name), sweep.multipliers)


def _select(
    training: _Training,
    folder: str,
    behavior: str,
    rows: BehaviorRows,
    steered: SteeredSet,
    encoder: Embeddings,
) -> LayerSelections:
    """All strategies of one behavior, with predictors that are trained or reused."""
    slopes = steered.slopes.of(rows.at)
    rows = rows.among(slopes.rows)
    place = None if steered.fixed is None else steered.fixed[behavior]
    if not steered.predicted:
        return select_layers(rows, slopes, fixed=place)
    values, settings = encoder.values[rows.at], training.settings
    files = {name: f"{name.removeprefix('w2s_')}.safetensors" for name in map(w2s, settings.top)}
    files[W2S_SHUFFLED] = "shuffled.safetensors"

    def train() -> dict[str, LayerPredictor]:
        return train_predictors(
            rows,
            slopes.slope,
            layers=training.layers,
            embeddings=values,
            settings=settings,
            device=training.device,
            on_network=training.on_network,
        )

    def save(place: Path, trained: dict[str, LayerPredictor]) -> None:
        for name, predictor in trained.items():
            predictor.save(place / files[name])

    def load(place: Path) -> dict[str, LayerPredictor]:
        training.on_network(_n_networks(settings))
        return {name: LayerPredictor.load(place / file) for name, file in files.items()}

    fingerprint = {
        "store": training.store,
        "layers": training.layers,
        "slopes_sha256": digest_of({"slope": slopes.slope}),
        "embeddings": encoder.settings,
        "settings": settings,
    }
    predictors = load_or_make(
        training.folder / rows.folder / folder, fingerprint, load=load, make=train, save=save
    )
    return select_layers(rows, slopes, fixed=place, predictors=predictors, embeddings=values)


def _n_networks(settings: W2SSettings) -> int:
    """Networks of one behavior: the predictors', and those of the shuffled control."""
    return settings.n_networks + replace(settings, top=settings.top[:1]).n_networks
