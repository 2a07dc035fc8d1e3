"""Directions from files, whoever wrote them: which sets a file holds, and for which behavior.

Ours and those of other programs are safetensors with `<behavior>/<key>` `[layer, d_model]`, or with
a tensor `[d_model]` for each layer whose name ends in its number, as the layers of steering-vectors
are numbered; repeng and llama.cpp write GGUF. Layer ℓ is the output of block ℓ, from 0, in all.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from actcache.errors import MismatchError, NotFiniteError
from actcache.steering.files.control_vector import MAGIC, read_control_vector
from actcache.store.store import Store

_LAYER = re.compile(r"(?:.*\D)?(\d{1,5})")
_UNIT = "_unit"
"""End of the names of directions of norm 1, which are the same directions."""


@dataclass(frozen=True, kw_only=True)
class FileDirections:
    """One set of directions of a file."""

    name: str
    """The key, or the file's name: what the set is called in a sweep."""

    values: Mapping[str, Float32[np.ndarray, "layer d_model"]]
    """By behavior; all layers of the store, zero where the file has none."""


def read_direction_sets(files: Sequence[str], store: Store) -> list[FileDirections]:
    """Read the direction sets of files, for every behavior of a store.

    Args:
        files: `FILE`, all of its sets, or `FILE:KEY`, one: a key that each behavior has
            (`mean-hard-attended` of `tidy/mean-hard-attended`), or the name of one tensor, which
            then steers all behaviors.
        store: of pairs, whose behaviors are steered.

    Raises:
        MismatchError: a file that cannot be read or holds directions of another model or width, a
            key that it has not, or a behavior without a direction.
        NotFiniteError: a direction is infinite or not a number.
    """
    behaviors = list(dict.fromkeys(store["behavior"].tolist()))
    sets: dict[str, FileDirections] = {}
    for given in files:
        path, key = _path_and_key(given)
        for name, values in _sets_of_file(path, key, behaviors, store).items():
            _check_values(path, name, values, store)
            unique = name if name not in sets else f"{path.stem}-{name}"
            if unique in sets:
                raise MismatchError(
                    f"the directions '{name}' are given twice, by '{path}' again. Pass them once."
                )
            sets[unique] = FileDirections(name=unique, values=values)
    return list(sets.values())


def _path_and_key(given: str) -> tuple[Path, str | None]:
    if Path(given).is_file():
        return Path(given), None
    path, colon, key = given.rpartition(":")
    if not colon or not Path(path).is_file():
        raise MismatchError(
            f"no file of directions at '{given}', expected FILE or FILE:KEY. Pass what analyze "
            "left (OUT/directions.safetensors), a safetensors file or a GGUF control vector."
        )
    return Path(path), key


def _sets_of_file(
    path: Path, key: str | None, behaviors: Sequence[str], store: Store
) -> dict[str, dict[str, Float32[np.ndarray, "layer d_model"]]]:
    with path.open("rb") as file:
        is_gguf = file.read(len(MAGIC)) == MAGIC
    if is_gguf:
        try:
            layers = read_control_vector(path.read_bytes())
        except ValueError as error:
            raise MismatchError(
                f"'{path}' is no control vector ({error}), expected one of repeng or llama.cpp. "
                "Export it again."
            ) from None
        return {path.stem: dict.fromkeys(behaviors, _of_layers(path, layers, store))}
    tensors = _read_safetensors(path, store)
    numbered = {name: _LAYER.fullmatch(name) for name in tensors}
    if key is None and all(numbered.values()) and all(x.ndim == 1 for x in tensors.values()):
        by_layer = {int(match[1]): tensors[name] for name, match in numbered.items() if match}
        return {path.stem: dict.fromkeys(behaviors, _of_layers(path, by_layer, store))}
    if key is not None and key in tensors:
        return {key.replace("/", "-"): dict.fromkeys(behaviors, tensors[key])}
    keys = list(dict.fromkeys(name.rpartition("/")[2] for name in tensors))
    chosen = [key] if key is not None else [name for name in keys if not name.endswith(_UNIT)]
    sets = {}
    for name in chosen:
        missing = [b for b in behaviors if f"{b}/{name}" not in tensors]
        if missing:
            known = ", ".join(list(tensors)[:6]) + (", …" if len(tensors) > 6 else "")
            raise MismatchError(
                f"'{path}' has no direction '{missing[0]}/{name}', expected one for each behavior "
                f"of '{store.path}'; it has {known}. Pass FILE:KEY with a key that all behaviors "
                "have, or the name of one tensor for all."
            )
        sets[name] = {behavior: tensors[f"{behavior}/{name}"] for behavior in behaviors}
    return sets


def _read_safetensors(path: Path, store: Store) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except (SafetensorError, TypeError) as error:  # TypeError: bfloat16, which NumPy has not
        raise MismatchError(
            f"'{path}' cannot be read as directions ({error}), expected safetensors of float32 or "
            "float16, or GGUF. Write it again."
        ) from None
    weights = store.provenance["model"]["weights_sha256"]
    if about.get("weights_sha256", weights) != weights:
        raise MismatchError(
            f"'{path}' holds directions of the model {about.get('model', 'unknown')} with weights "
            f"{about['weights_sha256'][:12]}…, expected those of '{store.path}', {weights[:12]}…. "
            "Pass directions of the same model."
        )
    if not tensors:
        raise MismatchError(f"'{path}' holds no tensors, expected directions. Write it again.")
    return tensors


def _of_layers(
    path: Path, layers: Mapping[int, np.ndarray], store: Store
) -> Float32[np.ndarray, "layer d_model"]:
    """Put the layers of a file in their places; zero where it has none."""
    last = max(layers)
    if last >= store.n_layers:
        raise MismatchError(
            f"'{path}' has a direction of layer {last}, but the model of '{store.path}' has layers "
            f"0 to {store.n_layers - 1}. Pass directions of the same model."
        )
    width = len(next(iter(layers.values())))
    values = np.zeros((store.n_layers, width), np.float32)
    for layer, direction in layers.items():
        if len(direction) != width:
            raise MismatchError(
                f"'{path}' has directions of widths {width} and {len(direction)}, expected one. "
                "Write it again."
            )
        values[layer] = direction
    return values


def _check_values(
    path: Path, name: str, by_behavior: Mapping[str, np.ndarray], store: Store
) -> None:
    shape = (store.n_layers, store.d_model)
    for values in by_behavior.values():
        if values.shape != shape:
            raise MismatchError(
                f"the directions '{name}' of '{path}' have shape {list(values.shape)}, expected "
                f"{list(shape)}: layers and width of the model of '{store.path}'. Pass directions "
                "of the same model."
            )
        if not np.isfinite(values).all():
            layer = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise NotFiniteError(
                f"the direction '{name}' of '{path}' is not finite at layer {layer}, expected "
                "numbers. Fit it again."
            )
