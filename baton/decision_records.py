"""What a router heard and decided, line by line, so that it can be decided again (docs/protocol.md).

The first line names the format. Every other one is a JSON array: the time in seconds on the router's clock,
the name of what happened, and its arguments. Block ids are in hex; what workers said is base64 of protobuf.

    put WORKER DRAINING · report LOAD · remove WORKER_ID · replicas NUMBER COUNT
    elsewhere POOL REQUESTS TOKENS (one for each pool of each router) · elsewhere_end
    store POOL [ids] · forget POOL [ids] · drop POOL
    route MODEL WEIGHTS TOKENS [ids] BLOCK_SIZE KV_BYTES_PER_TOKEN {pool: bytes/s} [pools that take
          nothing] DECODE PREFILL            the pair; null for none
    apart DECODE PREFILL INCARNATION UNTIL     the two are not paired; null: never again
    reroute NUMBER TOKENS {pool: bytes/s} [pools that take nothing] PREFILL
    commit NUMBER (of the last choice) · computed NUMBER · end NUMBER OUTPUT_TOKENS
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from typing import Any

from baton import convert
from baton.types import BlockId, PoolId, PoolLoad, WorkerInfo
from baton.v1 import common_pb2

HEADER = json.dumps({"baton_record": 2})


def line(at_s: float, name: str, *arguments: Any) -> str:
    return json.dumps([at_s, name, *arguments], separators=(",", ":"))


def pool(pool_id: PoolId) -> str:
    return f"{pool_id.worker_id}/{pool_id.dp_rank}"


def pool_from(text: str) -> PoolId:
    worker_id, _, dp_rank = text.rpartition("/")
    return PoolId(worker_id, int(dp_rank))


def ids(block_ids: Iterable[BlockId]) -> list[str]:
    return [block_id.hex() for block_id in block_ids]


def ids_from(texts: Sequence[str]) -> list[BlockId]:
    return [BlockId(bytes.fromhex(text)) for text in texts]


def worker(info: WorkerInfo) -> str:
    return _packed(convert.worker_info_to_proto(info).SerializeToString())


def worker_from(text: str) -> WorkerInfo:
    message = common_pb2.WorkerInfo.FromString(base64.b64decode(text))
    return convert.worker_info_from_proto(message)


def load(pool_load: PoolLoad) -> str:
    return _packed(convert.pool_load_to_proto(pool_load).SerializeToString())


def load_from(text: str) -> PoolLoad:
    message = common_pb2.PoolLoad.FromString(base64.b64decode(text))
    return convert.pool_load_from_proto(message)


def _packed(message: bytes) -> str:
    return base64.b64encode(message).decode("ascii")
