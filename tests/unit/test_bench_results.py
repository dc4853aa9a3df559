"""What the benchmarks that start clusters or engines make of what they saw."""

from __future__ import annotations

import pytest

from baton.bench import engine_result, interference_result, ttft
from baton.bench.engine_result import Run, Step
from baton.bench.interference_result import Episode, Prompt, Window, gaps_in, tokens_in
from baton.bench.observed import Gap, Observed
from baton.bench.outcome import Arrival
from baton.bench.ttft import Sent, TtftSettings
from baton.errors import Internal
from baton.types import HandOffReport, Timeline


def timeline(hand_off: HandOffReport | None = None) -> Timeline:
    return Timeline({}, "decode-0", "", 0, 0, 1, 0, hand_off=hand_off)


def observed(*arrivals: tuple[float, int], hand_off: HandOffReport | None = None) -> Observed:
    """Sent at 0."""
    return Observed(0.0, [Arrival(*each) for each in arrivals], timeline=timeline(hand_off))


class TestObserved:
    def test_gaps_begin_where_the_token_before_came(self) -> None:
        found = list(observed((1.0, 1), (1.5, 1), (2.5, 2)).gaps())
        assert found == [Gap(1.0, 0.5), Gap(1.5, 0.5), Gap(2.0, 0.5)]

    def test_without_a_token_there_is_no_ttft(self) -> None:
        with pytest.raises(Internal, match="without a token"):
            _ = observed().ttft_s


class TestTtft:
    def test_what_one_request_showed(self) -> None:
        report = HandOffReport("prefill-0", 1000, 0.3, 0.002, 0)
        sent = ttft.sent(observed((0.5, 1), (0.6, 1), (0.7, 1), (0.9, 1), hand_off=report))
        assert (sent.ttft_s, sent.prefill_worker, sent.num_bytes) == (0.5, "prefill-0", 1000)
        assert sent.first_gap_s == pytest.approx(0.1)
        assert sent.later_gaps_s == pytest.approx((0.1, 0.2))
        assert sent.transfer_exposed_s == 0.002

    def test_tokens_that_come_together_have_no_gap(self) -> None:
        sent = ttft.sent(observed((0.5, 2), (0.6, 1)))
        assert sent.first_gap_s == 0
        assert sent.later_gaps_s == pytest.approx((0.1,))
        assert sent.prefill_worker == ""

    def test_a_row(self) -> None:
        aggregated = [Sent(base, 0.010, (0.010,)) for base in (1.0, 2.0, 3.0)]
        pairs = [
            ttft.Pair(each, Sent(each.ttft_s * 1.1, 0.013, (0.010,), "prefill-0", 64, 0.001))
            for each in aggregated
        ]
        row = ttft.row(2048, pairs)
        assert row["prompt_tokens"] == 2048
        assert row["aggregated_ms"] == pytest.approx(2000)
        assert row["disaggregated_ms"] == pytest.approx(2200)
        assert row["ratio"] == pytest.approx(1.1)
        assert row["ci95"] == pytest.approx((1.1, 1.1))
        assert row["exposed_ms"] == pytest.approx(3)
        assert row["decode_step_ms"] == pytest.approx(10)
        assert (row["n"], row["bytes_moved"], row["prefill_worker"]) == (3, 64, "prefill-0")

    def test_long_prompts_that_stayed_local_fail_the_run(self) -> None:
        local, remote = Sent(1.0, 0.01, (0.01,)), Sent(1.0, 0.01, (0.01,), "prefill-0", 64)
        pairs = [ttft.Pair(local, remote)] + [ttft.Pair(local, local)] * 3
        with pytest.raises(Internal, match="3 of 4 prompts of 512 tokens"):
            ttft.row(512, pairs)
        row = ttft.row(32, pairs)
        assert (row["num_remote"], row["prefill_worker"]) == (1, "decode worker, prefill-0")

    def test_what_is_said_of_the_hand_off_is_of_those_that_had_one(self) -> None:
        local = ttft.Pair(Sent(1.0, 0.01, (0.01,)), Sent(9.0, 0.01, (0.01,)))
        remote = ttft.Pair(local.aggregated, Sent(2.0, 0.03, (0.01,), "prefill-0", 64, 0.002))
        row = ttft.row(512, [remote] * 4 + [local])
        assert (row["n"], row["num_remote"], row["bytes_moved"]) == (5, 4, 64)
        assert row["exposed_ci95_ms"] == pytest.approx([20, 20])
        only_local = ttft.row(32, [local] * 3)
        assert (only_local["bytes_moved"], only_local["exposed_ms"]) == (0, 0)

    def test_short_prompts_are_sent_more_often(self) -> None:
        assert TtftSettings(prompts=(32, 512)).schedule() == [32, 32, 32, 512]


class TestInterference:
    def test_a_gap_belongs_to_the_window_in_which_it_begins(self) -> None:
        stream = observed((1.0, 1), (2.0, 1), (4.0, 1), (9.0, 1))
        assert gaps_in(Window(1.0, 2.0), [stream]) == [1.0]
        assert gaps_in(Window(2.0, 4.5), [stream]) == [2.0, 5.0]
        assert gaps_in(Window(2.0, 4.5), [stream, stream]) == [2.0, 5.0, 2.0, 5.0]
        assert tokens_in(Window(2.0, 9.0), [stream.arrivals]) == 2

    def test_the_report(self) -> None:
        prompts = (Prompt(0.5, 2048, 4, 100), Prompt(1.5, 2048, 4, 0))
        episodes = [
            Episode([0.010, 0.010], [0.010, 0.020], 2.0, 40, prompts),
            Episode([0.020, 0.020], [0.040, 0.040], 2.0, 60, prompts),
        ]
        report = interference_result.report(episodes)
        assert report["itl_ms_quiet"] == {"p50": pytest.approx(15), "p99": pytest.approx(20)}
        assert report["itl_ms_loaded"]["p50"] == pytest.approx(30)
        assert report["ratio_p99"] == pytest.approx(2.0, rel=0.01)
        assert (report["n"], report["prompts"], report["transfers"]) == (2, 4, 2)
        assert report["prompt_ttft_ms"] == pytest.approx(1000)
        assert report["output_tokens_per_s"] == pytest.approx((40 + 60 + 16) / 4)
        assert report["tokens_per_s"] == pytest.approx((4 * 2048 + 116) / 4)
        assert (report["num_gaps_quiet"], report["num_gaps_loaded"]) == (4, 4)

    def test_an_episode_without_gaps_is_no_measurement(self) -> None:
        with pytest.raises(Internal, match="too short"):
            interference_result.report([Episode([], [0.1], 1.0, 1, (Prompt(1, 1, 1, 0),))])


class TestEngine:
    def test_decode_counts_steps_of_the_whole_batch_alone(self) -> None:
        """One joins after the other, both decode, one has ended."""
        steps = [Step(1.0, 1), Step(2.0, 2), Step(2.5, 2), Step(3.5, 2), Step(9.0, 1)]
        run = Run(0.0, 9.0, steps)
        assert run.decode_tokens_per_s(2) == pytest.approx(4 / 1.5)
        assert run.tokens_per_s == pytest.approx(8 / 9)

    def test_a_run_too_short_for_its_batch(self) -> None:
        with pytest.raises(Internal, match="too short"):
            Run(0.0, 2.0, [Step(1.0, 1), Step(2.0, 2)]).decode_tokens_per_s(2)

    def test_a_row(self) -> None:
        fast = Run(0.0, 2.0, [Step(1.0, 1), Step(1.1, 1), Step(1.2, 1)])
        slow = Run(0.0, 4.0, [Step(1.0, 1), Step(1.3, 1), Step(1.6, 1)])
        pairs = [engine_result.Pair(fast, slow, 20e9, 100e9)] * 5
        row = engine_result.row("shape", 1, 2, pairs, weight_bytes=10**9)
        assert (row["shape"], row["batch"], row["threads"], row["n"]) == ("shape", 1, 2, 5)
        assert row["baton_tokens_per_s"] == pytest.approx(10)
        assert row["ratio"] == pytest.approx(3)
        assert row["with_prompts"]["ratio"] == pytest.approx(2)
        assert row["weight_gb_per_s"] == pytest.approx(10)
        assert row["share_of_read"] == pytest.approx(0.5)
