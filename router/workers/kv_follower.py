"""Keeps the index equal to a pool's cache: a snapshot, then numbered deltas; a gap, or records that cannot
be understood, ask for a new one."""

from __future__ import annotations

import asyncio
import logging
from typing import TypeAlias

import grpc

from baton import convert, kv_records
from baton.types import PoolId
from baton.v1 import worker_pb2, worker_pb2_grpc
from router.routing.index import BlockIndex

log = logging.getLogger(__name__)

Batches: TypeAlias = (
    "grpc.aio.UnaryStreamCall[worker_pb2.StreamKvEventsRequest, worker_pb2.KvEventBatch]"
)

_AGAIN_S = 0.2


class KvFollower:
    """Follows one pool; `connected` while its events are heard, which is how the death of a worker that
    has no other stream to this router is seen."""

    def __init__(self, pool: PoolId, channel: grpc.aio.Channel, index: BlockIndex) -> None:
        self.connected = False
        self._pool = pool
        self._stub = worker_pb2_grpc.WorkerStub(channel)
        self._index = index

    async def run(self) -> None:
        """Until cancelled. The pool's entries leave the index whenever it is not followed."""
        try:
            while True:
                try:
                    request = worker_pb2.StreamKvEventsRequest(
                        pool=convert.pool_to_proto(self._pool)
                    )
                    await self._apply(self._stub.StreamKvEvents(request))
                    reason = "a gap in its numbers"
                except grpc.aio.AioRpcError as error:
                    reason = error.details() or error.code().name
                except ValueError as error:
                    log.warning("KV events of %s cannot be understood: %s", self._pool, error)
                    reason = "records that cannot be understood"
                self.connected = False
                self._index.drop(self._pool)
                log.info("KV events of %s begin anew: %s", self._pool, reason)
                await asyncio.sleep(_AGAIN_S)
        finally:
            self.connected = False
            self._index.drop(self._pool)

    async def _apply(self, batches: Batches) -> None:
        """Applies batches in order; returns at the first gap."""
        next_number = None
        async for batch in batches:
            if batch.snapshot:
                self._index.drop(self._pool)
                self.connected = True
            elif batch.first_number != next_number:
                batches.cancel()
                return
            for kind, block_ids in kv_records.decode(batch.records):
                if kind == kv_records.STORED:
                    self._index.store(self._pool, block_ids)
                else:
                    self._index.remove(self._pool, block_ids)
            next_number = batch.first_number + batch.count
