"""Tokens per second of a tenant, on a clock of the test's own."""

from __future__ import annotations

import pytest

from baton.errors import Overloaded
from router.admission.quotas import Quotas


def test_a_tenant_gets_its_rate_and_no_more() -> None:
    quotas, now_s, num_tokens = Quotas({"acme": 100.0}, burst_s=2.0), 0.0, 0
    num_refused = 0
    while now_s < 60:  # asks ten times a second for 50 tokens: five times its quota
        try:
            quotas.check("acme", now_s)
        except Overloaded:
            num_refused += 1
        else:
            quotas.spend("acme", 50, now_s)
            num_tokens += 50
        now_s += 0.1
    assert num_refused > 400
    assert num_tokens == pytest.approx(60 * 100 + 200, rel=0.02)


def test_who_comes_back_when_told_is_served() -> None:
    quotas = Quotas({"acme": 100.0}, burst_s=1.0)
    quotas.spend("acme", 350, 0.0)  # a long answer: it owes 250
    with pytest.raises(Overloaded) as refused:
        quotas.check("acme", 0.0)
    with pytest.raises(Overloaded):
        quotas.check("acme", refused.value.retry_after_s - 0.1)
    quotas.check("acme", refused.value.retry_after_s)


def test_tenants_without_a_quota_have_none_and_the_star_is_each_of_the_others() -> None:
    named, starred = Quotas({"acme": 1.0}), Quotas({"acme": 1.0, "*": 10.0}, burst_s=1.0)
    named.spend("other", 10**9, 0.0)
    named.check("other", 0.0)
    starred.spend("other", 10, 0.0)
    with pytest.raises(Overloaded, match="'other' has used its quota of 10 tokens"):
        starred.check("other", 0.0)
    starred.check("another", 0.0)  # a bucket of its own


def test_a_quota_is_the_clusters() -> None:
    """Three routers that hear of each other late: together the tenant gets its rate, within what they can
    spend before they hear."""
    routers = [Quotas({"acme": 300.0}, burst_s=1.0) for _ in range(3)]
    num_tokens = 0
    for step in range(6000):  # 60 s
        now_s = step / 100
        for router in routers:
            try:
                router.check("acme", now_s)
            except Overloaded:
                continue
            router.spend("acme", 10, now_s)
            num_tokens += 10
        if step % 10 == 0:  # every 0.1 s
            for index, router in enumerate(routers):
                for other, their in enumerate(routers):
                    if other != index:
                        router.note_spent(f"r{other}", dict(their.spent), now_s)
    assert num_tokens == pytest.approx(60 * 300 + 300, rel=0.1)


def test_what_was_spent_unheard_is_not_collected_for_ever() -> None:
    quotas = Quotas({"acme": 100.0}, burst_s=2.0)
    quotas.note_spent("r1", {"acme": 10_000.0}, 0.0)  # before this router was there
    quotas.check("acme", 0.0)
    quotas.note_spent("r1", {"acme": 1_000_000.0}, 600.0)  # while nothing was heard
    with pytest.raises(Overloaded) as refused:
        quotas.check("acme", 600.0)
    assert refused.value.retry_after_s < 3
    quotas.note_spent("r1", {"acme": 5.0}, 700.0)  # it has started anew
    quotas.check("acme", 700.0)


def test_what_a_known_router_spends_for_a_new_tenant_counts() -> None:
    quotas = Quotas({"*": 100.0}, burst_s=1.0)
    quotas.note_spent("r1", {}, 0.0)
    quotas.note_spent("r1", {"acme": 500.0}, 0.1)
    with pytest.raises(Overloaded):
        quotas.check("acme", 0.1)


def test_tenants_that_are_gone_are_forgotten() -> None:
    quotas = Quotas({"*": 1.0}, burst_s=1.0)
    for index in range(25_000):
        quotas.check(f"tenant-{index}", float(index))
        quotas.spend(f"tenant-{index}", 1, float(index))
    assert len(quotas._buckets) <= 10_001
    assert len(quotas.spent) <= 10_001
    quotas.note_spent("r1", {"a": 1.0}, 0.0)
    quotas.forget_routers(set())
    assert not quotas._heard
