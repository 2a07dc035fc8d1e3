"""The directions of a results folder as files that other programs steer with.

Results hold them as safetensors. GGUF is the control vector of llama.cpp and repeng: tensors
`direction.ℓ`, added to the residual after block ℓ counted from 0, as here. Block 0 has none:
llama.cpp refuses it, so it is left out.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from actcache.errors import MismatchError
from actcache.steering.files.control_vector import import_gguf, write_control_vector
from actcache.store.storage.atomic import atomic_path
from actcache.store.storage.safetensors_bytes import safetensors_bytes


def read_directions(
    folder: Path, names: Sequence[str] | None = None
) -> tuple[dict[str, Float32[np.ndarray, "layer d_model"]], dict[str, str]]:
    """Read directions of a results folder, and the file's metadata.

    `names` are `<behavior>` (all of its directions) or `<behavior>/<method>`; None is all.
    """
    from safetensors import safe_open

    path = folder / "directions.safetensors"
    if not path.is_file():
        raise MismatchError(
            f"'{folder}' has no directions.safetensors, expected a folder that actcache analyze "
            "left. Run analyze with --stages vectors, and pass its OUT."
        )
    with safe_open(path, framework="numpy") as file:
        stored = list(file.keys())
        selected = stored if names is None else []
        for name in names or ():
            matches = [key for key in stored if name in (key, key.rpartition("/")[0])]
            if not matches:
                raise MismatchError(
                    f"'{path}' has no direction '{name}', expected some of {', '.join(stored)}. "
                    "Pass one of these, or a behavior."
                )
            selected += matches
        tensors = {name: file.get_tensor(name) for name in selected}
        return tensors, dict(file.metadata() or {})


def write_directions(
    folder: Path, path: Path, *, names: Sequence[str] | None = None, overwrite: bool = False
) -> list[str]:
    """Write some directions as safetensors; return their names."""
    tensors, metadata = read_directions(folder, names)
    with atomic_path(path, overwrite=overwrite) as temporary:
        # Not `save_file`, which makes files that only their owner can read.
        temporary.write_bytes(safetensors_bytes(tensors, metadata))
    return list(tensors)


def write_gguf(
    folder: Path, path: Path, *, names: Sequence[str] | None = None, overwrite: bool = False
) -> list[str]:
    """Write one direction as a control vector; return its name, alone in a list."""
    import_gguf()
    tensors, metadata = read_directions(folder, names)
    plain = [name for name in tensors if name.endswith("/difference_of_means")]
    if len(plain) == 1:  # of a behavior: the direction itself, not the unit one
        tensors = {plain[0]: tensors[plain[0]]}
    if len(tensors) != 1:
        raise MismatchError(
            f"a control vector is one direction, but {len(tensors)} are selected: "
            f"{', '.join(tensors)}. Select one with --directions."
        )
    [(name, values)] = tensors.items()
    if len(values) < 2:
        raise MismatchError(
            f"'{name}' has {len(values)} layer, and a control vector begins at layer 1; expected "
            "two or more. Export --to safetensors."
        )
    with atomic_path(path, overwrite=overwrite) as temporary:
        write_control_vector(
            temporary,
            {layer: values[layer] for layer in range(1, len(values))},
            family=_family(folder, metadata),
            layer_count=len(values) - 1,
            description=f"{name}; after block n from 0; by actcache",
        )
    return [name]


def _family(folder: Path, metadata: Mapping[str, str]) -> str:
    """What Hugging Face calls the model's family, such as `llama`; readers show it."""
    path = folder / "summary.json"
    if not path.is_file():
        return metadata.get("model", "unknown")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        return str(summary["store"]["provenance"]["model"]["family"])
    except (ValueError, KeyError, TypeError):
        raise MismatchError(
            f"'{path}' names no model family, expected the summary that actcache analyze left. "
            "Run analyze again."
        ) from None
