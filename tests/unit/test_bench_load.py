"""The load generator against targets in the same process: whom it sends when, and what it makes of
what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from baton.bench import load
from baton.bench.outcome import Arrival, Outcome, Slo, report
from baton.bench.workload import PlannedRequest
from baton.errors import Overloaded, Unavailable
from baton.types import Usage


class FakeTarget:
    """Every request yields `messages`, then its usage. Remembers how many were in flight at most."""

    model = "fake"
    max_model_len: int | None = None

    def __init__(self, messages: tuple[int, ...] = (1, 1)) -> None:
        self.messages = messages
        self.failing: dict[int, Exception] = {}  # after the first message, by request
        self.hanging: set[int] = set()
        self.meeting: asyncio.Barrier | None = None
        self.started: list[int] = []
        self.num_in_flight = 0
        self.most_in_flight = 0

    async def stream(self, request: PlannedRequest) -> AsyncGenerator[int | Usage, None]:
        self.started.append(request.index)
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        try:
            if self.meeting is not None:
                await self.meeting.wait()
            for position, num_tokens in enumerate(self.messages):
                await asyncio.sleep(0)
                if position and request.index in self.failing:
                    raise self.failing[request.index]
                if position and request.index in self.hanging:
                    await asyncio.Event().wait()
                yield num_tokens
            yield Usage(request.num_prompt_tokens, 0, sum(self.messages))
        finally:
            self.num_in_flight -= 1

    async def close(self) -> None:
        pass


def planned(count: int, due_s: float | None = None) -> list[PlannedRequest]:
    return [PlannedRequest(index, 5, 2, due_s) for index in range(count)]


async def test_a_closed_loop_keeps_its_concurrency() -> None:
    target = FakeTarget()
    outcomes = await load.run(target, planned(20), concurrency=3)
    assert target.most_in_flight == 3
    assert target.started == list(range(20))
    assert [len(outcome.arrivals) for outcome in outcomes] == [2] * 20
    assert {outcome.usage for outcome in outcomes} == {Usage(5, 0, 2)}


async def test_arrivals_are_not_held_back_by_those_in_flight() -> None:
    target = FakeTarget()
    target.meeting = asyncio.Barrier(20)  # none goes on before all have come
    outcomes = await load.run(target, planned(20, due_s=0.0), concurrency=None, timeout_s=10)
    assert [outcome.error for outcome in outcomes] == [None] * 20


async def test_a_request_that_finds_no_room_has_been_waiting_since_it_was_due() -> None:
    target = FakeTarget()
    outcomes = await load.run(target, planned(5, due_s=0.0), concurrency=1)
    assert target.most_in_flight == 1
    assert len({outcome.start_s for outcome in outcomes}) == 1
    ttfts_s = [outcome.ttft_s or 0.0 for outcome in outcomes]
    assert ttfts_s == sorted(ttfts_s)


async def test_an_error_is_one_request_s_own() -> None:
    target = FakeTarget()
    target.failing[1] = Overloaded("full")
    told: list[Outcome] = []
    outcomes = await load.run(target, planned(3), concurrency=3, on_end=told.append)
    assert [type(outcome.error) for outcome in outcomes] == [type(None), Overloaded, type(None)]
    assert len(outcomes[1].arrivals) == 1
    assert len(told) == 3
    assert target.num_in_flight == 0


async def test_a_request_that_hangs_is_given_up() -> None:
    target = FakeTarget()
    target.hanging.add(0)
    outcomes = await load.run(target, planned(2), concurrency=1, timeout_s=0.05)
    assert outcomes[0].error is not None
    assert outcomes[0].error.code == "deadline_exceeded"
    assert outcomes[1].error is None
    assert target.num_in_flight == 0


async def test_a_defect_of_the_generator_is_not_an_error_of_the_server() -> None:
    target = FakeTarget()
    target.failing[0] = ZeroDivisionError()
    with pytest.raises(ExceptionGroup):
        await load.run(target, planned(1), concurrency=1)


def outcome(start_s: float, *arrivals: tuple[float, int], end_s: float | None = None) -> Outcome:
    last_s = arrivals[-1][0] if arrivals else start_s
    return Outcome(start_s, end_s or last_s, tuple(Arrival(*each) for each in arrivals))


def test_figures() -> None:
    first = outcome(10.0, (10.5, 1), (10.6, 1), (10.7, 1))
    second = outcome(11.0, (12.0, 1), (12.3, 1), end_s=12.5)
    result = report([first, second], Slo())
    assert (result["requests"], result["errors"]) == (2, 0)
    assert result["ttft_ms"]["mean"] == pytest.approx(750)
    assert result["ttft_ms"]["p50"] == pytest.approx(750)
    assert result["itl_ms"]["mean"] == pytest.approx((100 + 100 + 300) / 3)
    assert result["itl_ms"]["p50"] == pytest.approx(100)
    assert result["e2e_ms"]["p50"] == pytest.approx((700 + 1500) / 2)
    assert result["duration_s"] == pytest.approx(2.5)
    assert result["output_tokens_per_s"] == pytest.approx(5 / 2.5)
    assert result["goodput_requests_per_s"] == pytest.approx(2 / 2.5)
    assert result["tokens_per_message"] == 1
    assert set(result["ttft_ms"]) == {"mean", "p50", "p90", "p95", "p99"}
    assert "prompt_tokens_per_s" not in result


def test_a_message_of_several_tokens_divides_the_gap_before_it() -> None:
    gaps_s = outcome(0.0, (1.0, 2), (1.6, 3), (1.7, 1)).gaps_s()
    assert gaps_s == pytest.approx([0.2, 0.2, 0.2, 0.1])


def test_failed_requests_count_as_errors_and_nowhere_else() -> None:
    failed = Outcome(0.0, 9.0, (Arrival(8.0, 50),), error=Overloaded("full"))
    lost = Outcome(0.0, 10.0, error=Unavailable("gone"))
    result = report([failed, outcome(0.0, (1.0, 1), (2.0, 1)), lost, lost], Slo())
    assert (result["requests"], result["errors"]) == (4, 3)
    assert result["errors_by_code"] == {"overloaded": 1, "unavailable": 2}
    assert result["first_error"] == "overloaded: full"
    assert result["ttft_ms"]["p99"] == pytest.approx(1000)
    assert result["output_tokens_per_s"] == pytest.approx(2 / 10)
    assert result["goodput_requests_per_s"] == pytest.approx(1 / 10)


def test_nothing_succeeded() -> None:
    result = report([Outcome(0.0, 1.0, error=Overloaded("full"))], Slo())
    assert result["ttft_ms"] == result["itl_ms"] == result["e2e_ms"] == {}
    assert result["output_tokens_per_s"] == 0
    assert result["tokens_per_message"] is None


def test_the_server_s_own_count_of_tokens_is_believed() -> None:
    """Over OpenAI's protocol a message may carry more tokens than can be seen."""
    seen = Outcome(0.0, 1.0, (Arrival(0.5, 1), Arrival(1.0, 1)), Usage(7, 3, 10))
    result = report([seen], Slo())
    assert result["output_tokens"] == 10
    assert result["tokens_per_message"] == 5
    assert (result["prompt_tokens"], result["cached_prompt_tokens"]) == (7, 3)


@pytest.mark.parametrize(
    ("slo", "num_good"),
    [
        (Slo(), 3),
        (Slo(ttft_s=0.5), 2),
        (Slo(itl_s=0.15), 2),
        (Slo(ttft_s=0.5, itl_s=0.15), 1),
        (Slo(ttft_s=0.1), 0),
    ],
)
def test_goodput(slo: Slo, num_good: int) -> None:
    outcomes = [
        outcome(0.0, (0.5, 1), (0.6, 1), (0.7, 1)),
        outcome(0.0, (0.9, 1), (1.0, 1)),  # late to begin with
        outcome(0.0, (0.5, 1), (0.6, 1), (1.0, 1)),  # slow on average
        Outcome(0.0, 1.0, (Arrival(0.1, 1),), error=Unavailable("gone")),
    ]
    assert report(outcomes, slo)["goodput_requests_per_s"] == pytest.approx(num_good)


def test_a_single_token_has_no_gap_to_be_slow() -> None:
    assert Slo(itl_s=0.001).is_kept_by(outcome(0.0, (0.5, 1)))
    assert not Slo(ttft_s=1.0).is_kept_by(Outcome(0.0, 1.0))
