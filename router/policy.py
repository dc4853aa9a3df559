"""Which decode pool serves a request, and who computes its prompt. Pure: what is known of the pools goes
in, the choice and the predictions behind it come out.

Every pair is judged by its predicted time to first token:

    local    D's queue + the tokens D lacks at D's rate
    remote   P's queue + the tokens P lacks at P's rate + the part of the transfer of what D lacks that
             is not hidden behind that prefill

A local prefill also takes its time from all that D decodes; a share of it, growing with the streams that
run there, is added to its cost (not to its predicted time). So a long prompt goes to a prefill worker, a
short suffix of a long conversation stays where its KV is, and whoever is overloaded is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from baton.types import PoolId, PrefillChoice
from router.pools import Pool

_DEFAULT_TOKENS_PER_S = 1000.0  # until any worker has measured its rate


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """`hand_off_s`: what a hand-off costs beside moving bytes. `transfer_bytes_per_s`: until hand-offs
    were measured. `interference`: cost of a second of local prefill, and of that per running stream."""

    hand_off_s: float = 0.012
    transfer_bytes_per_s: float = 1e9
    interference: float = 0.25
    interference_per_stream: float = 0.1


@dataclass(frozen=True, slots=True)
class Demand:
    """A request as routing sees it. `hits`: the leading tokens of its prompt that a pool has cached."""

    num_tokens: int
    hits: Mapping[PoolId, int]
    kv_bytes_per_token: float = 0.0


@dataclass(frozen=True, slots=True)
class Choice:
    """`prefill` None: on the decode worker itself. Predictions are for the chosen decode pool; that of
    the remote way is None where no prefill pool is up. `num_missing`: tokens to be computed."""

    decode: Pool
    prefill: Pool | None
    num_missing: int
    local_ttft_s: float
    remote_ttft_s: float | None

    @property
    def computing(self) -> Pool:
        """The pool that computes the prompt."""
        return self.prefill or self.decode

    def prefill_choice(self) -> PrefillChoice | None:
        """As the decode worker is told."""
        if self.prefill is None:
            return None
        worker = self.prefill.worker
        return PrefillChoice(self.prefill.id, worker.incarnation, worker.address)


def choose(
    demand: Demand,
    decode_pools: Sequence[Pool],
    prefill_pools: Sequence[Pool],
    settings: PolicySettings,
) -> Choice | None:
    """The pair of the least cost; None where no decode pool is up.

    Ties go to the pool with the emptier cache, not to the lowest number: otherwise one worker's cache
    fills while its neighbour's stays empty.
    """
    best: tuple[tuple[float, int], Choice] | None = None
    usual = _usual_rate((*decode_pools, *prefill_pools))
    prefill = min(prefill_pools, key=lambda pool: _prefill_s(demand, pool, usual), default=None)
    for decode in decode_pools:
        for cost_s, choice in _ways(demand, decode, prefill, settings, usual):
            rank = (cost_s, -_num_unused_blocks(decode))
            if best is None or rank < best[0]:
                best = (rank, choice)
    return best[1] if best else None


def _ways(
    demand: Demand,
    decode: Pool,
    prefill: Pool | None,
    settings: PolicySettings,
    usual: float,
) -> list[tuple[float, Choice]]:
    """The local and the remote way to `decode`, each with its cost in seconds."""
    num_missing = _num_missing(demand, decode)
    rate = _rate(decode, usual)
    compute_s = num_missing / rate
    local_s = decode.num_queued_tokens / rate + compute_s
    num_streams = decode.num_in_flight
    share = settings.interference + settings.interference_per_stream * num_streams
    remote_s = None if prefill is None else _remote_s(demand, decode, prefill, settings, usual)
    # A decode worker with more streams steps slower for all of them: load spreads among equals.
    crowding_s = decode.step_s * num_streams
    local = Choice(decode, None, num_missing, local_s, remote_s)
    ways = [(local_s + share * compute_s + crowding_s, local)]
    if prefill is not None and remote_s is not None:
        remote = Choice(decode, prefill, _num_missing(demand, prefill), local_s, remote_s)
        ways.append((remote_s + crowding_s, remote))
    return ways


def _remote_s(
    demand: Demand, decode: Pool, prefill: Pool, settings: PolicySettings, usual: float
) -> float:
    num_bytes = _num_missing(demand, decode) * demand.kv_bytes_per_token
    transfer_s = num_bytes / (decode.transfer_bytes_per_s or settings.transfer_bytes_per_s)
    compute_s = _num_missing(demand, prefill) / _rate(prefill, usual)
    num_layers = max(1, prefill.worker.fingerprint.num_layers)
    # Layer by layer: all but the last layer's part leaves while the next one is computed.
    exposed_s = max(transfer_s / num_layers, transfer_s - compute_s)
    return _prefill_s(demand, prefill, usual) + exposed_s + settings.hand_off_s


def _prefill_s(demand: Demand, pool: Pool, usual: float) -> float:
    return (pool.num_queued_tokens + _num_missing(demand, pool)) / _rate(pool, usual)


def _num_missing(demand: Demand, pool: Pool) -> int:
    """At least the last token is always computed: its logits are needed."""
    return max(1, demand.num_tokens - demand.hits.get(pool.id, 0))


def _rate(pool: Pool, usual: float) -> float:
    """Prompt tokens per second, measured by the worker; until then what is usual among its peers, so
    that a worker is not passed over for ever because nobody has tried it."""
    return (pool.load.prefill_tokens_per_s if pool.load else 0.0) or usual


def _usual_rate(pools: Iterable[Pool]) -> float:
    rates = sorted(pool.load.prefill_tokens_per_s for pool in pools if pool.load)
    measured = [rate for rate in rates if rate]
    return measured[len(measured) // 2] if measured else _DEFAULT_TOKENS_PER_S


def _num_unused_blocks(pool: Pool) -> int:
    return pool.load.num_free_blocks if pool.load else pool.worker.num_total_blocks
