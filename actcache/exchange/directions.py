"""The directions of a results folder as files that other programs steer with.

safetensors is what they are kept in. GGUF is the control vector of llama.cpp and repeng: tensors
`direction.ℓ`, added to the residual after block ℓ counted from 0, as here. There is none for block
0: llama.cpp refuses it, and it is left out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from actcache.errors import ActcacheError, MismatchError
from actcache.exchange.items import parse_json
from actcache.store.storage.atomic import atomic_path


def read_directions(
    folder: str | Path, names: Sequence[str] | None = None
) -> tuple[dict[str, Float32[np.ndarray, "layer d_model"]], dict[str, str]]:
    """Directions of a results folder, and the text that goes with them.

    Args:
        folder: what analyze left.
        names: `<behavior>` (all of its directions) or `<behavior>/<method>`; by default all.

    Raises:
        MismatchError: there are none, or none of such a name.
    """
    from safetensors import safe_open

    path = Path(folder) / "directions.safetensors"
    if not path.is_file():
        raise MismatchError(
            f"'{folder}' has no directions.safetensors, expected a folder that actcache analyze "
            "left. Run analyze with --stages vectors, and pass its OUT."
        )
    with safe_open(path, framework="numpy") as file:
        known = list(file.keys())
        wanted = known if names is None else []
        for name in names or ():
            found = [each for each in known if each == name or each.rpartition("/")[0] == name]
            if not found:
                raise MismatchError(
                    f"'{path}' has no direction '{name}', expected some of {', '.join(known)}. "
                    "Pass one of these, or a behavior."
                )
            wanted += found
        tensors = {name: file.get_tensor(name) for name in wanted}
        return tensors, dict(file.metadata() or {})


def write_directions(
    folder: str | Path,
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write some directions as safetensors.

    Returns:
        Their names.

    Raises:
        MismatchError: there are none of such a name.
        StoreExistsError: something lies at `path`.
    """
    from safetensors.numpy import save

    tensors, about = read_directions(folder, names)
    with atomic_path(Path(path), overwrite=overwrite) as aside:
        # Not `save_file`, which makes files that only their owner can read.
        aside.write_bytes(save(tensors, metadata=about))
    return list(tensors)


def write_gguf(
    folder: str | Path,
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write one direction as a control vector.

    Returns:
        Its name, alone in a list.

    Raises:
        MismatchError: not exactly one direction is meant, or it has one layer only.
        ActcacheError: the package gguf is not installed.
        StoreExistsError: something lies at `path`.
    """
    try:
        import gguf
    except ImportError:
        raise ActcacheError(
            "the package 'gguf' is not installed, and writes such files. Install it with: pip "
            "install 'actcache[gguf]'"
        ) from None

    tensors, about = read_directions(folder, names)
    plain = [name for name in tensors if name.endswith("/difference_of_means")]
    if len(plain) == 1:  # a behavior was meant: the direction as it is, not the unit one
        tensors = {plain[0]: tensors[plain[0]]}
    if len(tensors) != 1:
        raise MismatchError(
            f"a control vector is one direction, but {len(tensors)} are meant: "
            f"{', '.join(tensors)}. Pass one with --directions."
        )
    [(name, values)] = tensors.items()
    if len(values) < 2:
        raise MismatchError(
            f"'{name}' has {len(values)} layer, and a control vector begins at layer 1; expected "
            "two or more. Export --to safetensors."
        )
    with atomic_path(Path(path), overwrite=overwrite) as aside:
        writer = gguf.GGUFWriter(aside, "controlvector")
        writer.add_string("controlvector.model_hint", _family(Path(folder), about))
        writer.add_uint32("controlvector.layer_count", len(values) - 1)
        writer.add_string("general.description", f"{name}; after block n from 0; by actcache")
        for layer in range(1, len(values)):
            tensor = np.ascontiguousarray(values[layer], np.float32)
            writer.add_tensor(f"direction.{layer}", tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return [name]


def _family(folder: Path, about: Mapping[str, str]) -> str:
    """What Hugging Face calls the model's family, such as `llama`: readers show it."""
    if (folder / "summary.json").is_file():
        summary = parse_json((folder / "summary.json").read_text(encoding="utf-8"), "summary.json")
        return str(summary["store"]["provenance"]["model"]["family"])
    return about.get("model", "unknown")
