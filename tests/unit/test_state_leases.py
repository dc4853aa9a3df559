"""Who holds a lease, decided with a clock of the test's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import InvalidArgument
from baton.state.base import Change, Joined, Left, Updated
from baton.state.leases import LeaseTable
from tests.reports import report


def told(changes: list[Change]) -> list[tuple[str, str, int]]:
    return [
        (type(change).__name__, change.member.info.worker_id, change.member.info.incarnation)
        for change in changes
    ]


def test_first_report_joins_and_the_next_only_renews() -> None:
    table = LeaseTable(5.0)
    assert told(table.report(report(), 0.0)) == [("Joined", "d0", 1)]
    assert table.report(report(), 3.0) == []
    assert table.expire(7.9) == []
    (left,) = table.expire(8.0)
    assert isinstance(left, Left)
    assert "5 s" in left.reason
    assert table.snapshot(8.0) == []


def test_what_changed_is_told() -> None:
    table = LeaseTable(5.0)
    table.report(report(), 0.0)
    (change,) = table.report(report(num_running=2), 1.0)
    assert isinstance(change, Updated)
    assert change.member.loads[0].num_running_requests == 2
    (change,) = table.report(replace(report(num_running=2), draining=True), 2.0)
    assert isinstance(change, Updated)
    assert change.member.draining


def test_higher_incarnation_replaces() -> None:
    table = LeaseTable(5.0)
    table.report(report(incarnation=1), 0.0)
    changes = table.report(report(incarnation=3), 1.0)
    assert told(changes) == [("Left", "d0", 1), ("Joined", "d0", 3)]
    assert isinstance(changes[0], Left)
    assert "incarnation 3" in changes[0].reason
    assert table.leave("d0", 1, "late", 2.0) == []
    assert [member.info.incarnation for member in table.snapshot(2.0)] == [3]


def test_lower_incarnation_is_refused_and_renews_nothing() -> None:
    table = LeaseTable(5.0)
    table.report(report(incarnation=3), 0.0)
    with pytest.raises(InvalidArgument, match="d0 is alive as incarnation 3") as refused:
        table.report(report(incarnation=2), 4.0)
    assert refused.value.field == "info.incarnation"
    assert told(table.expire(5.0)) == [("Left", "d0", 3)]


def test_leaving_ends_the_lease_once() -> None:
    table = LeaseTable(5.0)
    table.report(report(), 0.0)
    (left,) = table.leave("d0", 1, "drained", 1.0)
    assert isinstance(left, Left)
    assert left.reason == "drained"
    assert table.leave("d0", 1, "drained", 1.0) == []
    assert table.leave("nobody", 1, "drained", 1.0) == []


def test_snapshot_is_sorted_and_says_what_remains() -> None:
    table = LeaseTable(5.0)
    table.report(report("d1"), 0.0)
    table.report(report("d0"), 2.0)
    assert [(m.info.worker_id, m.lease_remaining_s) for m in table.snapshot(3.0)] == [
        ("d0", 4.0),
        ("d1", 2.0),
    ]
    assert table.next_expiry_s == 5.0


def test_extension_reaches_every_lease() -> None:
    table = LeaseTable(5.0)
    table.report(report(), 0.0)
    table.extend(10.0)
    assert table.expire(14.9) == []
    assert told(table.expire(15.0)) == [("Left", "d0", 1)]


steps = st.lists(
    st.tuples(st.sampled_from(["report", "leave", "expire"]), st.sampled_from("abc"),
              st.integers(1, 3), st.floats(0, 4)),
    max_size=40,
)  # fmt: skip


@given(steps)
def test_changes_alone_tell_who_is_alive(steps: list[tuple[str, str, int, float]]) -> None:
    """Whoever applies the changes in order knows the same workers as the table, at any time."""
    table, now_s = LeaseTable(5.0), 0.0
    alive: dict[str, int] = {}
    for action, worker_id, incarnation, passed_s in steps:
        now_s += passed_s
        changes = table.expire(now_s)
        if action == "leave":
            changes += table.leave(worker_id, incarnation, "", now_s)
        elif action == "report" and incarnation >= alive_now(alive, changes).get(worker_id, 0):
            changes += table.report(report(worker_id, incarnation), now_s)
        alive = alive_now(alive, changes)
        known = {m.info.worker_id: m.info.incarnation for m in table.snapshot(now_s)}
        assert alive == known


def alive_now(alive: dict[str, int], changes: list[Change]) -> dict[str, int]:
    alive = dict(alive)
    for change in changes:
        info = change.member.info
        match change:
            case Joined():
                assert info.worker_id not in alive
                alive[info.worker_id] = info.incarnation
            case Updated():
                assert alive[info.worker_id] == info.incarnation
            case Left():
                assert alive.pop(info.worker_id) == info.incarnation
    return alive
