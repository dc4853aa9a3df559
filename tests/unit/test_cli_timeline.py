"""A request's instants as phases, and how they are drawn."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from baton.cli.output import joined, jsonable, milliseconds
from baton.cli.timeline import Phase, bar, phases, print_timeline, timeline_json
from baton.types import HandOffReport, Timeline, Usage
from tests.fake_cluster import TIMELINE


def events(**instants: float) -> Timeline:
    return replace(TIMELINE, events=instants)


def printed(timeline: Timeline) -> str:
    console = Console(width=80)
    with console.capture() as capture:
        print_timeline(console, Usage(12, 4, 31), timeline, "ended by length")
    return capture.get()


def test_phases_are_the_time_between_instants() -> None:
    assert phases(TIMELINE) == [
        Phase("queue", 0.0, 0.25),
        Phase("prefill", 0.25, 0.5),
        Phase("decode", 0.5, 2.0),
    ]
    assert timeline_json(TIMELINE)["phases_s"] == {"queue": 0.25, "prefill": 0.25, "decode": 1.5}


def test_a_hand_off_has_a_transfer_that_overlaps_the_prefill() -> None:
    timeline = replace(
        events(
            received=0, prefill_start=0.1, transfer_start=0.2, prefill_end=0.5, transfer_end=0.6,
            first_token=0.5, decode_start=0.6, finished=1.6,
        ),
        prefill_worker="prefill-0",
        hand_off=HandOffReport("prefill-0", 2_500_000, 0.4, 0.1, 0),
    )  # fmt: skip
    assert phases(timeline)[2:] == [Phase("transfer", 0.2, 0.6), Phase("decode", 0.6, 1.6)]
    shown = printed(timeline)
    assert "8 tokens on prefill-0" in shown
    assert "2.5 MB, 100 ms exposed" in shown
    assert "30 tokens/s on decode-0" in shown


def test_a_request_that_never_got_so_far_has_fewer_phases() -> None:
    assert phases(events(received=0)) == []
    assert [phase.name for phase in phases(events(received=0, prefill_start=1))] == ["queue"]
    assert printed(events(received=0, admitted=0.1)).splitlines()[-1] == (
        "received 0 ms · admitted 100 ms"
    )


def test_clocks_that_disagree_give_no_negative_phase() -> None:
    assert phases(events(received=0, prefill_start=0.5, prefill_end=0.4))[1].duration_s == 0


def test_trouble_on_the_way_is_named() -> None:
    shown = printed(replace(TIMELINE, num_attempts=3, num_preemptions=1))
    assert "3 attempts" in shown
    assert "1 preemption ·" in shown


def test_it_fits_a_terminal() -> None:
    assert max(map(len, printed(TIMELINE).splitlines())) <= 80


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0.001, 100))
def test_a_bar_is_at_least_a_sliver_and_at_most_the_whole(
    start_s: float, duration_s: float, rest_s: float
) -> None:
    total_s = start_s + duration_s + rest_s
    drawn = bar(Phase("decode", start_s, start_s + duration_s), total_s)
    assert len(drawn) <= 24
    assert drawn.strip()


def test_a_bar_is_to_scale() -> None:
    assert bar(Phase("queue", 0.0, 0.25), 1.0) == "█" * 6
    assert bar(Phase("decode", 0.5, 1.0), 1.0) == " " * 12 + "█" * 12
    assert bar(Phase("queue", 0.0, 1 / 192), 1.0) == "▏"
    assert bar(Phase("queue", 0.0, 0.0), 0.0) == ""


def test_durations_have_three_digits() -> None:
    shown = [milliseconds(s) for s in (0, 0.00042, 0.0123, 0.456, 1.234, 83.0)]
    assert shown == ["0 ms", "0.42 ms", "12.3 ms", "456 ms", "1.23 s", "83.00 s"]


def test_lines_break_between_parts_only() -> None:
    assert joined(["a b", "c d", "e f"], 9) == "a b · c d\ne f"
    assert joined([], 9) == ""
    assert joined(["longer than the line"], 9) == "longer than the line"


def test_json_holds_no_number_that_json_lacks() -> None:
    assert jsonable({1: float("nan"), "x": (float("-inf"), 1.5)}) == {"1": None, "x": [None, 1.5]}
    assert jsonable(b"\x01\xff") == "01ff"
