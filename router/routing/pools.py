"""What the router knows of every pool: who serves it, how loaded it is, what this router has in flight.

Pure: reports and the router's own decisions go in, candidates come out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from baton.prefill_cost import PrefillCost
from baton.state.base import InFlight
from baton.types import PoolId, PoolLoad, Role, Weights, WorkerInfo
from router.routing.load_order import LoadOrder
from router.routing.prefill_queue import PrefillQueue, Queued

_NOTHING = InFlight()
_STEP_S = 0.02  # about a decode step's
_ENOUGH = 24  # prompts by which a worker has learned what they cost
_BELIEVED_S = 30.0  # for which that is taken for true after the last one
_FULL = 1e-6  # seconds that a full cache counts for: less than anything else


Instance = tuple[PoolId, int]  # a pool in one incarnation of its worker


@dataclass(slots=True, eq=False)
class Pool:
    """One pool of one incarnation of a worker. What is in flight counts what this router has sent and
    not yet seen the end of; it leads the worker's own reports by a heartbeat. `queue`: the prompts that
    this router has asked the pool to compute and that are not computed yet."""

    id: PoolId
    worker: WorkerInfo
    draining: bool = False
    load: PoolLoad | None = None  # as the worker reported last, see `note_load`
    cost: PrefillCost | None = None  # what prompts cost here; None until measured
    thousand_s: float = 0.0  # a prompt of a thousand tokens, by which speeds are compared
    num_computed: int = 0  # prompts that this router gave it
    believed_until_s: float = 0.0  # its own cost counts, see `router.routing.measured`
    step_s: float = 0.0  # a decode step's time; 0 until measured
    num_in_flight: int = 0
    queue: PrefillQueue = field(default_factory=PrefillQueue)
    elsewhere: InFlight = _NOTHING  # what the other routers said last that they have here
    elsewhere_s: float = 0.0  # their prompts, as time
    is_others: bool = False  # another router turns here first, see `Pools.note_replicas`
    transfer_bytes_per_s: float = 0.0  # into this pool; 0 until measured
    place: Place | None = None  # among its peers, by load
    num_layers: int = 1  # of the model: KV leaves layer by layer
    kept_apart_until_s: dict[Instance, float] = field(default_factory=dict)  # from prefill pools

    def __post_init__(self) -> None:
        self.num_layers = max(1, self.worker.fingerprint.num_layers)

    @property
    def instance(self) -> Instance:
        return self.id, self.worker.incarnation

    def is_kept_from(self, prefill: Pool, now_s: float) -> bool:
        """Whether this decode pool is to get nothing from `prefill`, see `Pools.keep_apart`."""
        return now_s < self.kept_apart_until_s.get(prefill.instance, 0.0)

    @property
    def num_streams(self) -> int:
        """Requests that all routers have in flight here."""
        return self.num_in_flight + self.elsewhere.num_requests

    @property
    def next_step_s(self) -> float:
        """A decode step's predicted time with one stream more than all that are in flight here."""
        if self.load is None:
            return 0.0
        num_more = self.num_streams + 1 - self.load.num_running_requests
        return self.step_s + self.load.decode_stream_s * max(0, num_more)

    def begin(self) -> None:
        """A request is in flight here from now on."""
        self.num_in_flight += 1
        self._moved()

    def end(self) -> None:
        self.num_in_flight -= 1
        self._moved()

    def enqueue(self, num_tokens: int, work_s: float, now_s: float) -> Queued:
        """Counts a prompt as to be computed here, until `dequeue`."""
        queued = self.queue.add(num_tokens, work_s, now_s)
        self._moved()
        return queued

    def dequeue(self, queued: Queued, now_s: float) -> None:
        """It is computed, or will not be."""
        self.queue.remove(queued, now_s)
        self.num_computed += 1
        if self.has_learned:
            self.believed_until_s = now_s + _BELIEVED_S
        self._moved()

    @property
    def has_learned(self) -> bool:
        """Whether its measurements are of more than one moment."""
        return self.num_computed >= _ENOUGH

    def note_load(self, load: PoolLoad) -> None:
        """Takes the worker's own report, and works out what every request asks for."""
        self.load, self.step_s = load, load.decode_step_s
        self.cost = load.prefill_cost
        if self.cost is not None:
            self.queue.step_s = self.cost.step_s(self.cost.step_tokens)
        elif load.prefill_tokens_per_s:
            self.cost = PrefillCost.at_rate(load.prefill_tokens_per_s)
        self.thousand_s = self.cost.prompt_s(1000) if self.cost else 0.0
        self._weigh_elsewhere()
        self._moved()

    def note_elsewhere(self, work: InFlight) -> None:
        if work != self.elsewhere:
            self.elsewhere = work
            self._weigh_elsewhere()
            self._moved()

    def _weigh_elsewhere(self) -> None:
        num_tokens = self.elsewhere.num_queued_tokens
        self.elsewhere_s = self.cost.prompt_s(num_tokens) if num_tokens and self.cost else 0.0

    def _load(self) -> float:
        """By which peers are compared: of prefill pools when they would have computed one prompt more,
        of decode pools what all their streams and one more wait for a token together. Among equals
        the emptier cache comes first."""
        if self.worker.role is Role.DECODE:
            load = _STEP_S * (self.num_streams + 1)
        else:
            own_s = self.thousand_s if self.has_learned else 0.0
            load = self.queue.ends_s() + self.elsewhere_s + own_s
        return load + _FULL * (1.0 - self.num_unused_blocks / max(1, self.worker.num_total_blocks))

    @property
    def num_unused_blocks(self) -> int:
        """Blocks without content."""
        return self.load.num_free_blocks if self.load else self.worker.num_total_blocks

    def _moved(self) -> None:
        if self.place is not None:
            self.place.order.move(self.place.number, self._load())

    def join(self, order: LoadOrder[Pool]) -> None:
        """Takes its place among its peers."""
        self.place = Place(order, order.add(self, self._load()))

    def leave(self) -> None:
        if self.place is not None:
            self.place.order.remove(self.place.number)
            self.place = None

    def note_transfer(self, num_bytes: int, transfer_s: float) -> None:
        """Learns how fast KV arrives here."""
        if num_bytes and transfer_s > 0:
            rate, weight = num_bytes / transfer_s, 0.2
            known = self.transfer_bytes_per_s or rate
            self.transfer_bytes_per_s = known + weight * (rate - known)


@dataclass(frozen=True, slots=True)
class Place:
    order: LoadOrder[Pool]
    number: int


@dataclass(slots=True)
class Pools:
    """All pools of all live workers."""

    _by_id: dict[PoolId, Pool] = field(default_factory=dict)
    _peers: dict[tuple[Role, Weights], LoadOrder[Pool]] = field(default_factory=dict)
    _replica: tuple[int, int] = (0, 1)
    _is_shared_out: bool = True
    version: int = 0  # grows whenever a worker comes, goes or describes itself anew

    def put(self, worker: WorkerInfo, *, draining: bool = False) -> None:
        """Adds a worker's pools, or replaces those of an earlier incarnation."""
        for dp_rank in range(worker.num_dp_ranks):
            pool_id = PoolId(worker.worker_id, dp_rank)
            known = self._by_id.get(pool_id)
            if known is None or known.worker != worker:
                self.version += 1
            if known is None or known.worker.incarnation != worker.incarnation:
                if known is not None:
                    known.leave()
                pool = self._by_id[pool_id] = Pool(pool_id, worker, draining=draining)
                pool.join(self.by_load(worker.role, worker.weights))
                self._is_shared_out = False
            else:
                known.worker, known.draining = worker, draining

    def report(self, load: PoolLoad) -> None:
        pool = self._by_id.get(load.pool)
        if pool is not None and pool.worker.incarnation == load.incarnation:
            pool.note_load(load)

    def remove(self, worker_id: str) -> None:
        for pool_id in [pool_id for pool_id in self._by_id if pool_id.worker_id == worker_id]:
            self._by_id.pop(pool_id).leave()
            self.version += 1

    def keep_apart(self, decode: PoolId, prefill: Instance, until_s: float) -> None:
        """A hand-off between the two has failed: it is not tried again before `until_s`."""
        if pool := self._by_id.get(decode):
            pool.kept_apart_until_s[prefill] = until_s

    def in_flight(self) -> dict[PoolId, InFlight]:
        """What this router has in flight, of pools that have something."""
        return {
            pool.id: InFlight(pool.num_in_flight, pool.queue.num_tokens)
            for pool in self
            if pool.num_in_flight or pool.queue.num_tokens
        }

    def note_elsewhere(self, reports: Iterable[Mapping[PoolId, InFlight]]) -> None:
        """What all other routers have in flight, in place of what they said before."""
        totals: dict[PoolId, InFlight] = {}
        for report in reports:
            for pool_id, work in report.items():
                known = totals.get(pool_id, _NOTHING)
                totals[pool_id] = InFlight(
                    known.num_requests + work.num_requests,
                    known.num_queued_tokens + work.num_queued_tokens,
                )
        for pool in self:
            pool.note_elsewhere(totals.get(pool.id, _NOTHING))

    def note_replicas(self, number: int, num_replicas: int) -> None:
        """This router is the `number`-th of so many. What the others have just sent it does not know
        yet; so each turns to pools of its own first, as long as all else is about equal. Those that came
        since this was said last are nobody's until it is said again."""
        if self._replica != (number, num_replicas) or not self._is_shared_out:
            self._replica = number, num_replicas
            self._share_out()

    def _share_out(self) -> None:
        self._is_shared_out = True
        number, num_replicas = self._replica
        for role in Role:
            peers = sorted(pool.id for pool in self if pool.worker.role is role)
            for index, pool_id in enumerate(peers):
                self._by_id[pool_id].is_others = index % num_replicas != number

    def get(self, pool_id: PoolId) -> Pool | None:
        return self._by_id.get(pool_id)

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._by_id.values())

    def by_load(self, role: Role, weights: Weights) -> LoadOrder[Pool]:
        """All pools of these weights in `role`, least loaded first; some may be draining."""
        return self._peers.setdefault((role, weights), LoadOrder())

    def of(self, role: Role, model: str) -> Collection[Pool]:
        """All pools of `model` in `role`, whatever their weights, also those that drain."""
        orders = [
            order
            for (each, weights), order in self._peers.items()
            if (each, weights.model) == (role, model)
        ]
        return [pool for order in orders for pool in order.items()]

    def workers(self, model: str) -> list[WorkerInfo]:
        """Of `model`, in any role."""
        pools = (pool for role in Role for pool in self.of(role, model))
        return list({pool.worker.worker_id: pool.worker for pool in pools}.values())

    def serving(self, role: Role, model: str) -> list[Pool]:
        """The pools that take new requests of `model` in `role`."""
        return [pool for pool in self.of(role, model) if not pool.draining]

    def models(self) -> list[str]:
        """Of the workers that are there, in the order in which they were first heard of."""
        return list(dict.fromkeys(each.model for (_, each), pools in self._peers.items() if pools))
