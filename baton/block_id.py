"""The identity of a KV block: BLAKE2b-128, keyed by a salt, of (parent's id, token ids).

The same id serves prefix caches, KV events, the router's index and trace replay. The salt separates
what must never share KV: model identity, adapter, tenant. Source: RFC 7693.
"""

from __future__ import annotations

import hmac
from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b

from baton.types import BlockId

MAX_SALT_BYTES = blake2b.MAX_KEY_SIZE
ROOT = BlockId(bytes(16))  # the parent of a request's first block


def salt(identity: str, *, adapter: str = "", tenant: str = "", secret: bytes = b"baton") -> bytes:
    """32 bytes that key every block id of one (model identity, adapter, tenant)."""
    parts = b"\x00".join(part.encode() for part in (identity, adapter, tenant))
    return hmac.new(secret, parts, "sha256").digest()


def child(parent: BlockId, token_ids: Sequence[int], salt: bytes) -> BlockId:
    """The id of the block that holds `token_ids` (a full block's) after `parent`."""
    digest = blake2b(parent, digest_size=16, key=salt)
    digest.update(array("I", token_ids).tobytes())
    return BlockId(digest.digest())


def chain(
    token_ids: Sequence[int], block_size: int, salt: bytes, *, parent: BlockId = ROOT
) -> Iterable[BlockId]:
    """The ids of the full blocks of `token_ids`, which starts where `parent` ended."""
    packed = memoryview(array("I", token_ids).tobytes())
    stride = block_size * 4
    for start in range(0, len(packed) - stride + 1, stride):
        digest = blake2b(parent, digest_size=16, key=salt)
        digest.update(packed[start : start + stride])
        parent = BlockId(digest.digest())
        yield parent
