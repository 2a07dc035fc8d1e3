"""The bytes of a shard file and of bfloat16 values, one value at a time."""

import struct

import google_crc32c
import numpy as np


def shard_file(values, shard, shard_rows):
    """The bytes of one shard's file: blocks layer by layer, the index, its checksum."""
    n, n_layers, width = values.shape
    blocks = []
    for layer in range(n_layers):
        block = b""
        for row in range(shard * shard_rows, (shard + 1) * shard_rows):
            for column in range(width):
                value = values[row, layer, column] if row < n else values.dtype.type(0)
                block += value.tobytes()
        blocks.append(block)
    index = b""
    for layer in range(n_layers):
        index += struct.pack("<QQ", sum(len(block) for block in blocks[:layer]), len(blocks[layer]))
    return b"".join(blocks) + index + struct.pack("<I", google_crc32c.value(index))


def float32_of_bits(bits):
    """bfloat16 values from their bits: the upper half of a float32."""
    values = np.empty(bits.shape, np.float32)
    for at, pattern in np.ndenumerate(bits):
        values[at] = np.frombuffer(b"\0\0" + int(pattern).to_bytes(2, "little"), "<f4")[0]
    return values
