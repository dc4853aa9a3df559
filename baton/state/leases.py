"""Leases of workers as pure decisions: time is an argument, changes are return values."""

from __future__ import annotations

from dataclasses import dataclass

from baton.errors import InvalidArgument
from baton.state.base import Change, Joined, Left, Member, Report, Updated


@dataclass(slots=True)
class _Lease:
    report: Report
    expires_s: float

    def member(self, now_s: float) -> Member:
        remaining_s = max(0.0, self.expires_s - now_s)
        report = self.report
        return Member(report.info, report.loads, report.draining, remaining_s, hung=report.hung)


class LeaseTable:
    """At most one incarnation of a worker holds a lease; each lease lasts `lease_s` from its
    renewal."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._leases: dict[str, _Lease] = {}

    def report(self, report: Report, now_s: float) -> list[Change]:
        """Registers or renews. `InvalidArgument` where a younger incarnation holds the lease."""
        worker_id, incarnation = report.info.worker_id, report.info.incarnation
        known = self._leases.get(worker_id)
        if known is not None and incarnation < known.report.info.incarnation:
            raise InvalidArgument(
                f"{worker_id} is alive as incarnation {known.report.info.incarnation}; "
                f"{incarnation} is an older one",
                field="info.incarnation",
            )
        lease = self._leases[worker_id] = _Lease(report, now_s + self.lease_s)
        member = lease.member(now_s)
        if known is None:
            return [Joined(member)]
        if incarnation > known.report.info.incarnation:
            reason = f"replaced by incarnation {incarnation}"
            return [Left(known.member(now_s), reason), Joined(member)]
        return [Updated(member)] if report != known.report else []

    def leave(self, worker_id: str, incarnation: int, reason: str, now_s: float) -> list[Change]:
        """Ends the lease of exactly this incarnation."""
        known = self._leases.get(worker_id)
        if known is None or known.report.info.incarnation != incarnation:
            return []
        del self._leases[worker_id]
        return [Left(known.member(now_s), reason)]

    def expire(self, now_s: float) -> list[Change]:
        """Ends every lease that has run out."""
        ended = [lease for lease in self._leases.values() if lease.expires_s <= now_s]
        for lease in ended:
            del self._leases[lease.report.info.worker_id]
        reason = f"not heard of for {self.lease_s:g} s"
        return [Left(lease.member(now_s), reason) for lease in ended]

    def extend(self, by_s: float) -> None:
        """Gives every lease more time: nobody could renew while the keeper of the table stood
        still."""
        for lease in self._leases.values():
            lease.expires_s += by_s

    @property
    def next_expiry_s(self) -> float | None:
        return min((lease.expires_s for lease in self._leases.values()), default=None)

    def snapshot(self, now_s: float) -> list[Member]:
        return [self._leases[worker_id].member(now_s) for worker_id in sorted(self._leases)]
