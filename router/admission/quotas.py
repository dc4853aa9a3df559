"""How many tokens a tenant may use per second: a bucket each, that fills at its rate. Pure.

Prompt tokens are taken when a request is admitted, and with them the output that a continuation brings: both
are computed again, and nobody can tell whether another router has counted them. What is produced is taken
when a request has ended, so a bucket may owe.
While it owes, the tenant's requests are refused. Every router keeps its own buckets, fills them at the whole
rate, and takes from them also what the other routers say they spent: the quota is the cluster's, and no
request waits for a store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from baton.errors import Overloaded

OTHERS = "*"  # in `rates`: every tenant that is not named
_MAX_BUCKETS = 10_000  # full ones are forgotten from here on


@dataclass(slots=True)
class _Bucket:
    level: float
    filled_s: float


@dataclass(slots=True)
class Quotas:
    """`rates`: tokens per second of tenants, those not there have no quota. `burst_s`: the seconds that a
    bucket holds, and at most owes to other routers."""

    rates: Mapping[str, float] = field(default_factory=dict)
    burst_s: float = 10.0
    spent: dict[str, float] = field(default_factory=dict)  # through this router, since it started
    _buckets: dict[str, _Bucket] = field(default_factory=dict)
    _heard: dict[str, Mapping[str, float]] = field(
        default_factory=dict
    )  # by router, what it said last

    def check(self, tenant: str, now_s: float) -> None:
        """Raises Overloaded where the tenant has used up its quota, with the time until it has not."""
        rate = self._rate(tenant)
        if rate is None:
            return
        owed = -self._bucket(tenant, rate, now_s).level
        if owed >= 0:
            raise Overloaded(
                f"tenant {tenant!r} has used its quota of {rate:g} tokens per second",
                field="tenant",
                retry_after_s=max(0.1, (owed + 1) / rate),
            )

    def spend(self, tenant: str, num_tokens: int, now_s: float) -> None:
        """Takes what a request of this router used."""
        rate = self._rate(tenant)
        if rate is not None and num_tokens:
            self._bucket(tenant, rate, now_s).level -= num_tokens
            self.spent[tenant] = self.spent.get(tenant, 0.0) + num_tokens

    def note_spent(self, router_id: str, spent: Mapping[str, float], now_s: float) -> None:
        """Takes what another router has spent since it was heard last. What it had spent before it was
        heard first, or while nobody was heard for long, is not collected."""
        before = self._heard.get(router_id)
        self._heard[router_id] = dict(spent)
        if before is None:
            return
        for tenant, total in spent.items():
            rate = self._rate(tenant)
            if rate is None:
                continue
            bucket = self._bucket(tenant, rate, now_s)
            least = min(bucket.level, -rate * self.burst_s)
            news = max(0.0, total - before.get(tenant, 0.0))
            bucket.level = max(bucket.level - news, least)

    def forget_routers(self, alive: set[str]) -> None:
        """Those that are not heard of any more."""
        for router_id in self._heard.keys() - alive:
            del self._heard[router_id]

    def _rate(self, tenant: str) -> float | None:
        return self.rates.get(tenant, self.rates.get(OTHERS))

    def _bucket(self, tenant: str, rate: float, now_s: float) -> _Bucket:
        """Filled up to now."""
        full = rate * self.burst_s
        bucket = self._buckets.get(tenant)
        if bucket is None:
            if len(self._buckets) >= _MAX_BUCKETS:
                self._forget_full(now_s)
            bucket = self._buckets[tenant] = _Bucket(full, now_s)
        bucket.level = min(full, bucket.level + rate * max(0.0, now_s - bucket.filled_s))
        bucket.filled_s = now_s
        return bucket

    def _forget_full(self, now_s: float) -> None:
        for tenant, bucket in list(self._buckets.items()):
            rate = self._rate(tenant) or 0.0
            if bucket.level + rate * (now_s - bucket.filled_s) >= rate * self.burst_s:
                del self._buckets[tenant]
                self.spent.pop(tenant, None)
