"""What the routers of a cluster tell each other through the cluster state, several times a second: their
work in flight, so that they do not all choose the worker that looks idle; who is at their doors, so that
together they let in no more than one would; and what tenants have spent.

It knows no store. What another router said is put in place of what it said before.
"""

from __future__ import annotations

import asyncio
import time

from baton.state.base import ClusterState, RouterReport
from router.gate import Gate
from router.routing.pools import Pools

_INTERVAL_S = 0.1


class Exchange:
    def __init__(self, state: ClusterState, router_id: str, pools: Pools, gate: Gate) -> None:
        self._state = state
        self._router_id = router_id
        self._pools = pools
        self._gate = gate

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._once()
            await asyncio.sleep(_INTERVAL_S)

    async def _once(self) -> None:
        quotas = self._gate.quotas
        own = RouterReport(
            self._router_id, self._pools.in_flight(), quotas.spent, self._gate.crowds()
        )
        others = await self._state.exchange(own)
        self._pools.note_elsewhere(other.in_flight for other in others)
        replicas = sorted((self._router_id, *(other.router_id for other in others)))
        self._pools.note_replicas(replicas.index(self._router_id), len(replicas))
        self._gate.note_elsewhere([other.crowds for other in others])
        now_s = time.monotonic()
        for other in others:
            quotas.note_spent(other.router_id, other.spent_tokens, now_s)
        quotas.forget_routers({other.router_id for other in others})
