"""Control vectors of llama.cpp and repeng: GGUF files with a float32 tensor `direction.ℓ` a layer.

`direction.ℓ` is added to the residual after block ℓ, counted from 0, of every token. Block 0 has
none: llama.cpp refuses it. Files are read here from their bytes, since a file from elsewhere may be
anything; they are written by the package gguf.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from actcache.errors import ActcacheError

MAGIC = b"GGUF"

_F32, _STRING, _ARRAY = 0, 8, 9
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Of each type of metadata that has a fixed size: integers, floats, bool."""

_MOST = 500
"""Fields, tensors, and texts in a list."""


class _Bytes:
    """Bytes that are read from the start on."""

    def __init__(self, raw: bytes) -> None:
        self.raw, self.place = raw, 0

    def take(self, n: int) -> bytes:
        if n > len(self.raw) - self.place:
            raise ValueError("it ends early")
        self.place += n
        return self.raw[self.place - n : self.place]

    def number(self, n: int = 8) -> int:
        return int.from_bytes(self.take(n), "little")

    def count(self, what: str) -> int:
        count = self.number()
        if count > _MOST:
            raise ValueError(f"{count} {what}, at most {_MOST}")
        return count

    def text(self) -> str:
        return self.take(self.number()).decode("utf-8")

    def value(self) -> str | int | None:
        """A text or an unsigned integer; what is neither is skipped."""
        kind = self.number(4)
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            kind = self.number(4)
            if kind in _BYTES:
                self.take(_BYTES[kind] * self.number())
            elif kind == _STRING:
                for _ in range(self.count("texts in a list")):
                    self.text()
            else:
                raise ValueError(f"a list of type {kind}")
            return None
        if kind not in _BYTES:
            raise ValueError(f"metadata of type {kind}")
        return self.number(_BYTES[kind])


def read_control_vector(raw: bytes) -> dict[int, Float32[np.ndarray, " d_model"]]:
    """Read each layer's direction, zero ones too.

    Raises:
        ValueError: the bytes are no control vector; names what is wrong.
    """
    file = _Bytes(raw)
    if file.take(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = file.number(4)
    if version not in (2, 3):
        raise ValueError(f"version {version}, expected 2 or 3 in little-endian")
    n_tensors, n_fields = file.count("tensors"), file.count("fields")
    fields = {file.text(): file.value() for _ in range(n_fields)}
    if fields.get("general.architecture") != "controlvector":
        architecture = fields.get("general.architecture")
        raise ValueError(f"general.architecture is {architecture!r}, expected 'controlvector'")
    places = [_read_place(file) for _ in range(n_tensors)]
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
        raise ValueError(f"general.alignment is {alignment!r}")
    start = -(-file.place // alignment) * alignment
    directions: dict[int, np.ndarray] = {}
    for layer, width, offset in places:
        if layer in directions:
            raise ValueError(f"direction.{layer} is there twice")
        file.place = start + offset
        directions[layer] = np.frombuffer(file.take(4 * width), "<f4")
        if not np.isfinite(directions[layer]).all():
            raise ValueError(f"direction.{layer} is not finite")
    widths = {len(direction) for direction in directions.values()}
    if len(widths) != 1:
        raise ValueError(f"its directions have widths {sorted(widths)}, expected one")
    return dict(sorted(directions.items()))


def _read_place(file: _Bytes) -> tuple[int, int, int]:
    """Layer, width and offset of one tensor."""
    name = file.text()
    match = re.fullmatch(r"direction\.([1-9][0-9]{0,4})", name)
    if match is None:
        raise ValueError(f"tensor {name!r}, expected direction.1, direction.2, …")
    shape = [file.number() for _ in range(min(file.number(4), 5))]
    kind, offset = file.number(4), file.number()
    if len(shape) != 1 or kind != _F32:
        raise ValueError(f"'{name}' has shape {shape[:4]} and type {kind}, expected [d] of float32")
    return int(match[1]), shape[0], offset


def import_gguf() -> Any:
    """Import the package gguf, or say how to install it."""
    try:
        import gguf
    except ImportError:
        raise ActcacheError(
            "the package 'gguf', which writes such files, is not installed. Install it with: pip "
            "install 'actcache[gguf]'"
        ) from None
    return gguf


def write_control_vector(
    path: Path,
    directions: Mapping[int, Float32[np.ndarray, " d_model"]],
    *,
    family: str,
    layer_count: int,
    description: str,
) -> None:
    """Write directions of layers from 1 on, with the package gguf.

    Args:
        path: the file; not atomic.
        directions: by layer.
        family: what Hugging Face calls the model's family, such as `llama`; readers show it.
        layer_count: layers of the model that may have a direction.
        description: where they come from.
    """
    gguf = import_gguf()
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", family)
    writer.add_uint32("controlvector.layer_count", layer_count)
    writer.add_string("general.description", description)
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(direction, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
