"""The results of an analysis: opening them, and writing their arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int64

from actcache.analysis.directions.difference_of_means import Directions, unit
from actcache.analysis.directions.planes import Plane
from actcache.analysis.files import write_arrays, write_tensors
from actcache.analysis.names import CAA, L2S, METHOD, slugs, w2s
from actcache.analysis.report.pages import html_page
from actcache.analysis.results_folder import DIRECTIONS, SWEEP, place_of_sweep
from actcache.analysis.stats.slopes import among, fit_quality
from actcache.analysis.summary import Summary, VectorSummary
from actcache.analysis.sweep.open_sweep import Sweep, open_sweep
from actcache.analysis.sweep.steerability import Steerability
from actcache.errors import (
    FormatError,
    MismatchError,
    StoreNotFoundError,
)
from actcache.store.store import Store

if TYPE_CHECKING:
    from actcache.analysis.predict.l2s.vector_predictor import VectorPredictor
    from actcache.analysis.predict.w2s.layer_predictor import LayerPredictor


@dataclass(frozen=True)
class Results:
    """What `analyze` left in a folder; each part is read when it is asked for."""

    path: Path

    @cached_property
    def summary(self) -> Summary:
        """Every number of the tables."""
        return Summary.read(self.path / "summary.json")

    @cached_property
    def directions(self) -> dict[str, Float32[np.ndarray, "layer d_model"]]:
        """Difference of means of each behavior (or `<positive label>-<negative label>`)."""
        from safetensors import SafetensorError, safe_open

        path = self.path / "directions.safetensors"
        if not path.is_file():
            raise StoreNotFoundError(f"no directions at '{path}'. Run the stage vectors.")
        try:
            with safe_open(path, framework="numpy") as file:
                return {
                    name.removesuffix(f"/{METHOD}"): file.get_tensor(name)
                    for name in list(file.keys())
                    if name.endswith(f"/{METHOD}")
                }
        except SafetensorError as error:
            raise FormatError(
                f"'{path}' is damaged ({error}), expected directions. Run analyze again."
            ) from None

    @cached_property
    def sweep(self) -> Sweep:
        """Propensities and slopes of every sample."""
        place = place_of_sweep(self.path)
        try:
            return open_sweep(place)
        except StoreNotFoundError:
            if place == self.path / SWEEP:
                raise
            raise StoreNotFoundError(
                f"no sweep at '{place}', where the results in '{self.path}' say that it is. If it "
                f"was moved, name its new place: actcache analyze STORE -o {self.path} "
                "--sweep-store PLACE"
            ) from None

    def predictor(
        self, behavior: str, *, directions: str = CAA, top: int | None = None
    ) -> "LayerPredictor":
        """Load a trained layer predictor.

        Args:
            behavior: which.
            directions: the direction set whose layer it predicts.
            top: its K; by default the one that gained most in cross-validation.

        Raises:
            MismatchError: the folder has no such predictor.
        """
        from actcache.analysis.predict.w2s.layer_predictor import LayerPredictor

        scores = self.summary.predictors
        trained = {} if scores is None else {k: v for k, v in scores.sets.items() if v.primary}
        if scores is None or behavior not in scores.behaviors or directions not in trained:
            raise MismatchError(
                f"'{self.path}' has no predictor of '{directions}' for behavior '{behavior}', "
                f"expected directions of {list(trained)} and behaviors of "
                f"{list(scores.behaviors) if scores else []}. Run the stage predictors."
            )
        key = str(trained[directions].primary) if top is None else w2s(top)
        encoder = slugs(scores.encoders)[scores.encoder]
        folder = self.path / "predictors" / slugs(scores.behaviors)[behavior]
        return LayerPredictor.load(
            folder / f"{directions}-{encoder}" / f"{key.removeprefix('w2s_')}.safetensors"
        )

    def vector_predictor(self, behavior: str) -> "VectorPredictor":
        """Load the networks of L2S, which predict a vector for each prompt.

        Raises:
            MismatchError: the folder has none of that behavior.
        """
        from actcache.analysis.predict.l2s.vector_predictor import FILE, VectorPredictor

        scores = self.summary.predictors
        trained = list(scores.networks) if scores is not None else []
        if scores is None or behavior not in trained:
            raise MismatchError(
                f"'{self.path}' has no networks of L2S for behavior '{behavior}', expected some of "
                f"{trained}. Run the stages sweep and predictors with --vectors caa,l2s."
            )
        folder = self.path / "predictors" / slugs(scores.behaviors)[behavior]
        return VectorPredictor.load(folder / L2S / FILE)

    def _repr_html_(self) -> str:
        return html_page(self.summary)

    def __repr__(self) -> str:
        return f"Results('{self.path}')"


def open_results(out: str | Path) -> Results:
    """Open what `analyze` left in a folder.

    Raises:
        StoreNotFoundError: there are no results.
        FormatError: its summary is damaged, or something else.
    """
    results = Results(Path(out))
    if not (results.path / "summary.json").is_file():
        raise StoreNotFoundError(
            f"no results at '{out}'. Make some with: actcache analyze STORE.zarr -o {out}"
        )
    _ = results.summary  # refuse now what cannot be read
    return results


def write_directions(out: Path, store: Store, tensors: Mapping[str, np.ndarray]) -> None:
    """Add to `directions.safetensors`, which holds directions of this store alone."""
    if not tensors:
        return
    path = out / DIRECTIONS
    earlier: dict[str, np.ndarray] = {}
    if path.is_file():
        from safetensors.numpy import load_file

        earlier = load_file(path)
    about = {"layer": "output of the decoder block, from 0", **_model(store)}
    write_tensors(path, {**earlier, **tensors}, about=about)


def write_vectors(out: Path, store: Store, directions: Directions) -> dict[str, VectorSummary]:
    """Write `directions.safetensors` (as they are and of norm 1) and `moments.npz`."""
    tensors = {}
    for name, values in zip(directions.names, directions.values, strict=True):
        tensors[f"{name}/{METHOD}"] = values
        tensors[f"{name}/{METHOD}_unit"] = unit(values)
    write_directions(out, store, tensors)
    moments = directions.moments
    classes = [f"{name}/{side}" for name in directions.names for side in ("positive", "negative")]
    write_arrays(
        out / "moments.npz",
        {
            "class": np.array(classes),
            "count": moments.count,
            "mean": moments.mean,
            "scatter": moments.scatter,
        },
    )
    norms = np.linalg.norm(directions.values.astype(np.float64), axis=-1)
    counts = moments.count.reshape(-1, 2)
    return {
        name: VectorSummary(n_positive=int(p), n_negative=int(q), norm=tuple(norm.tolist()))
        for name, (p, q), norm in zip(directions.names, counts, norms, strict=True)
    }


def write_planes(out: Path, store: Store, planes: Mapping[str, Plane]) -> None:
    """Write `planes.safetensors`: `<name>/plane`, float32 `[2, d_model]`, orthonormal."""
    tensors = {f"{name}/plane": plane.basis.astype(np.float32) for name, plane in planes.items()}
    write_tensors(out / "planes.safetensors", tensors, about=_model(store))


def _model(store: Store) -> dict[str, str]:
    model = store.provenance["model"]
    return {"weights_sha256": str(model["weights_sha256"]), "model": str(model["name"])}


def write_steerability(
    out: Path,
    store: Store,
    sweep: Sweep,
    results: Mapping[str, Steerability],
    controls: Sequence[str],
) -> None:
    """Write `steerability.npz`: slopes of every sample, how good the fits are, the best layers.

    Samples that were not swept have slopes of NaN and best layers of -1. `results` are by behavior,
    or `behavior@variant`; `controls` name the random direction sets.
    """
    first = next(iter(results.values()))
    layers, swept = sweep.layers, sweep.rows()
    quality = fit_quality(sweep.propensity[swept], sweep.multipliers)
    names = ("id", "behavior", "variant", "split", "letter")
    arrays: dict[str, np.ndarray] = {
        **{name: np.asarray(store[name], dtype=str) for name in names},
        "layer": layers,
        "multiplier": sweep.multipliers,
        "slope": first.slope,
        **{name: among(swept, values) for name, values in asdict(quality).items()},
        "oracle_layer": _numbers(layers, first.oracle_layer),
    }
    if first.cross_fitted_layer is not None:
        arrays["crossfit_layer"] = _numbers(layers, first.cross_fitted_layer)
    for name in controls:
        arrays[f"{name}/slope"] = sweep.slopes(name)
    for behavior, result in results.items():
        arrays[f"{behavior}/fixed_layer"] = np.asarray(result.scores.fixed_layer)
        if "@" not in behavior:
            rows = store["behavior"] == behavior
            for name in ("oracle_layer", "crossfit_layer"):
                if name in arrays:
                    arrays[f"{behavior}/{name}"] = arrays[name][rows]
    write_arrays(out / "steerability.npz", arrays)


def _numbers(
    layers: Int64[np.ndarray, " layer"], places: Int64[np.ndarray, " n *half"]
) -> Int64[np.ndarray, " n *half"]:
    """Numbers of the layers at some places; -1 stays."""
    return np.where(places < 0, -1, layers[places])
