"""KV events on the wire: msgpack records of block ids, by runs of one kind (docs/protocol.md)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import msgpack

from baton.types import BlockId

REMOVED, STORED = 0, 1


def encode(changes: Sequence[tuple[bool, BlockId]]) -> bytes:
    """Changes (stored, id) in order, neighbours of one kind together: [[kind, [id, ...]], ...]."""
    records = [
        [STORED if stored else REMOVED, [block_id for _, block_id in run]]
        for stored, run in groupby(changes, key=lambda change: change[0])
    ]
    packed: bytes = msgpack.packb(records)
    return packed


def encode_stored(block_ids: Sequence[BlockId]) -> bytes:
    """As `encode` of ids that were all stored; none at all where there are none."""
    packed: bytes = msgpack.packb([[STORED, list(block_ids)]] if block_ids else [])
    return packed


def decode(records: bytes) -> list[tuple[int, list[BlockId]]]:
    """The inverse of `encode`, by runs: (REMOVED or STORED, ids). Raises ValueError."""
    runs = msgpack.unpackb(records)
    if not isinstance(runs, list):
        raise ValueError(f"must be a list of runs, is {type(runs).__name__}")
    for run in runs:
        match run:
            case [0 | 1, [*ids]] if all(type(block_id) is bytes for block_id in ids):
                pass
            case _:
                raise ValueError("a run must be 0 or 1, and block ids")
    return [(kind, ids) for kind, ids in runs]
