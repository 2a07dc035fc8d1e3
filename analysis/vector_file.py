"""The file that trained networks are kept in: safetensors, with the settings as JSON beside them.

Checks all that it reads: dtypes, shapes that fit one another, finite values. Refuses to know how
networks are trained and applied.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from actcache.analysis.results import write_tensors
from actcache.analysis.vector_predictor import L2SSettings, VectorPredictor
from actcache.errors import ActcacheError, FormatError, StoreNotFoundError

FORMAT = "actcache vector predictor 1"
"""What a file says it is."""

ARRAYS = {
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
"""Each array's dtype and dimensions, which have one size in all arrays."""


def write_predictor(predictor: VectorPredictor, path: Path) -> None:
    """Write networks aside, then rename the file."""
    arrays = {name: getattr(predictor, name) for name in ARRAYS}
    settings = json.dumps(asdict(predictor.settings))
    n = f"{predictor.n_train} {predictor.n_validation}"
    about = {"format": FORMAT, "settings": settings, "n": n}
    write_tensors(path, arrays, about={**about, "sha256": _digest(about, arrays)})


def read_predictor(path: Path) -> VectorPredictor:
    """Read and check networks.

    Raises:
        StoreNotFoundError: there is no such file.
        FormatError: it is damaged, or something else.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise StoreNotFoundError(
            f"there is no file '{path}', expected networks that were saved. Train them first."
        )
    try:
        with safe_open(path, framework="np") as file:
            about = file.metadata() or {}
            _require_format(about)
            arrays = {name: np.asarray(file.get_tensor(name)) for name in ARRAYS}
        _require_digest(about, arrays)
        settings = json.loads(about["settings"])
        for name in ("rates", "components"):
            settings[name] = tuple(settings[name])
        checked = L2SSettings(**settings)
        _check(arrays, checked)
        n_train, n_validation = about["n"].split()
        return VectorPredictor(
            settings=checked, n_train=int(n_train), n_validation=int(n_validation), **arrays
        )
    except (
        ActcacheError,
        SafetensorError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        raise FormatError(
            f"'{path}' does not hold networks that this version reads: {error}. Train them again."
        ) from error


def _require_format(about: Mapping[str, str]) -> None:
    if about.get("format") != FORMAT:
        raise ValueError(f"it says it is '{about.get('format')}', expected '{FORMAT}'")


def _require_digest(about: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
    if about.get("sha256") != _digest(about, arrays):
        raise ValueError("its content does not match its checksum")


def _digest(about: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ("format", "settings", "n"):
        digest.update(about[name].encode() + b"\0")
    for name in ARRAYS:
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _check(arrays: Mapping[str, np.ndarray], settings: L2SSettings) -> None:
    sizes = {
        "component": len(settings.components),
        "rate": len(settings.rates),
        "hidden": settings.hidden,
    }
    for name, (dtype, dims) in ARRAYS.items():
        array = arrays[name]
        names = dims.split()
        if array.dtype != dtype or array.ndim != len(names):
            raise ValueError(f"'{name}' is {array.dtype} {list(array.shape)}, expected [{dims}]")
        for dim, size in zip(names, array.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ValueError(f"'{name}' has {size} in [{dims}], expected {dim} {sizes[dim]}")
        if not np.isfinite(array).all():
            raise ValueError(f"'{name}' holds a value that is not finite")
