"""msgpack of what two sides tell each other about a pool. What comes in is checked field by field."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgpack

from baton.errors import BatonError, IncompatiblePeer
from kv_transfer.layout import PoolLayout


def pack(fields: dict[str, Any]) -> bytes:
    return bytes(msgpack.packb(fields))


def unpack(data: bytes, **kinds: type) -> dict[str, Any]:
    """A map that has at least the fields `kinds`, each of its type; IncompatiblePeer otherwise."""
    try:
        fields = msgpack.unpackb(data)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise IncompatiblePeer(f"is not msgpack: {error}", field="endpoint") from error
    if not isinstance(fields, dict):
        raise IncompatiblePeer(f"is no map but {type(fields).__name__}", field="endpoint")
    for name, kind in kinds.items():
        if type(fields.get(name)) is not kind:
            raise IncompatiblePeer(f"is {fields.get(name)!r}, no {kind.__name__}", field=name)
    return fields


def pack_layout(layout: PoolLayout) -> dict[str, int | str]:
    return asdict(layout)


def unpack_layout(fields: dict[str, Any]) -> PoolLayout:
    try:
        return PoolLayout(**fields)
    except (TypeError, BatonError) as error:
        raise IncompatiblePeer(f"describes no pool: {error}", field="layout") from error
