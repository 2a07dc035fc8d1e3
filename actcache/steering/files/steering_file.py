"""The file of a steering: one safetensors, canonical JSON in its metadata, nothing executed.

Written byte by byte the same everywhere, so that equal steerings are equal files. Reading refuses a
file by its sizes before any of it is in memory.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from jaxtyping import Float32

from actcache.errors import ActcacheError, FormatError, StoreNotFoundError
from actcache.steering.checks import check_keys, refuse
from actcache.steering.files.control_vector import MAGIC, read_control_vector
from actcache.steering.gates import read_gate
from actcache.steering.source import SteeringSource
from actcache.store.storage.atomic import atomic_path
from actcache.store.storage.safetensors_bytes import safetensors_bytes

Steering = TypeVar("Steering")

FORMAT = "actcache.steering/1"

FILE_LIMIT = 64 << 20
"""Bytes of a file: planes at two sites of 126 layers, 16384 wide, take 33 MB."""

HEADER_LIMIT = 1 << 20
"""Bytes of a safetensors header, which holds the JSON."""

PART = (
    *("operator", "site", "layers", "strength", "tokens", "window", "gate", "renorm"),
    "source",
)
"""Keys of a part's JSON."""


def canonical_json(document: Any) -> str:
    """Write JSON in the one way that digests are made of: sorted keys, no spaces, ASCII."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def write_steering(
    path: Path, spec: Mapping[str, Any], tensors: Mapping[str, Float32[np.ndarray, "..."]]
) -> None:
    """Write a file, complete or not at all; replaces one that is there.

    Raises:
        FormatError: it is larger than what a reader takes.
    """
    text = canonical_json(spec)
    n_bytes = sum(array.nbytes for array in tensors.values())
    if 4 * len(text) > HEADER_LIMIT or n_bytes > FILE_LIMIT - HEADER_LIMIT:
        raise FormatError(
            f"the steering takes {len(text)} bytes of JSON and {n_bytes} of vectors, expected "
            f"{HEADER_LIMIT // 4} and {FILE_LIMIT - HEADER_LIMIT} at most. Save its parts one by "
            "one."
        )
    raw = safetensors_bytes(tensors, {"format": FORMAT, "spec": text})
    with atomic_path(path) as temporary:
        temporary.write_bytes(raw)


def read_steering(
    path: Path, make: Callable[[dict[str, Any], dict[str, np.ndarray]], Steering]
) -> Steering:
    """Read what `write_steering` wrote, or a control vector in GGUF.

    `make` makes the steering of spec and tensors, which may be wrong in any way. A control vector
    has no digest.

    Raises:
        StoreNotFoundError: there is no file.
        FormatError: it is damaged, or something else; names the field.
    """
    if not path.is_file():
        raise StoreNotFoundError(f"no steering at '{path}'. Pass a file that Steering.save wrote.")
    from safetensors import SafetensorError

    expected, remedy = f"a whole '{FORMAT}'", "Pass a file that Steering.save wrote."
    read = _read
    try:
        with path.open("rb") as file:
            if file.read(4) == MAGIC:
                expected, remedy = "a control vector in GGUF", "Pass one of repeng or llama.cpp."
                read = _read_control_vector
        return make(*read(path))
    except ActcacheError as error:
        raise FormatError(f"'{path}': {error}") from None
    except (SafetensorError, ValueError, RecursionError) as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise FormatError(
            f"'{path}' is no steering file ({reason}), expected {expected}. {remedy}"
        ) from None


def part_values(documents: Any, tensors: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """Read each part's fields, gate and source as its constructor takes them."""
    if not isinstance(documents, list) or not documents:
        refuse("parts", repr(documents)[:40], "a list of one or more", "Save it again.")
    for number, document in enumerate(documents):
        values = {**check_keys(f"part {number}", document, PART)}
        arrays: dict[str, Any] = {
            name: tensors.get(f"{number}.{name}") for name in ("vectors", "gate.vectors")
        }
        gate = values["gate"]
        if not (isinstance(gate, dict) and gate.get("kind") == "prompt"):
            arrays.pop("gate.vectors")
        for name, array in arrays.items():
            if array is None:
                refuse(f"tensor '{number}.{name}'", "missing", "one", "Save it again.")
        if values["source"] is not None:
            values["source"] = SteeringSource.from_document(values["source"])
        values["gate"] = read_gate(gate, arrays.get("gate.vectors"))
        yield {**values, "vectors": arrays["vectors"]}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors import safe_open

    _check_size(path)
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > HEADER_LIMIT:
        raise ValueError(f"a header of {header} bytes, at most {HEADER_LIMIT}")
    with safe_open(path, framework="numpy") as opened:
        metadata = opened.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"format is {metadata.get('format')!r}")
        check_keys("metadata", metadata, ("format", "spec"))
        tensors = {}
        for name in sorted(opened.keys()):
            dtype = opened.get_slice(name).get_dtype()
            if dtype != "F32":
                raise ValueError(f"tensor '{name}' is {dtype}, expected F32")
            tensors[name] = opened.get_tensor(name)
    spec = json.loads(metadata["spec"], parse_constant=_refuse_constant)
    return check_keys("spec", spec, ("digest", "parts")), tensors


def _read_control_vector(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read GGUF as the steering that llama.cpp does with it."""
    _check_size(path)
    directions = read_control_vector(path.read_bytes())
    layers = [layer for layer, direction in directions.items() if direction.any()]
    if not layers:
        raise ValueError("all of its directions are zero")
    part = {
        "operator": "add",
        "site": "resid_post",
        "layers": layers,
        "strength": 1.0,
        "tokens": "all",
        "window": None,
        "gate": None,
        "renorm": False,
        "source": SteeringSource(method="control vector").document(),
    }
    vectors = np.stack([directions[layer] for layer in layers])
    return {"parts": [part]}, {"0.vectors": vectors}


def _check_size(path: Path) -> None:
    if (size := path.stat().st_size) > FILE_LIMIT:
        raise ValueError(f"{size} bytes, at most {FILE_LIMIT}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"a number is {name}")
