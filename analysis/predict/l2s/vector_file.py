"""What of a vector predictor is kept in its file, and what a file must hold to be one.

Refuses to know how networks are trained and applied, and how a file is written and checked
(`predictor_file`).
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from actcache.analysis.predict import predictor_file
from actcache.analysis.predict.l2s.vector_predictor import L2SSettings, VectorPredictor

KIND = "vector predictor"
"""What a file says it is."""

ARRAYS: predictor_file.Expected = {
    "layers": (np.int64, "layer"),
    "context_layers": (np.int64, "context"),
    "losses": (np.float64, "layer context component rate"),
    "mean_loss": (np.float64, "layer"),
    "validation_loss": (np.float64, "layer"),
    "context_layer": (np.int64, "layer"),
    "components": (np.int64, "layer"),
    "rate": (np.float64, "layer"),
    "epoch": (np.int64, "layer"),
    "encoder": (np.float32, "layer hidden d_model"),
    "bias": (np.float32, "layer hidden"),
    "decoder": (np.float32, "layer hidden d_model"),
}
"""Each array's dtype and dimensions."""


def write_predictor(predictor: VectorPredictor, path: Path) -> None:
    """Write networks, completely or not at all."""
    facts = {name: getattr(predictor, name) for name in ("n_train", "n_validation")}
    arrays = {name: getattr(predictor, name) for name in ARRAYS}
    predictor_file.write_predictor(
        path, arrays, kind=KIND, facts={**facts, "settings": asdict(predictor.settings)}
    )


def read_predictor(path: Path) -> VectorPredictor:
    """Read and check networks; errors of `predictor_file.read_predictor`."""
    return predictor_file.read_predictor(path, kind=KIND, parse=_parse)


def _parse(facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> VectorPredictor:
    settings = L2SSettings(**predictor_file.with_tuples(facts["settings"]))
    sizes = {
        "component": len(settings.components),
        "rate": len(settings.rates),
        "hidden": settings.hidden,
    }
    predictor_file.check_arrays(arrays, ARRAYS, sizes)
    return VectorPredictor(
        settings=settings,
        n_train=int(facts["n_train"]),
        n_validation=int(facts["n_validation"]),
        **{name: arrays[name] for name in ARRAYS},
    )
