"""Which decode pool serves a request, and who computes its prompt. Pure: what is known of the pools goes
in, the choice and the predictions behind it come out.

Every pair is judged by its predicted time to first token, as its parts:

    local    D's queue + the tokens D lacks at D's cost
    remote   P's queue + the tokens P lacks at P's cost + the hand-off and the part of the transfer of
             what D lacks that is not hidden behind that prefill
    lent     the same, but P takes what D has and it lacks from D, while it waits for its turn

and by what it costs others, which is added to its cost but not to its predicted time: the prompts it passes
in P's queue wait longer, D steps slower with every stream, and a local prefill takes its time from all that
D decodes. So a long prompt goes to a prefill worker, a short suffix of a long conversation stays where its
KV is, short prompts keep out of the way of long ones, and whoever is overloaded is passed over. A prefix
that many ask for is computed again elsewhere as soon as waiting for its holder costs more than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from baton.types import PoolId, PrefillChoice
from router.routing.measured import Measured
from router.routing.pools import Pool

_NUM_LENT = 3  # prefill pools that are judged as borrowers of a decode pool


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """`hand_off_s`: what a hand-off costs beside moving bytes. `transfer_bytes_per_s`: until hand-offs
    were measured. `interference`: cost of a second of a long local prefill (half of it for one of
    `interference_ramp_s`), and of that per running stream.
    `detour`: what a second of prefill costs more on a pool to which another router turns first.
    `itl_target_s`: pools that are predicted to step slower with this request are passed over while others
    are there; 0 is none.
    `local_prefill`: whether decode workers compute prompts while a prefill worker is up. `lend`: whether
    they give prefill workers the prefixes that they have."""

    hand_off_s: float = 0.012
    transfer_bytes_per_s: float = 1e9
    interference: float = 0.25
    interference_per_stream: float = 0.1
    interference_ramp_s: float = 0.2
    detour: float = 0.15
    itl_target_s: float = 0.0
    local_prefill: bool = True
    lend: bool = True


@dataclass(frozen=True, slots=True)
class Demand:
    """A request as routing sees it. `hits`: the leading tokens of its prompt that a pool has cached."""

    num_tokens: int
    hits: Mapping[PoolId, int]
    kv_bytes_per_token: float = 0.0


class Way(NamedTuple):
    """What one way to compute a prompt and get it to its decode pool is predicted to take, in seconds:
    the parts of its time to first token, and what it costs others."""

    wait_s: float
    compute_s: float
    transfer_s: float  # what of it is not hidden behind the prefill, and the hand-off
    others_s: float

    @property
    def ttft_s(self) -> float:
        return self.wait_s + self.compute_s + self.transfer_s

    @property
    def cost_s(self) -> float:
        return self.wait_s + self.compute_s + self.transfer_s + self.others_s


@dataclass(frozen=True, slots=True)
class Choice:
    """`prefill` None: on the decode worker itself. The ways are those to the chosen decode pool; the
    remote one is None where no prefill pool is up. `num_missing`: those of `num_tokens` to be computed.
    `num_streams`, `step_s`: what the decode pool had in flight then, and its step with one more."""

    decode: Pool
    prefill: Pool | None
    num_tokens: int
    num_missing: int
    local: Way
    remote: Way | None
    lends: bool = False
    num_streams: int = 0
    step_s: float = 0.0

    @property
    def way(self) -> Way:
        """The one that was chosen."""
        return self.local if self.prefill is None or self.remote is None else self.remote

    @property
    def local_ttft_s(self) -> float:
        return self.local.ttft_s

    @property
    def remote_ttft_s(self) -> float | None:
        return self.remote.ttft_s if self.remote else None

    @property
    def computing(self) -> Pool:
        """The pool that computes the prompt."""
        return self.prefill or self.decode

    def prefill_choice(self) -> PrefillChoice | None:
        """As the decode worker is told."""
        if self.prefill is None:
            return None
        worker = self.prefill.worker
        return PrefillChoice(self.prefill.id, worker.incarnation, worker.address, self.lends)


class _Leg(NamedTuple):
    """A pool that could compute the prompt: what holds whoever decodes. `lends`: it is given what the decode
    pool has."""

    pool: Pool
    num_missing: int
    wait_s: float
    compute_s: float
    harm_s: float
    cost_s: float
    lends: bool = False

    def exposed_s(self, transfer_s: float) -> float:
        """Layer by layer: all but the last layer's part leaves while the next one is computed."""
        hidden_s = transfer_s - transfer_s / self.pool.num_layers
        return transfer_s - (hidden_s if hidden_s < self.compute_s else self.compute_s)


class _Seat(NamedTuple):
    """A decode pool, and its best way. `leg`: the best that would compute the prompt elsewhere, None where
    there is none, and `exposed_s` what its transfer adds; `stays` where the pool itself is better."""

    rank: tuple[bool, float, int]  # too slow, the cost, and the emptier cache among equals
    decode: Pool
    own: _Leg
    leg: _Leg | None
    exposed_s: float
    stays: bool


def choose(
    demand: Demand,
    decode_pools: Sequence[Pool],
    prefill_pools: Sequence[Pool],
    settings: PolicySettings,
    now_s: float = 0.0,
    long_s: float = inf,
) -> Choice | None:
    """The pair of the least cost among those within the ITL target; None where no decode pool is up.
    `long_s`: what a long prompt takes, as prompts have been of late.

    Ties go to the pool with the emptier cache, not to the lowest number: otherwise one worker's cache
    fills while its neighbour's stays empty.
    """
    measured = Measured((*decode_pools, *prefill_pools), now_s)
    judge = _Judge(demand, settings, measured, now_s, long_s)
    judge.prepare(prefill_pools)
    best: _Seat | None = None
    for pool in decode_pools:
        best = judge.better(pool, best)
    return judge.choice(best) if best else None


class _Judge:
    """Of one request: what its ways cost."""

    def __init__(
        self,
        demand: Demand,
        settings: PolicySettings,
        measured: Measured,
        now_s: float,
        long_s: float,
    ) -> None:
        self._demand = demand
        self._settings = settings
        self._measured = measured
        self._long_s = long_s
        self._now_s = now_s
        self._legs: list[_Leg] = []  # by their own cost, so that the first few decide
        self._borrowers: list[_Leg] = []  # those with least to do
        self._most_compute_s = 0.0
        self._most_missing = 0  # of the borrowers

    def prepare(self, prefill_pools: Sequence[Pool]) -> None:
        """What holds for all decode pools."""
        if not prefill_pools:
            return
        legs = [self._leg(pool, self._num_missing(pool)) for pool in prefill_pools]
        legs.sort(key=lambda leg: (leg.cost_s, -leg.pool.num_unused_blocks))
        self._legs = legs
        self._most_compute_s = max([leg.compute_s for leg in legs])
        if self._settings.lend:
            self._borrowers = sorted(legs, key=lambda leg: leg.wait_s)[:_NUM_LENT]
            self._most_missing = max([leg.num_missing for leg in self._borrowers])

    def better(self, decode: Pool, best: _Seat | None) -> _Seat:
        """`best`, or the best way that `decode` has, where that is better."""
        settings = self._settings
        own = self._leg(decode, self._num_missing(decode))
        local_s = own.cost_s + self._disturbance_s(own)
        limit_s = local_s if settings.local_prefill else inf
        leg, exposed_s, remote_s = self._best_leg(decode, own.num_missing, limit_s)
        stays = leg is None or limit_s < remote_s
        target_s = settings.itl_target_s
        is_slow = target_s > 0.0 and decode.next_step_s > target_s
        cost_s = (local_s if stays else remote_s) + self._crowding_s(decode)
        rank = is_slow, cost_s, -decode.num_unused_blocks
        if best is not None and best.rank <= rank:
            return best
        return _Seat(rank, decode, own, leg, exposed_s, stays)

    def _best_leg(
        self, decode: Pool, num_missing: int, limit_s: float
    ) -> tuple[_Leg | None, float, float]:
        """With what its transfer adds to it, and what the way costs in all. What is lent is judged only
        where it could be better than `limit_s`."""
        best, exposed_s, best_s = None, 0.0, inf
        apart = decode.kept_apart_until_s
        transfer_s, hand_off_s = self._transfer_s(num_missing, decode), self._settings.hand_off_s
        least_exposed_s = transfer_s - self._most_compute_s
        for leg in self._legs:
            if leg.cost_s + least_exposed_s >= best_s:
                break
            if apart and decode.is_kept_from(leg.pool, self._now_s):
                continue
            late_s = leg.exposed_s(transfer_s)
            if leg.cost_s + late_s < best_s:
                best, exposed_s, best_s = leg, late_s, leg.cost_s + late_s
        if num_missing < self._most_missing:
            for leg in self._borrowers:
                lend_s = self._transfer_s(leg.num_missing - num_missing, leg.pool) + hand_off_s
                least_s = lend_s + max(self._measured.compute_s(leg.pool, num_missing), transfer_s)
                if lend_s <= hand_off_s or least_s >= min(best_s, limit_s - hand_off_s):
                    continue
                if apart and decode.is_kept_from(leg.pool, self._now_s):
                    continue
                given = self._leg(leg.pool, num_missing, lend_s=lend_s)
                late_s = given.exposed_s(transfer_s)
                if given.cost_s + late_s < best_s:
                    best, exposed_s, best_s = given, late_s, given.cost_s + late_s
        return best, exposed_s, best_s + hand_off_s

    def _leg(self, pool: Pool, num_missing: int, *, lend_s: float = 0.0) -> _Leg:
        """`lend_s`: what it takes to be given the rest by the decode pool, while the prompt waits."""
        settings = self._settings
        compute_s = self._measured.compute_s(pool, num_missing)
        wait_s = harm_s = 0.0
        if pool.queue.num_tokens:
            wait_s, harm_s = pool.queue.quote(compute_s, self._now_s, self._long_s)
        wait_s = max(wait_s + pool.elsewhere_s, lend_s)
        if pool.is_others:
            harm_s += settings.detour * compute_s
        cost_s = wait_s + compute_s + harm_s
        return _Leg(pool, num_missing, wait_s, compute_s, harm_s, cost_s, lend_s > 0.0)

    def _num_missing(self, pool: Pool) -> int:
        """At least the last token is always computed: its logits are needed."""
        return max(1, self._demand.num_tokens - self._demand.hits.get(pool.id, 0))

    def choice(self, seat: _Seat) -> Choice:
        decode, own, leg = seat.decode, seat.own, seat.leg
        crowding_s = self._crowding_s(decode)
        others_s = own.harm_s + self._disturbance_s(own) + crowding_s
        local, remote = Way(own.wait_s, own.compute_s, 0.0, others_s), None
        if leg is not None:
            moved_s = seat.exposed_s + self._settings.hand_off_s
            remote = Way(leg.wait_s, leg.compute_s, moved_s, leg.harm_s + crowding_s)
        chosen = own if seat.stays or leg is None else leg
        return Choice(
            decode,
            None if chosen is own else chosen.pool,
            self._demand.num_tokens,
            chosen.num_missing,
            local,
            remote,
            chosen.lends,
            decode.num_streams,
            decode.next_step_s,
        )

    def _transfer_s(self, num_tokens: int, to: Pool) -> float:
        rate = to.transfer_bytes_per_s or self._settings.transfer_bytes_per_s
        return num_tokens * self._demand.kv_bytes_per_token / rate

    def _disturbance_s(self, own: _Leg) -> float:
        """What a prompt costs those who decode where it is computed."""
        # Streams that run are disturbed from the start; who else, comes while it lasts.
        settings = self._settings
        coming = own.compute_s / (own.compute_s + settings.interference_ramp_s)
        share = settings.interference * coming
        share += settings.interference_per_stream * own.pool.num_streams
        return share * own.compute_s

    def _crowding_s(self, decode: Pool) -> float:
        """A decode worker with more streams steps slower for all of them: load spreads among equals. A
        slow one keeps its streams for longer, so it gets fewer by their number alone."""
        return self._measured.step_s * decode.num_streams
