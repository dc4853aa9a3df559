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
from typing import NamedTuple

from baton.prefill_cost import PrefillCost
from baton.types import PoolId, PrefillChoice
from router.pools import Pool

_NUM_USUAL = 8  # pools that tell what is usual
_NEARLY = (
    1.35  # the factor within which costs are not told apart: noise, and prompts of other lengths
)
_NUM_LENT = 3  # prefill pools that are judged as borrowers of a decode pool
_DEFAULT_COST = PrefillCost.at_rate(1000.0)  # until any worker has measured its own


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """`hand_off_s`: what a hand-off costs beside moving bytes. `transfer_bytes_per_s`: until hand-offs
    were measured. `interference`: cost of a second of a long local prefill (half of it for one of
    `interference_ramp_s`), and of that per running stream.
    `delay_weight`: cost of a second for which a passed prompt waits longer; twice as much where that one
    takes `ttft_target_s` itself, growing with the square: it is the longest waits that people notice.
    `detour`: what a second of prefill costs more on a pool to which another router turns first.
    `itl_target_s`: pools that step slower are passed over while others are there; 0 is none.
    `local_prefill`: whether decode workers compute prompts while a prefill worker is up. `lend`: whether
    they give prefill workers the prefixes that they have."""

    hand_off_s: float = 0.012
    transfer_bytes_per_s: float = 1e9
    interference: float = 0.25
    interference_per_stream: float = 0.1
    interference_ramp_s: float = 0.2
    delay_weight: float = 0.7
    ttft_target_s: float = 0.7
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
    remote one is None where no prefill pool is up. `num_missing`: those of `num_tokens` to be computed."""

    decode: Pool
    prefill: Pool | None
    num_tokens: int
    num_missing: int
    local: Way
    remote: Way | None
    lends: bool = False

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


class _Usual(NamedTuple):
    """Of the pools judged: what prompts usually cost, and one of a thousand tokens."""

    cost: PrefillCost
    thousand_s: float


@dataclass(slots=True)
class _Leg:
    """A pool that could compute the prompt: what holds whoever decodes."""

    pool: Pool
    num_missing: int
    wait_s: float
    compute_s: float
    harm_s: float
    cost_s: float
    lends: bool = False  # it takes the prefix of the decode pool


def choose(
    demand: Demand,
    decode_pools: Sequence[Pool],
    prefill_pools: Sequence[Pool],
    settings: PolicySettings,
    now_s: float = 0.0,
) -> Choice | None:
    """The pair of the least cost among those within the ITL target; None where no decode pool is up.

    Ties go to the pool with the emptier cache, not to the lowest number: otherwise one worker's cache
    fills while its neighbour's stays empty.
    """
    usual = _usual_cost((*decode_pools, *prefill_pools))
    legs = [
        _leg(_num_missing(demand, pool), pool, settings, usual, now_s) for pool in prefill_pools
    ]
    legs.sort(key=lambda leg: (leg.cost_s, -leg.pool.num_unused_blocks))
    borrowers = sorted(legs, key=lambda leg: leg.wait_s)[:_NUM_LENT]
    best: tuple[bool, float, int] | None = None
    choice: Choice | None = None
    for decode in decode_pools:
        is_slow = 0.0 < settings.itl_target_s < decode.step_s
        # A decode worker with more streams steps slower for all of them: load spreads among equals.
        crowding_s = decode.step_s * decode.num_streams
        unused = -decode.num_unused_blocks
        own = _leg(_num_missing(demand, decode), decode, settings, usual, now_s)
        local = _local(own, crowding_s, settings)
        to_here = _with_lent(demand, decode, legs, borrowers, settings, usual, now_s)
        leg, remote = _best_remote(demand, decode, crowding_s, to_here, settings)
        stays = remote is None or (settings.local_prefill and local.cost_s < remote.cost_s)
        rank = (is_slow, local.cost_s if stays or remote is None else remote.cost_s, unused)
        if best is None or rank < best:
            best = rank
            chosen = own if stays or leg is None else leg
            prefill = None if chosen is own else chosen.pool
            choice = Choice(
                decode,
                prefill,
                demand.num_tokens,
                chosen.num_missing,
                local,
                remote,
                chosen.lends,
            )
    return choice


def _local(own: _Leg, crowding_s: float, settings: PolicySettings) -> Way:
    # Streams that run are disturbed from the start; who else, comes while it lasts.
    coming = own.compute_s / (own.compute_s + settings.interference_ramp_s)
    share = settings.interference * coming
    share += settings.interference_per_stream * own.pool.num_streams
    return Way(own.wait_s, own.compute_s, 0.0, own.harm_s + share * own.compute_s + crowding_s)


def _best_remote(
    demand: Demand,
    decode: Pool,
    crowding_s: float,
    legs: Sequence[_Leg],
    settings: PolicySettings,
) -> tuple[_Leg | None, Way | None]:
    """`legs` stand in the order of their own cost, so that the first few decide."""
    best: _Leg | None = None
    best_exposed_s = best_cost_s = float("inf")
    num_bytes = _num_missing(demand, decode) * demand.kv_bytes_per_token
    transfer_s = num_bytes / (decode.transfer_bytes_per_s or settings.transfer_bytes_per_s)
    for leg in legs:
        if leg.cost_s >= best_cost_s:
            break
        # Layer by layer: all but the last layer's part leaves while the next one is computed.
        num_layers = max(1, leg.pool.worker.fingerprint.num_layers)
        exposed_s = max(transfer_s / num_layers, transfer_s - leg.compute_s)
        if leg.cost_s + exposed_s < best_cost_s:
            best, best_exposed_s, best_cost_s = leg, exposed_s, leg.cost_s + exposed_s
    if best is None:
        return None, None
    moved_s = best_exposed_s + settings.hand_off_s
    return best, Way(best.wait_s, best.compute_s, moved_s, best.harm_s + crowding_s)


def _with_lent(
    demand: Demand,
    decode: Pool,
    legs: Sequence[_Leg],
    borrowers: Sequence[_Leg],
    settings: PolicySettings,
    usual: _Usual,
    now_s: float,
) -> Sequence[_Leg]:
    """`legs`, and beside them the `borrowers`, those with least to do, were they given what `decode` has;
    in the order of their cost."""
    num_hits = demand.hits.get(decode.id, 0)
    if not settings.lend or not num_hits:
        return legs
    num_missing = _num_missing(demand, decode)
    lent = []
    for leg in borrowers:
        num_bytes = (leg.num_missing - num_missing) * demand.kv_bytes_per_token
        if num_bytes <= 0:
            continue
        rate = leg.pool.transfer_bytes_per_s or settings.transfer_bytes_per_s
        lend_s = num_bytes / rate + settings.hand_off_s
        given = _leg(num_missing, leg.pool, settings, usual, now_s, lend_s=lend_s)
        if given.cost_s < leg.cost_s:
            lent.append(given)
    return sorted((*lent, *legs), key=lambda leg: leg.cost_s) if lent else legs


def _leg(
    num_missing: int,
    pool: Pool,
    settings: PolicySettings,
    usual: _Usual,
    now_s: float,
    *,
    lend_s: float = 0.0,
) -> _Leg:
    """`lend_s`: what it takes to be given the rest by the decode pool, while the prompt waits."""
    compute_s = _cost(pool, usual).prompt_s(num_missing)
    quote = pool.queue.quote(compute_s, now_s, settings.ttft_target_s)
    wait_s = max(quote.wait_s + pool.elsewhere_s, lend_s)
    harm_s = settings.delay_weight * quote.harm_s
    if pool.is_others:
        harm_s += settings.detour * compute_s
    cost_s = wait_s + compute_s + harm_s
    return _Leg(pool, num_missing, wait_s, compute_s, harm_s, cost_s, lends=lend_s > 0.0)


def _num_missing(demand: Demand, pool: Pool) -> int:
    """At least the last token is always computed: its logits are needed."""
    return max(1, demand.num_tokens - demand.hits.get(pool.id, 0))


def _cost(pool: Pool, usual: _Usual) -> PrefillCost:
    """As the pool has measured it. Equal workers measure unequal costs, each in its own noise: what is
    nearly usual is taken for usual, or whoever looks a little faster would get all prompts."""
    own = pool.cost
    if own is None:
        return usual.cost
    ratio = pool.thousand_s / usual.thousand_s
    return usual.cost if 1 / _NEARLY < ratio < _NEARLY else own


def _usual_cost(pools: Sequence[Pool]) -> _Usual:
    """Of a pool that has not measured its own: that of the middle one of some peers, so that a worker is
    not passed over for ever because nobody has tried it."""
    some = pools[:: max(1, len(pools) // _NUM_USUAL)]
    known = sorted((pool for pool in some if pool.cost), key=lambda pool: pool.thousand_s)
    if known and (middle := known[len(known) // 2]).cost:
        return _Usual(middle.cost, middle.thousand_s)
    return _Usual(_DEFAULT_COST, _DEFAULT_COST.prompt_s(1000))
