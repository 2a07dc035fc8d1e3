"""Steerings as files that other programs steer with; what a format cannot say is refused by name.

GGUF is the control vector of llama.cpp and repeng. EasySteer, which steers in vLLM, takes a folder:
a `spec.json` in the form of its `SteeringSpec` and a GGUF file of vectors for each part.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import Float32

from actcache.errors import MismatchError
from actcache.steering.files.control_vector import import_gguf, write_control_vector
from actcache.steering.steering import AnySteering, Steering
from actcache.store.storage.atomic import atomic_path

EASYSTEER_ALGORITHMS = {"add": "direct", "ablate": "erase"}
"""EasySteer's names of the operators that it has. Its `erase` removes all of the projection,
whatever its scale."""

_PROMPT: Mapping[str, Mapping[str, Any]] = {
    "all": {"prompt": "all"},
    "prompt": {"prompt_positions": [-1]},
    "completion": {},
}
"""EasySteer's selection of prompt tokens; all of them are computed in step 0."""


def write_steering_safetensors(
    steering: AnySteering, path: Path, *, overwrite: bool = False
) -> list[str]:
    """Write a steering file; return the names of its tensors."""
    with atomic_path(path, overwrite=overwrite) as temporary:
        steering.save(temporary)
    return list(steering.tensors)


def write_steering_gguf(steering: AnySteering, path: Path, *, overwrite: bool = False) -> list[str]:
    """Write a steering as one control vector; return the names of its tensors.

    Strengths are multiplied in, parts at one layer are added up, and layers that are not steered
    have zeros, since repeng reads a direction of every layer.

    Raises:
        MismatchError: a control vector cannot say it; names the field.
    """
    import_gguf()
    total: dict[int, np.ndarray] = {}
    for part in steering.parts:
        _require(part, "gguf", operator=("add",), tokens=("all",))
        if part.window is not None:
            _refuse("gguf", "window", part.window, "none")
        for layer, vector in zip(part.layers, part.vectors, strict=True):
            scaled = part.strength * vector.astype(np.float64)
            total[layer] = total.get(layer, 0) + scaled
    n_layers = max([part.source.n_layers or 0 for part in steering.parts if part.source], default=0)
    stop = max(n_layers, max(total) + 1)
    zero = np.zeros(steering.d_model)
    directions = {layer: total.get(layer, zero).astype(np.float32) for layer in range(1, stop)}
    with atomic_path(path, overwrite=overwrite) as temporary:
        _write(temporary, steering.parts[0], directions, stop - 1)
    return [f"direction.{layer}" for layer in directions]


def write_easysteer(steering: AnySteering, folder: Path, *, overwrite: bool = False) -> list[str]:
    """Write a folder for EasySteer; return the names of its files.

    Its vectors are as they are, and the strength is the `scale` in `spec.json`.

    Raises:
        MismatchError: EasySteer cannot say it; names the field.
        StoreExistsError: something exists at `folder`; a folder is never replaced.
    """
    import_gguf()
    vectors = []
    for number, part in enumerate(steering.parts):
        operators = tuple(EASYSTEER_ALGORITHMS)
        _require(part, "easysteer", operator=operators, tokens=tuple(_PROMPT))
        if part.operator == "ablate" and part.strength != 1:
            _refuse("easysteer", "strength", part.strength, "1 for 'ablate'")
        vectors.append(
            {
                "source": "vectors.gguf" if number == 0 else f"vectors_{number}.gguf",
                "algorithm": EASYSTEER_ALGORITHMS[part.operator],
                "scale": part.strength,
                "layers": list(part.layers),
                "normalize": False,
                "apply": _easysteer_tokens(part),
            }
        )
    with atomic_path(folder, overwrite=overwrite) as temporary:
        temporary.mkdir()
        for spec, part in zip(vectors, steering.parts, strict=True):
            directions = dict(zip(part.layers, part.vectors, strict=True))
            _write(temporary / str(spec["source"]), part, directions, len(directions))
        document = {"vectors": vectors, "conflict": "sequential"}
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
        (temporary / "spec.json").write_text(text, encoding="utf-8")
    return ["spec.json", *(str(spec["source"]) for spec in vectors)]


def _easysteer_tokens(part: Steering) -> dict[str, Any]:
    """Write which tokens are steered; EasySteer's step 0 is the first generated token, our 1."""
    if part.window is None:
        return {**_PROMPT[part.tokens], "generation": "all"}
    start, stop = part.window
    tokens = dict(_PROMPT[part.tokens]) if start == 0 else {}
    if stop is None or stop > 1:
        tokens["generation_window"] = [max(start - 1, 0), None if stop is None else stop - 1]
    return tokens


def _write(
    path: Path,
    part: Steering,
    directions: Mapping[int, Float32[np.ndarray, " d_model"]],
    layer_count: int,
) -> None:
    source = part.source
    write_control_vector(
        path,
        directions,
        family=(source and source.family) or "unknown",
        layer_count=layer_count,
        description=f"{(source and source.behavior) or 'steering'}; after block n from 0; by "
        "actcache",
    )


def _require(part: Steering, to: str, **words: tuple[str, ...]) -> None:
    """Refuse a part that is more than vectors at block outputs."""
    for field, known in {**words, "site": ("resid_post",)}.items():
        if getattr(part, field) not in known:
            _refuse(to, field, repr(getattr(part, field)), " or ".join(map(repr, known)))
    for field in ("gate", "renorm"):
        if value := getattr(part, field):
            _refuse(to, field, type(value).__name__ if field == "gate" else value, "none")
    if part.layers[0] == 0:
        _refuse(to, "layers", list(part.layers), "layers from 1 on")


def _refuse(to: str, field: str, value: object, expected: str) -> NoReturn:
    raise MismatchError(
        f"the steering's {field} is {value}, expected {expected}: {to} cannot say it. Change the "
        "field, or keep the steering as safetensors."
    )
