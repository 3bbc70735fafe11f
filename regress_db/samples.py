"""How the samples of one phase are packed into one blob.

float32 (seven digits: a nanosecond in ten milliseconds), ranks after one another, bytes transposed so that exponents
lie together, then zlib. Round trip is exact to float32. Pure; used by `regress_db.ingest` and `regress_db.details`.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Sequence

_HEADER = struct.Struct("<BII")
_FORMAT = 1
_WIDTH = 4


def pack(samples_us: Sequence[Sequence[float]]) -> bytes:
    """The blob of [ranks][iterations] samples; every rank must have equally many. `ValueError` where not."""
    ranks = len(samples_us)
    iterations = len(samples_us[0]) if ranks else 0
    if any(len(of_rank) != iterations for of_rank in samples_us):
        raise ValueError("ranks have different numbers of samples")
    raw = struct.pack(f"<{ranks * iterations}f", *(sample for of_rank in samples_us for sample in of_rank))
    planes = b"".join(raw[byte::_WIDTH] for byte in range(_WIDTH))
    return _HEADER.pack(_FORMAT, ranks, iterations) + zlib.compress(planes, 9)


def unpack(packed: bytes) -> list[list[float]]:
    """The [ranks][iterations] samples, in µs, of a blob that `pack` made. `ValueError` for anything else."""
    try:
        version, ranks, iterations = _HEADER.unpack_from(packed)
        planes = zlib.decompress(packed[_HEADER.size :])
    except (struct.error, zlib.error) as error:
        raise ValueError(f"not packed samples: {error}") from None
    count = ranks * iterations
    if version != _FORMAT or len(planes) != count * _WIDTH:
        raise ValueError("not packed samples: the header does not fit the content")
    raw = bytearray(len(planes))
    for byte in range(_WIDTH):
        raw[byte::_WIDTH] = planes[byte * count : (byte + 1) * count]
    flat = array("f", struct.unpack(f"<{count}f", raw)).tolist()
    return [flat[rank * iterations : (rank + 1) * iterations] for rank in range(ranks)]
