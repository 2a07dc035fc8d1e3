"""The stage `predictors`: W2S and L2S from a sweep to figures and files.

What is trained is `predicted` (layers) and `learned` (vectors), what is read off
`predictor_figures`, what it means `predictor_words`, how it is shown `predictor_tables`. This puts
them in order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from actcache.analysis.config import AnalyzeConfig
from actcache.analysis.predict.artifacts import draw_embeddings, write_choices
from actcache.analysis.predict.reuse import digest_of, identity_of, kept
from actcache.analysis.predict.scores import encoder_figures, figures, training_figures
from actcache.analysis.predict.selections import (
    SHUFFLED,
    Chosen,
    Rows,
    choose_layers,
    train_predictors,
    w2s,
)
from actcache.analysis.predict.w2s.layer_predictor import LayerPredictor
from actcache.analysis.predict.w2s.settings import W2SSettings
from actcache.analysis.predict.w2s.train_layers import n_networks
from actcache.analysis.report.files import CONTROL, METHOD
from actcache.analysis.report.verdicts import words
from actcache.analysis.results import plain
from actcache.analysis.sweep.steerability import fixed_layer
from actcache.analysis.sweep.strategies import SlopeTable, slope_table
from actcache.encoders import Embeddings, encode, parse_encoder
from actcache.progress import Progress
from actcache.store.store import Store

if TYPE_CHECKING:
    from actcache.analysis.predict.learned_vectors import Learned
    from actcache.engine.model import LanguageModel
    from actcache.engine.steered_scores import SteeringRule

FOLDER = "predictors"
"""Where predictors are kept in a results folder, each in `<behavior>/<kind>/`."""

CAA = "caa"
"""The kind of the behaviors' own directions."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One set of directions: what each sample's slopes are, and who chooses its fixed layer."""

    slopes: SlopeTable
    """Of all rows of the store."""

    predicted: bool
    """Whether layers are predicted for it."""

    fixed: Mapping[str, int] | None = None
    """Place of each behavior's fixed layer, where other slopes choose it."""

    def of(self, rows: Rows) -> SlopeTable:
        """The slopes of one behavior's rows."""
        halves = self.slopes.halves
        return SlopeTable(
            slope=self.slopes.slope[rows.at],
            halves=None if halves is None else halves[:, rows.at],
            reason=self.slopes.reason,
        )


def run_predictors(
    out: Path,
    store: Store,
    behaviors: Mapping[str, Rows],
    *,
    swept: Store,
    config: AnalyzeConfig,
    rule: "SteeringRule",
    model: "Callable[[], LanguageModel]",
    progress: Progress,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train, choose, compare; leave `predictors/`, `predictors.npz` and `embeddings.png`.

    Args:
        out: the results folder.
        store: of pairs.
        behaviors: as `predictor_rows` gives them.
        swept: its sweep.
        config: the settings.
        rule: the sweep's conventions.
        model: gives the store's model; called only if learned vectors are still to be swept.
        progress: shows long loops, and what a paid encoder will cost before it is asked.
        device: where networks are trained. What is kept is taken up whichever it was trained on.

    Returns:
        For the summary; what `predictor_tables` reads.

    Raises:
        MismatchError: the store lacks what an encoder reads, or the folder holds a sweep of learned
            vectors of other settings.
    """
    layers = swept["layer"].tolist()
    encoders = [parse_encoder(text) for text in config.encoders]  # all, before any is paid for
    embedded = [
        encode(store, spec, cache=config.embeddings, base_url=config.base_url, progress=progress)
        for spec in encoders
    ]
    learned = None
    if "l2s" in config.vectors:
        from actcache.analysis.predict.learned_vectors import learn_vectors

        learned = learn_vectors(
            out / FOLDER,
            store,
            behaviors,
            layers=layers,
            config=config,
            rule=rule,
            model=model,
            progress=progress,
            device=device,
        )
    kinds = _kinds(swept, learned, behaviors, config)
    settings = W2SSettings(
        top=tuple(top for top in config.top if top <= len(layers)) or (1,),
        seeds=config.seeds,
        seed=config.seed,
    )
    identity = identity_of(store)
    first = next(name for name, kind in kinds.items() if kind.predicted)
    jobs = [(name, embedded[0]) for name in kinds] + [(first, each) for each in embedded[1:]]
    n_trained = sum(kinds[name].predicted for name, _ in jobs) * len(behaviors)
    control = n_networks(_control(settings))
    choices: list[dict[str, Chosen]] = []
    with progress.steps(
        "layer predictors", n_trained * (n_networks(settings) + control)
    ) as on_network:
        for name, found in jobs:
            choices.append(
                {
                    behavior: _choose(
                        out
                        / FOLDER
                        / quote(behavior, safe="")
                        / f"{name}-{quote(found.name, safe='')}",
                        rows,
                        kinds[name],
                        behavior,
                        identity=identity,
                        layers=layers,
                        found=found,
                        settings=settings,
                        device=device,
                        on_network=on_network,
                    )
                    for behavior, rows in behaviors.items()
                }
            )
    by_kind = dict(zip(kinds, choices, strict=False))
    by_encoder = {embedded[0].name: by_kind[first]}
    by_encoder |= {
        each.name: found for each, found in zip(embedded[1:], choices[len(kinds) :], strict=True)
    }
    write_choices(out, store, by_kind, layers)
    if len(behaviors) > 1:
        draw_embeddings(out, store, embedded[0], seed=config.seed)
    read = figures(by_kind, settings, seed=config.seed, draws=config.draws)
    return {
        "behaviors": list(behaviors),
        "layers": layers,
        "top": list(settings.top),
        "seeds": config.seeds,
        "encoder": embedded[0].name,
        "fixed_layer": {
            name: {behavior: layers[each.fixed] for behavior, each in found.items()}
            for name, found in by_kind.items()
        },
        "settings": plain(settings),
        **read,
        "training": {name: training_figures(found) for name, found in by_kind.items()},
        "networks": {} if learned is None else learned.figures(by_kind, layers),
        "encoders": {
            each.name: encoder_figures(each, by_encoder[each.name], store["behavior"])
            for each in embedded
        },
        "words": words(read),
    }


def _kinds(
    swept: Store,
    learned: "Learned | None",
    behaviors: Mapping[str, Rows],
    config: AnalyzeConfig,
) -> dict[str, Kind]:
    """Every set of directions that layers are chosen for; the control last."""

    def slopes_of(sweep: Store, name: str) -> SlopeTable:
        return slope_table(sweep.array(f"{name}/propensity")[:], sweep["multiplier"])

    kinds = {}
    if CAA in config.vectors:
        kinds[CAA] = Kind(slopes=slopes_of(swept, METHOD), predicted=True)
    if learned is not None:
        oracle = slopes_of(learned.swept, learned.oracle)
        # L2S is steered where the vectors that it learns from work best ("Where to Steer", 4.5).
        fixed = {
            behavior: fixed_layer(oracle.slope[rows.at], rows.train)
            for behavior, rows in behaviors.items()
        }
        for name in learned.sets:
            slopes = oracle if name == learned.oracle else slopes_of(learned.swept, name)
            kinds[name] = Kind(slopes=slopes, predicted=name != learned.oracle, fixed=fixed)
    if config.controls:
        kinds[CONTROL] = Kind(slopes=slopes_of(swept, CONTROL), predicted=True)
    return kinds


def _choose(
    folder: Path,
    rows: Rows,
    kind: Kind,
    behavior: str,
    *,
    identity: str,
    layers: list[int],
    found: Embeddings,
    settings: W2SSettings,
    device: str,
    on_network: Callable[[int], object],
) -> Chosen:
    """All ways of one behavior, with predictors that are trained or were kept."""
    slopes = kind.of(rows)
    place = None if kind.fixed is None else kind.fixed[behavior]
    if not kind.predicted:
        return choose_layers(rows, slopes, fixed=place)
    values = found.values[rows.at]

    def train() -> dict[str, LayerPredictor]:
        return train_predictors(
            rows,
            slopes.slope,
            layers=layers,
            embeddings=values,
            settings=settings,
            device=device,
            on_network=on_network,
        )

    def save(folder: Path, trained: dict[str, LayerPredictor]) -> None:
        for name, each in trained.items():
            each.save(folder / f"{quote(name)}.safetensors")

    def load(folder: Path) -> dict[str, LayerPredictor]:
        on_network(n_networks(settings) + n_networks(_control(settings)))
        names = [*map(w2s, settings.top), SHUFFLED]
        return {name: LayerPredictor.load(folder / f"{quote(name)}.safetensors") for name in names}

    made_of = {
        "store": identity,
        "layers": layers,
        "slopes_sha256": digest_of({"slope": slopes.slope}),
        "embeddings": found.settings,
        "settings": settings,
    }
    predictors = kept(folder, made_of, load=load, make=train, save=save)
    return choose_layers(rows, slopes, fixed=place, predictors=predictors, embeddings=values)


def _control(settings: W2SSettings) -> W2SSettings:
    """What the predictors of traded embeddings are trained with."""
    return replace(settings, top=settings.top[:1])
