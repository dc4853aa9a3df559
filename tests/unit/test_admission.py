"""Who is served when there is more work than workers: on a clock of the test's own, one worker that
computes prompts one after the other."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import ConfigError, Overloaded
from baton.state.base import Crowd
from router.admission.admission import Admission, AdmissionSettings, Ask
from router.admission.capacity import Capacity
from router.admission.fair_queue import Ticket

ONE_AT_A_TIME = AdmissionSettings(max_outstanding_s=1e-9, max_queued_s=1e9, max_waiting=10**6)


class Worker:
    """Takes what is admitted, one prompt after the other; remembers who was served and when."""

    def __init__(self, settings: AdmissionSettings = ONE_AT_A_TIME) -> None:
        self.admission = Admission(settings)
        self.now_s = 0.0
        self.served: list[Ticket] = []
        self.refused: list[tuple[Ticket, Overloaded]] = []
        self._computing: list[Ticket] = []

    def ask(
        self, priority: int = 0, tenant: str = "", work_s: float = 1.0, deadline_s: float = inf
    ) -> Ticket:
        ticket = self.admission.enter(Ask(priority, tenant, deadline_s, work_s), self.now_s)
        self._settle()
        return ticket

    def compute_one(self) -> Ticket:
        ticket = self._computing.pop(0)
        self.now_s += ticket.work_s
        self.served.append(ticket)
        self.admission.finish(ticket, ticket.work_s)
        self._settle()
        return ticket

    def compute_all(self) -> None:
        while self._computing:
            self.compute_one()

    def _settle(self) -> None:
        started, refused = self.admission.settle(self.now_s)
        self._computing += started
        self.refused += refused


def test_a_flood_of_a_high_class_starves_nobody_and_shares_converge_to_weights() -> None:
    worker = Worker()
    for _ in range(200):  # one of each class always waits
        for priority in (0, 1, 2):
            worker.ask(priority)
    for _ in range(210):
        worker.compute_one()
    served = Counter(ticket.priority for ticket in worker.served[:210])
    assert served[2] == pytest.approx(160, abs=2)  # 16 : 4 : 1
    assert served[1] == pytest.approx(40, abs=2)
    assert served[0] == pytest.approx(10, abs=2)


def test_a_class_is_charged_for_work_and_not_for_requests() -> None:
    worker = Worker(replace(ONE_AT_A_TIME, class_ratio=1))
    for _ in range(100):
        worker.ask(0, work_s=0.1)
        worker.ask(1, work_s=1.0)
    while worker.now_s < 18:
        worker.compute_one()
    work_s = Counter[int]()
    for ticket in worker.served:
        work_s[ticket.priority] += round(ticket.work_s * 10)
    assert work_s[0] == pytest.approx(work_s[1], abs=12)


def test_tenants_of_a_class_share_by_weight_whatever_each_asks_for() -> None:
    worker = Worker(replace(ONE_AT_A_TIME, shares=("big=3", "*=1")))
    for _ in range(1000):
        worker.ask(tenant="flood")
    for _ in range(100):
        worker.ask(tenant="big")
        worker.ask(tenant="small")
    for _ in range(100):
        worker.compute_one()
    served = Counter(ticket.tenant for ticket in worker.served[1:])  # the first found no queue
    assert served["big"] == pytest.approx(60, abs=2)
    assert served["small"] == served["flood"] == pytest.approx(20, abs=2)


def test_who_was_idle_has_saved_nothing_up() -> None:
    worker = Worker()
    for _ in range(100):
        worker.ask(tenant="busy")
    for _ in range(50):
        worker.compute_one()
    for _ in range(50):
        worker.ask(tenant="late")
    for _ in range(20):
        worker.compute_one()
    assert Counter(t.tenant for t in worker.served[-20:]) == {"busy": 10, "late": 10}


def test_within_a_class_the_earliest_deadline_goes_first() -> None:
    worker = Worker()
    worker.ask()  # is being computed
    deadlines = [50.0, inf, 20.0, 90.0, inf, 30.0]
    tickets = [worker.ask(deadline_s=deadline_s) for deadline_s in deadlines]
    worker.compute_all()
    order = [worker.served.index(ticket) for ticket in tickets]
    assert order == [3, 5, 1, 4, 6, 2]


def test_what_would_miss_its_deadline_is_refused_at_once_and_told_when_to_come() -> None:
    worker = Worker()
    for _ in range(10):
        worker.ask(priority=5)
    with pytest.raises(Overloaded, match=r"6\.00 s after the deadline") as refused:
        worker.ask(deadline_s=5.0)  # ten seconds of others and one of its own
    assert refused.value.retry_after_s == pytest.approx(6.0)
    assert worker.admission.num_waiting == 9
    kept = worker.ask(deadline_s=11.0)
    worker.compute_all()
    assert kept in worker.served


def test_a_higher_class_makes_a_deadline_that_a_lower_one_would_miss() -> None:
    worker = Worker()
    for _ in range(10):
        worker.ask()
    urgent = worker.ask(priority=3, deadline_s=5.0)
    worker.compute_one()
    assert worker.compute_one() is urgent
    assert worker.now_s <= 5.0


def test_whose_turn_comes_too_late_is_refused_and_not_computed() -> None:
    worker = Worker()
    worker.ask()
    worker.ask(deadline_s=3.0)
    for _ in range(3):  # they were not there when it asked
        worker.ask(priority=4)
    worker.compute_all()
    ((ticket, error),) = worker.refused
    assert ticket.deadline_s == 3.0
    assert error.retry_after_s > 0
    assert ticket not in worker.served


def test_overload_is_shed_from_the_lowest_class() -> None:
    worker = Worker(replace(ONE_AT_A_TIME, max_queued_s=10.0))
    worker.ask()
    low = [worker.ask(priority=0) for _ in range(5)]
    middle = [worker.ask(priority=1) for _ in range(5)]
    high = [worker.ask(priority=2) for _ in range(7)]
    assert [ticket for ticket, _ in worker.refused] == [*low[::-1], *middle[:-3:-1]]
    assert all(error.retry_after_s > 0 for _, error in worker.refused)
    newcomer = worker.ask(priority=0)
    assert worker.refused[-1][0] is newcomer  # nobody is lower
    worker.compute_all()
    assert {*worker.served[1:]} == {*middle[:3], *high}


def test_shed_first_is_the_tenant_that_fills_the_queue() -> None:
    worker = Worker(replace(ONE_AT_A_TIME, max_queued_s=10.0))
    worker.ask()
    flood = [worker.ask(tenant="flood") for _ in range(10)]
    for _ in range(3):
        worker.ask(tenant="quiet")
    assert [ticket for ticket, _ in worker.refused] == flood[:-4:-1]


def test_limits_are_of_work_and_grow_with_the_workers() -> None:
    worker = Worker(AdmissionSettings(max_outstanding_s=2.0, max_queued_s=4.0))
    for _ in range(100):
        worker.ask(work_s=0.1)  # many small ones are as much as a few long ones
    assert worker.admission.outstanding_s == pytest.approx(2.0, abs=0.11)
    assert worker.admission.queued_s == pytest.approx(4.0, abs=0.11)
    worker.admission.capacity = Capacity(num_decode_pools=1, num_computing_pools=3)
    worker._settle()
    assert worker.admission.outstanding_s == pytest.approx(6.0, abs=0.2)
    assert worker.admission.num_waiting == 0


def test_one_long_prompt_may_always_wait() -> None:
    worker = Worker(replace(ONE_AT_A_TIME, max_queued_s=1.0))
    worker.ask()
    long = worker.ask(work_s=50.0)
    worker.compute_all()
    assert worker.served[-1] is long


def test_numbers_bound_where_no_rate_is_known() -> None:
    worker = Worker(AdmissionSettings(max_in_flight_per_pool=2, max_waiting=3))
    assert worker.admission.work_s(10_000) == 0.0
    for _ in range(7):
        worker.ask(work_s=0.0)
    assert worker.admission.num_in_flight == 2
    assert worker.admission.num_waiting == 3
    assert len(worker.refused) == 2


def test_a_request_of_many_samples_counts_as_so_many() -> None:
    admission = Admission(AdmissionSettings(max_in_flight_per_pool=8, max_waiting=10))
    one, many, last = (admission.enter(Ask(num_samples=n), 0.0) for n in (1, 8, 1))
    assert admission.settle(0.0) == ([one], [])  # 9 are too many, and nobody passes those who wait
    crowd = admission.enter(Ask(num_samples=4), 0.0)
    (refused,) = admission.settle(0.0)[1]
    assert refused[0] is crowd
    admission.finish(one, 1.0)
    assert admission.settle(1.0) == ([many], [])
    admission.finish(many, 1.0)
    assert admission.settle(1.0) == ([last], [])


def test_a_request_of_more_samples_than_there_are_places_is_served_alone() -> None:
    admission = Admission(AdmissionSettings(max_in_flight_per_pool=4, max_waiting=4))
    many, last = admission.enter(Ask(num_samples=128), 0.0), admission.enter(Ask(), 0.0)
    assert admission.settle(0.0)[0] == [many]
    admission.finish(many, 1.0)
    assert admission.settle(1.0)[0] == [last]


def test_samples_are_charged_to_whoever_asks_for_them() -> None:
    worker = Worker(replace(ONE_AT_A_TIME, max_in_flight_per_pool=128))
    for _ in range(20):
        for tenant, num_samples in (("one", 1), ("many", 64)):
            worker.admission.enter(Ask(tenant=tenant, num_samples=num_samples), 0.0)
    worker._settle()
    while len(worker.served) < 22:
        worker.compute_one()
    assert Counter(each.tenant for each in worker.served)["one"] == 20


@pytest.mark.parametrize("asked_for", [4, 2**31 - 1])
def test_no_caller_gets_a_class_above_the_highest(asked_for: int) -> None:
    worker = Worker(replace(ONE_AT_A_TIME, max_priority=1))
    for _ in range(100):
        worker.ask(priority=asked_for, tenant="greedy")
        worker.ask(priority=0, tenant="modest")
    while len(worker.served) < 100:
        worker.compute_one()
    assert Counter(each.tenant for each in worker.served)["modest"] == pytest.approx(20, abs=2)


class Replicas:
    """Routers of one worker, which tell each other of their crowds every so often."""

    def __init__(self, settings: AdmissionSettings, num_routers: int = 2) -> None:
        self.doors = [Admission(settings) for _ in range(num_routers)]
        self.running: list[list[Ticket]] = [[] for _ in range(num_routers)]
        self.tell()

    def tell(self) -> None:
        for door in self.doors:
            others = [other.crowd for other in self.doors if other is not door]
            door.elsewhere = Crowd(*map(sum, zip(*others, strict=True)))
            door.num_routers = len(self.doors)

    def ask(self, number: int, num_requests: int, work_s: float = 0.0) -> int:
        """How many were refused."""
        for _ in range(num_requests):
            self.doors[number].enter(Ask(work_s=work_s), 0.0)
        return self._settle(number)

    def finish_one(self, number: int) -> None:
        self.doors[number].finish(self.running[number].pop(0), 1.0)
        self._settle(number)

    def _settle(self, number: int) -> int:
        started, refused = self.doors[number].settle(0.0)
        self.running[number] += started
        return len(refused)

    @property
    def num_running(self) -> list[int]:
        return [len(each) for each in self.running]


def test_one_router_may_have_every_place_that_the_others_leave() -> None:
    replicas = Replicas(AdmissionSettings(max_in_flight_per_pool=8))
    replicas.ask(0, 20)
    assert replicas.num_running == [8, 0]


def test_routers_that_all_have_much_to_do_come_to_share_and_none_waits_for_ever() -> None:
    replicas = Replicas(AdmissionSettings(max_in_flight_per_pool=8))
    replicas.ask(0, 200)
    replicas.tell()
    replicas.ask(1, 200)
    assert replicas.num_running == [8, 4]  # its part, though the first one has all
    for _ in range(8):
        replicas.tell()
        for number in (0, 1):
            replicas.finish_one(number)
    assert replicas.num_running == [4, 4]


def test_work_and_those_who_wait_are_limited_together() -> None:
    settings = AdmissionSettings(max_outstanding_s=4.0, max_queued_s=100.0, max_waiting=10)
    replicas = Replicas(settings)
    assert replicas.ask(0, 12, work_s=1.0) == 0
    assert replicas.num_running == [4, 0]
    replicas.tell()
    assert replicas.ask(1, 9, work_s=1.0) == 2  # of ten, five may always wait here
    assert replicas.num_running == [4, 2]
    # All waits for the two that run at the other, too.
    ticket = replicas.doors[1].enter(Ask(work_s=1.0), 0.0)
    assert replicas.doors[1].wait_s(ticket) == pytest.approx(4 + 2 + 5 + 5)


def test_a_place_given_back_is_taken_again() -> None:
    admission = Admission(AdmissionSettings(max_outstanding_s=1.0))
    first = admission.enter(Ask(work_s=5.0), 0.0)
    second = admission.enter(Ask(work_s=5.0), 0.0)
    assert admission.settle(0.0) == ([first], [])
    admission.computed(first)
    admission.computed(first)
    assert admission.settle(1.0) == ([second], [])
    admission.finish(first, 2.0)
    admission.finish(second, 2.0)
    assert (admission.num_in_flight, admission.num_waiting) == (0, 0)
    assert (admission.outstanding_s, admission.queued_s) == (0.0, 0.0)


asks = st.lists(
    st.tuples(
        st.integers(-3, 3),
        st.sampled_from(["", "a", "b"]),
        st.floats(0, 5),
        st.one_of(st.just(inf), st.floats(0, 60)),
    ),
    max_size=60,
)


@given(asks, st.integers())
def test_everyone_is_served_or_told(asked: list[tuple[int, str, float, float]], seed: int) -> None:
    """Whatever is asked for, nobody is forgotten, nothing is counted twice, and all comes back to zero."""
    order, worker = random.Random(seed), Worker(AdmissionSettings(max_queued_s=8.0, max_waiting=10))
    entered, at_the_door = [], 0
    for ask in asked:
        try:
            entered.append(worker.ask(*ask))
        except Overloaded:
            at_the_door += 1
        while worker._computing and order.random() < 0.5:
            worker.compute_one()
    worker.compute_all()
    ended = [*worker.served, *(ticket for ticket, _ in worker.refused)]
    assert sorted(ended) == sorted(entered)
    assert len(entered) + at_the_door == len(asked)
    assert (worker.admission.num_waiting, worker.admission.num_in_flight) == (0, 0)
    assert worker.admission.outstanding_s == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"max_queued_s": 0.0}, "max_queued_s"),
        ({"max_waiting": -1}, "max_waiting"),
        ({"max_priority": -1}, "max_priority"),
        ({"class_ratio": 0.5}, "class_ratio"),
        ({"shares": ("acme",)}, "shares"),
        ({"shares": ("acme=0",)}, "shares"),
        ({"quotas": ("acme=nan",)}, "quotas"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        AdmissionSettings(**settings)  # type: ignore[arg-type]
    assert refused.value.field == field
