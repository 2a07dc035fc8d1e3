"""A safetensors file whose bytes depend on its contents alone."""

import json
from collections.abc import Mapping

import numpy as np


def safetensors_bytes(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """Encode arrays and metadata; the same contents give the same bytes.

    The library writes metadata in the order of a hash map that is seeded anew in each process.
    """
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    encoded = save(contiguous, metadata=dict(metadata) or None)
    end = 8 + int.from_bytes(encoded[:8], "little")
    header = json.loads(encoded[8:end])
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # as the format asks, so that the data are aligned
    return len(text).to_bytes(8, "little") + text + encoded[end:]
