"""A cluster in simulated time: arrivals in, finished requests out. Pure, and the same for the same input.

    arrival ── admission ── router ── reserve at D ── queue at P ── steps ── KV to D ── steps at D ── finished
                               └────── queue at D ── steps ──────────────────┘

The router's admission, policy, index and pools and the workers' scheduler and block manager are those that
serve; engines and transfers are a profile. Routers hear of caches after every step, of loads once a second,
of each other ten times a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from baton.planner.arrival import Arrival
from baton.planner.decode_pool import DecodePool, Heard
from baton.planner.events import Events
from baton.planner.overlap_routing import OverlapRouting
from baton.planner.prefill_pool import INCARNATION, PrefillPool
from baton.planner.profile import EngineProfile
from baton.planner.requests import SimulatedRequest
from baton.planner.routing import BatonRouting, RoundRobin, Routing
from baton.scheduling.block_manager import BlockManager
from baton.types import BlockId, Fingerprint, PoolId, Role, WorkerInfo
from prefill_worker.scheduler import PrefillLimits
from router.routing.policy import PolicySettings

_REPORT_S = 1.0
_EXCHANGE_S = 0.1
_MIN_CHUNK_TOKENS = 256
_NO_LIMIT_S = 1e6
_LOCAL_STEP_S = 0.05  # of a prompt's chunk beside decoding requests


class Baseline(StrEnum):
    """Routers to compare with: each worker in turn, and the published rule of Dynamo's KV router. Their
    prefill workers serve first come, first served, in full steps, as those of the yardstick do."""

    ROUND_ROBIN = "round_robin"
    OVERLAP = "overlap"


@dataclass(frozen=True, slots=True)
class ClusterShape:
    """`num_blocks` of each worker. Requests go to routers in turn."""

    num_prefill: int
    num_decode: int
    num_blocks: int
    block_size: int
    profile: EngineProfile
    policy: PolicySettings | Baseline = Baseline.ROUND_ROBIN
    num_routers: int = 1


@dataclass(slots=True)
class Outcome:
    """`gaps`: inter-token latencies as (seconds, how many of them). `busy_s`: for which each prefill pool
    computed. `decode`: the decode pools."""

    requests: list[SimulatedRequest] = field(default_factory=list)
    gaps: list[tuple[float, int]] = field(default_factory=list)
    busy_s: dict[PoolId, float] = field(default_factory=dict)
    decode: list[PoolId] = field(default_factory=list)


def simulate(shape: ClusterShape, arrivals: Sequence[Arrival]) -> Outcome:
    """Runs until every request has finished, but for those that are refused."""
    return _Cluster(shape).run(arrivals)


class _Cluster:
    def __init__(self, shape: ClusterShape) -> None:
        self._shape = shape
        self._events = Events()
        self._outcome = Outcome()
        prefill_ids = [PoolId(f"prefill-{number}") for number in range(shape.num_prefill)]
        decode_ids = [PoolId(f"decode-{number}") for number in range(shape.num_decode)]
        self._prefill = {pool_id: self._prefill_pool(pool_id) for pool_id in prefill_ids}
        self._decode = {pool_id: self._decode_pool(pool_id) for pool_id in decode_ids}
        self._routers = self._make_routers(prefill_ids, decode_ids)
        self._reporting: set[PoolId] = set()
        self._exchanging = False
        for pool_id in (*prefill_ids, *decode_ids):
            self._report(pool_id)

    def run(self, arrivals: Sequence[Arrival]) -> Outcome:
        for index, arrival in enumerate(arrivals):
            request = SimulatedRequest(index, arrival)
            self._outcome.requests.append(request)
            self._events.at(arrival.at_s, partial(self._arrive, request))
        self._events.run()
        self._outcome.busy_s = {pool.id: pool.busy_s for pool in self._prefill.values()}
        self._outcome.decode = list(self._decode)
        return self._outcome

    # A request's way

    def _arrive(self, request: SimulatedRequest) -> None:
        if not self._fits(request.arrival):
            request.refused = True
            return
        self._router_of(request).arrive(request, self._events.now_s)

    def _fits(self, arrival: Arrival) -> bool:
        """Whether one pool holds all of it: a router refuses what is longer than its workers' context."""
        num_tokens = arrival.num_prompt_tokens + arrival.num_output_tokens
        return num_tokens <= self._shape.num_blocks * self._shape.block_size

    def _start(self, request: SimulatedRequest, prefill: PoolId | None, decode: PoolId) -> None:
        request.prefill, request.decode = prefill.worker_id if prefill else "", decode.worker_id
        self._exchange_soon()
        if prefill is None:
            self._decode[decode].compute(request)
        else:
            self._decode[decode].reserve(request)
        self._report_soon(decode)

    def _reserved(self, request: SimulatedRequest) -> None:
        pool_id = PoolId(request.prefill)
        self._prefill[pool_id].add(request)
        self._report_soon(pool_id)

    def _prefilled(self, request: SimulatedRequest) -> None:
        """Its KV follows; the router hears now, by the first token or as good as."""
        assert request.prefilled_s is not None
        assert request.started_s is not None
        router, profile, now_s = self._router_of(request), self._shape.profile, self._events.now_s
        router.note_computed(request, now_s)
        compute_s = request.prefilled_s - request.started_s
        num_here = request.num_decode_hits * self._shape.block_size
        exposed_s = profile.exposed_s(request.arrival.num_prompt_tokens - num_here, compute_s)
        join = partial(self._decode[PoolId(request.decode)].join, request)
        self._events.at(now_s + exposed_s, join) if exposed_s > 0 else join()

    def _computed_locally(self, request: SimulatedRequest) -> None:
        self._router_of(request).note_computed(request, self._events.now_s)

    def _finished(self, request: SimulatedRequest) -> None:
        self._router_of(request).note_finished(request, self._events.now_s)
        self._report_soon(PoolId(request.decode))
        self._exchange_soon()

    # What routers hear

    def _router_of(self, request: SimulatedRequest) -> Routing:
        return self._routers[request.index % len(self._routers)]

    def _changed(self, pool_id: PoolId, changes: Sequence[tuple[bool, BlockId]]) -> None:
        for router in self._routers:
            router.note_changes(pool_id, changes)

    def _report_soon(self, pool_id: PoolId) -> None:
        """A pool whose load does not change says nothing new."""
        if pool_id not in self._reporting:
            self._reporting.add(pool_id)
            next_s = (self._events.now_s // _REPORT_S + 1) * _REPORT_S
            self._events.at(next_s, partial(self._report, pool_id))

    def _report(self, pool_id: PoolId) -> None:
        self._reporting.discard(pool_id)
        load = (self._prefill.get(pool_id) or self._decode[pool_id]).load()
        for router in self._routers:
            router.note_load(load, self._events.now_s)
        if load.num_running_requests or load.num_waiting_requests:
            self._report_soon(pool_id)

    def _exchange_soon(self) -> None:
        if len(self._routers) > 1 and not self._exchanging:
            self._exchanging = True
            self._events.at(self._events.now_s + _EXCHANGE_S, self._exchange)

    def _exchange(self) -> None:
        self._exchanging = False
        replicas = [router for router in self._routers if isinstance(router, BatonRouting)]
        said = [router.pools.in_flight() for router in replicas]
        for number, router in enumerate(replicas):
            router.pools.note_elsewhere(said[:number] + said[number + 1 :])
        if any(said):
            self._exchange_soon()

    # What there is

    def _make_routers(self, prefill: list[PoolId], decode: list[PoolId]) -> list[Routing]:
        shape = self._shape
        if isinstance(shape.policy, Baseline):
            return [self._baseline(shape.policy, prefill, decode) for _ in range(shape.num_routers)]
        workers = [self._worker(pool_id, Role.PREFILL) for pool_id in prefill]
        workers += [self._worker(pool_id, Role.DECODE) for pool_id in decode]
        kv_bytes = shape.profile.kv_bytes_per_token
        routers = [
            BatonRouting(workers, shape.block_size, kv_bytes, shape.policy, self._start)
            for _ in range(shape.num_routers)
        ]
        for number, router in enumerate(routers):
            router.pools.note_replicas(number, len(routers))
        return [*routers]

    def _baseline(self, policy: Baseline, prefill: list[PoolId], decode: list[PoolId]) -> Routing:
        if policy is Baseline.ROUND_ROBIN:
            return RoundRobin(prefill, decode, self._start)
        return OverlapRouting(prefill, decode, self._shape.block_size, self._start)

    def _prefill_pool(self, pool_id: PoolId) -> PrefillPool:
        return PrefillPool(
            pool_id,
            BlockManager(self._shape.num_blocks, self._shape.block_size),
            self._prefill_limits(),
            self._shape.profile,
            self._events,
            self._prefilled,
            self._changed,
        )

    def _decode_pool(self, pool_id: PoolId) -> DecodePool:
        return DecodePool(
            pool_id,
            BlockManager(self._shape.num_blocks, self._shape.block_size),
            self._local_limits(),
            self._shape.profile,
            self._events,
            Heard(
                reserved=self._reserved,
                computed=self._computed_locally,
                finished=self._finished,
                changed=self._changed,
                gaps=lambda gap_s, num_gaps: self._outcome.gaps.append((gap_s, num_gaps)),
            ),
        )

    def _prefill_limits(self) -> PrefillLimits:
        cost = self._shape.profile.prefill
        most = cost.step_tokens
        if isinstance(self._shape.policy, Baseline):
            return PrefillLimits(_NO_LIMIT_S, most, most, in_order=True)
        return PrefillLimits(
            min_chunk_tokens=min(_MIN_CHUNK_TOKENS, most),
            max_chunk_tokens=cost.cheapest_step(most),
        )

    def _local_limits(self) -> PrefillLimits:
        most = self._shape.profile.prefill.step_tokens
        return PrefillLimits(_LOCAL_STEP_S, min(_MIN_CHUNK_TOKENS, most), most)

    def _worker(self, pool_id: PoolId, role: Role) -> WorkerInfo:
        shape = self._shape
        return WorkerInfo(
            worker_id=pool_id.worker_id,
            incarnation=INCARNATION,
            role=role,
            address="",
            model="model",
            fingerprint=Fingerprint("", shape.block_size, 1, "", shape.profile.num_layers, 1, 1),
            max_model_len=shape.num_blocks * shape.block_size,
            vocab_size=0,
            num_dp_ranks=1,
            num_total_blocks=shape.num_blocks,
            package_version="",
            transports=(),
            host_id="",
            pid=0,
        )
