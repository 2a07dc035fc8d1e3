"""The results folder of an analysis: open it, read it, check whose it is, empty it."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from actcache.analysis.documents import plain
from actcache.analysis.names import CAA, METHOD, slugs, w2s
from actcache.analysis.report.pages import html_page
from actcache.analysis.summary import Summary, read_store
from actcache.analysis.sweep.open_sweep import Sweep, open_sweep
from actcache.errors import FormatError, MismatchError, StoreNotFoundError
from actcache.identity import IDENTITY, require_same
from actcache.store.store import Store

if TYPE_CHECKING:
    from actcache.analysis.predict.w2s.layer_predictor import LayerPredictor

SAME_STORE = ("data_sha256", "tokenizer")
"""Besides the model's identity and the shape, what the store of a results folder must agree on."""


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
        return open_sweep(self.path / "sweep.zarr")

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


def require_same_store(out: Path, store: Store) -> None:
    """Refuse a folder with results of another store, before anything in it is replaced.

    Raises:
        MismatchError: names what differs.
        FormatError: `summary.json` is no document of ours.
    """
    path = out / "summary.json"
    if not path.exists():
        return
    before = read_store(path)
    shape = ("n", "n_layers", "d_model")
    require_same(
        {**{name: getattr(store, name) for name in shape}, **_identity(plain(store.provenance))},
        {**{name: getattr(before, name) for name in shape}, **_identity(before.provenance)},
        what=f"'{store.path}' and the store that the results in '{out}' are of",
        remedy="Choose another folder with -o, or pass --overwrite.",
    )


def _identity(provenance: Mapping[str, Any]) -> dict[str, Any]:
    model = provenance.get("model")
    known = model if isinstance(model, dict) else {}  # an imported store may not say
    return {
        **{name: provenance.get(name) for name in SAME_STORE},
        "model": {name: known.get(name) for name in IDENTITY},
    }


def remove_results(out: Path) -> None:
    """Remove what `analyze` left in a folder, and nothing else."""
    for name in ("sweep.zarr", "sweep.zarr.partial", "predictors"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in (
        *("summary.json", "directions.safetensors", "moments.npz", "steerability.npz"),
        *("steerability.png", "grid.png", "layers.png"),
        *("predictors.npz", "tables.md", "embeddings.png"),
    ):
        (out / name).unlink(missing_ok=True)
