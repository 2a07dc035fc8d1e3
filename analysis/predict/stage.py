"""The stage `predictors`: W2S and L2S from a sweep to scores and files.

Embeds the prompts, trains layer predictors on the sweep's slopes, scores every strategy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float32

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
from actcache.analysis.predict.adamw_stack import training_device
from actcache.analysis.predict.artifacts import embedding_plane, write_selections
from actcache.analysis.predict.outcome import Plane, PredictorScores
from actcache.analysis.predict.reuse import Artifact, digest_of, identity_of, load_or_make
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
from actcache.analysis.stats.units import MapUnits, UnitSteps
from actcache.analysis.sweep.open_sweep import Sweep
from actcache.analysis.sweep.splits import score_splits, splits_of
from actcache.analysis.sweep.strategies import (
    SlopeTable,
    SplitScore,
    fixed_layer,
    slope_table,
)
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


class _Unit(NamedTuple):
    """The layer predictors of one behavior, for one set of directions, from one encoder."""

    directions: str
    behavior: str
    encoder: int


@dataclass(frozen=True, kw_only=True)
class _Training:
    """What the layer predictors of all sets, behaviors and encoders are trained on."""

    behaviors: Mapping[str, BehaviorRows]
    sets: Mapping[str, SteeredSet]
    encoders: Sequence[Embeddings]
    layers: Sequence[int]
    settings: W2SSettings
    device: str

    def train(
        self, unit: _Unit, *, on_network: Callable[[int], object]
    ) -> dict[str, LayerPredictor]:
        """Train one unit's predictors, by strategy."""
        rows, slopes = self.samples(unit)
        return train_predictors(
            rows,
            slopes.slope,
            layers=self.layers,
            embeddings=self.embeddings(unit),
            settings=self.settings,
            device=training_device(self.device),
            on_network=on_network,
        )

    def samples(self, unit: _Unit) -> tuple[BehaviorRows, SlopeTable]:
        """The behavior's rows that have slopes, and these."""
        rows = self.behaviors[unit.behavior]
        slopes = self.sets[unit.directions].slopes.of(rows.at)
        return rows.among(slopes.rows), slopes

    def embeddings(self, unit: _Unit) -> Float32[np.ndarray, "row e"]:
        """The embeddings of the behavior's rows."""
        values = self.encoders[unit.encoder].values
        return np.asarray(values[self.behaviors[unit.behavior].at])

    def select(
        self, unit: _Unit, predictors: Mapping[str, LayerPredictor] | None
    ) -> LayerSelections:
        """Select layers by all strategies, those of the predictors among them if there are any."""
        rows, slopes = self.samples(unit)
        fixed = self.sets[unit.directions].fixed
        return select_layers(
            rows,
            slopes,
            fixed=None if fixed is None else fixed[unit.behavior],
            predictors=predictors,
            embeddings=None if predictors is None else self.embeddings(unit),
        )


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
    map_units: MapUnits = map,
) -> PredictorScores:
    """Train, select, score; leave `predictors/` and `predictors.npz`.

    The store is of pairs, `behaviors` are its rows as `predictor_rows` gives them. The sweep has
    the behaviors' directions, random ones, and those of the `learned` vectors, which are trained.
    `progress` shows what a paid encoder will cost before it is asked. What was trained on another
    device is reused. `map_units` runs the trainings, one of each set, behavior and encoder.
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
    main = embedded[0]
    selected = [(name, 0) for name in sets] + [(first, i) for i in range(1, len(embedded))]
    training = _Training(
        behaviors=behaviors,
        sets=sets,
        encoders=embedded,
        layers=layers,
        settings=settings,
        device=device,
    )
    predictors = _load_or_train(
        [
            _Unit(name, behavior, encoder)
            for name, encoder in selected
            for behavior in behaviors
            if sets[name].predicted
        ],
        training,
        folder=out / FOLDER,
        store=identity_of(store),
        progress=progress,
        map_units=map_units,
    )

    def select(name: str, encoder: int) -> dict[str, LayerSelections]:
        of_set = (_Unit(name, behavior, encoder) for behavior in behaviors)
        return {unit.behavior: training.select(unit, predictors.get(unit)) for unit in of_set}

    by_set = {name: select(name, 0) for name in sets}
    by_encoder = [by_set[first], *(select(first, i) for i in range(1, len(embedded)))]
    plane = embedding_plane(store, main, seed=config.seed) if len(behaviors) > 1 else None
    write_selections(out, store, by_set, layers, plane)
    variants, letters = variants_of(by_set[first]), letters_of(by_set[first])
    of_splits = _score_splits(store, sweep, config)
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
                splits=of_splits.get(name, {}),
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


def _score_splits(
    store: Store, sweep: Sweep, config: AnalyzeConfig
) -> dict[str, dict[str, tuple[SplitScore, ...]]]:
    """Fixed layers over splits, by set and behavior: of sets that have vectors for each split."""
    if config.splits == 1:
        return {}
    splits = splits_of(store, config)
    scores = {CAA: score_splits(sweep, splits)}
    if OWN_DIFFERENCE in sweep.names:
        scores[OWN_DIFFERENCE] = score_splits(sweep, splits, own_vectors=OWN_DIFFERENCE)
    return scores


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


def _load_or_train(
    units: Sequence[_Unit],
    training: _Training,
    *,
    folder: Path,
    store: str,
    progress: Progress,
    map_units: MapUnits,
) -> dict[_Unit, dict[str, LayerPredictor]]:
    """Load the predictors that lie in `folder`, train the others; `store` is its identity."""
    settings, encoders = training.settings, training.encoders
    encoder_folders = slugs(encoder.name for encoder in encoders)
    names = [*map(w2s, settings.top), W2S_SHUFFLED]
    files = {name: f"{name.removeprefix('w2s_')}.safetensors" for name in names}
    artifacts = [
        Artifact(
            folder=folder
            / training.behaviors[unit.behavior].folder
            / f"{unit.directions}-{encoder_folders[encoders[unit.encoder].name]}",
            fingerprint={
                "store": store,
                "layers": training.layers,
                "slopes_sha256": digest_of({"slope": training.samples(unit)[1].slope}),
                "embeddings": encoders[unit.encoder].settings,
                "settings": settings,
            },
            unit=unit,
        )
        for unit in units
    ]
    n_networks = _n_networks(settings)
    with progress.steps("layer predictors", n_networks * len(units)) as advance:
        steps = UnitSteps(advance, of_unit=n_networks)
        predictors = load_or_make(
            artifacts,
            load=partial(_load, files=files),
            make=partial(training.train, on_network=steps),
            save=partial(_save, files=files),
            on_done=steps.finish_unit,
            map_units=map_units,
        )
    return dict(zip(units, predictors, strict=True))


def _save(folder: Path, trained: Mapping[str, LayerPredictor], *, files: Mapping[str, str]) -> None:
    for name, predictor in trained.items():
        predictor.save(folder / files[name])


def _load(folder: Path, *, files: Mapping[str, str]) -> dict[str, LayerPredictor]:
    return {name: LayerPredictor.load(folder / file) for name, file in files.items()}


def _n_networks(settings: W2SSettings) -> int:
    """Networks of one behavior: the predictors', and those of the shuffled control."""
    return settings.n_networks + replace(settings, top=settings.top[:1]).n_networks
