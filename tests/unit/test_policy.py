"""Who computes a prompt, and where it is decoded."""

from __future__ import annotations

import dataclasses

import pytest

from baton.types import Fingerprint, PoolId, PoolLoad, Role, WorkerInfo
from router.routing.policy import Choice, Demand, PolicySettings, choose
from router.routing.pools import Pool

FINGERPRINT = Fingerprint("model", 64, 1, "fp32", 12, 4, 64)
KV_BYTES = 2 * 12 * 4 * 64 * 4


def pool(name: str, role: Role = Role.DECODE, *, rate: float = 1000.0, free: int = 100) -> Pool:
    worker = WorkerInfo(
        worker_id=name,
        incarnation=1,
        role=role,
        address="127.0.0.1:1",
        model="m",
        fingerprint=FINGERPRINT,
        max_model_len=4096,
        vocab_size=100,
        num_dp_ranks=1,
        num_total_blocks=100,
        package_version="0",
        transports=("shm",),
        host_id="h",
        pid=1,
    )
    load = PoolLoad(PoolId(name), 1, 0, 0, 0, 100, free, 0, 100 - free, 0, rate, 0.02)
    made = Pool(PoolId(name), worker)
    made.note_load(load)
    return made


def chosen(
    num_tokens: int,
    decode: list[Pool],
    prefill: list[Pool],
    hits: dict[str, int] | None = None,
) -> Choice:
    by_pool = {PoolId(name): tokens for name, tokens in (hits or {}).items()}
    choice = choose(Demand(num_tokens, by_pool, KV_BYTES), decode, prefill, PolicySettings())
    assert choice is not None
    return choice


def test_nobody_to_decode() -> None:
    assert choose(Demand(10, {}), [], [pool("p", Role.PREFILL)], PolicySettings()) is None


def test_a_short_prompt_stays_and_a_long_one_goes() -> None:
    decode, prefill = [pool("d")], [pool("p", Role.PREFILL)]
    assert chosen(32, decode, prefill).prefill is None
    long = chosen(2048, decode, prefill)
    assert long.prefill is prefill[0]
    assert long.num_missing == 2048
    assert long.remote_ttft_s is not None
    assert 2.0 < long.local_ttft_s < long.remote_ttft_s < 2.2


@pytest.mark.parametrize("noise", [0.85, 1.0, 1.15])
def test_a_pair_of_slow_workers_computes_short_prompts_where_they_are_decoded(noise: float) -> None:
    """At 400 tokens/s a hand-off is cheap beside 512 tokens and dear beside 32, whoever of two equal
    workers has measured himself a little faster."""
    decode, prefill = [pool("d", rate=400.0)], [pool("p", Role.PREFILL, rate=400.0 * noise)]
    assert chosen(32, decode, prefill).prefill is None
    assert chosen(512, decode, prefill).prefill is prefill[0]
    assert chosen(2048, decode, prefill).prefill is prefill[0]


def test_a_short_suffix_of_a_long_conversation_is_never_shipped() -> None:
    decode = [pool("d0"), pool("d1")]
    choice = chosen(2048, decode, [pool("p", Role.PREFILL)], {"d1": 2016})
    assert choice.decode is decode[1]
    assert choice.prefill is None


def test_a_busy_decode_worker_ships_what_an_idle_one_keeps() -> None:
    decode, prefill = pool("d"), [pool("p", Role.PREFILL)]
    assert chosen(40, [decode], prefill).prefill is None
    decode.num_in_flight = 8
    assert chosen(40, [decode], prefill).prefill is prefill[0]


def test_a_long_queue_at_prefill_keeps_the_prompt_local() -> None:
    decode, prefill = [pool("d")], pool("p", Role.PREFILL)
    prefill.enqueue(1500, 1.5, now_s=0.0)
    prefill.enqueue(1500, 1.5, now_s=0.0)
    prefill.enqueue(1500, 1.5, now_s=0.0)
    assert chosen(2048, decode, [prefill]).prefill is None


def test_the_prefill_worker_that_has_the_prefix_is_chosen() -> None:
    prefill = [pool("p0", Role.PREFILL), pool("p1", Role.PREFILL)]
    choice = chosen(2048, [pool("d")], prefill, {"p1": 1024})
    assert choice.prefill is prefill[1]
    assert choice.num_missing == 1024


def test_streams_spread_and_ties_go_to_the_emptier_cache() -> None:
    crowded, free = pool("d0"), pool("d1")
    crowded.num_in_flight = 4
    assert chosen(32, [crowded, free], []).decode is free
    full, empty = pool("d0", free=1), pool("d1", free=99)
    assert chosen(32, [full, empty], []).decode is empty


def test_a_worker_that_nobody_has_tried_is_not_passed_over() -> None:
    decode = [pool("d", rate=12_000.0)]
    untried = pool("p", Role.PREFILL)
    assert untried.load is not None
    untried.note_load(dataclasses.replace(untried.load, prefill_tokens_per_s=0.0))
    assert chosen(2048, decode, [untried]).prefill is untried


def busy(name: str, num_streams: int) -> Pool:
    decode = pool(name)
    decode.num_in_flight = num_streams
    return decode


def test_a_prefix_is_lent_where_that_is_faster_than_to_compute_it_again() -> None:
    """A long conversation with much that is new, on a decode worker with many streams."""
    decode, prefill = [busy("d", 30)], [pool("p", Role.PREFILL)]
    lent = chosen(9000, decode, prefill, {"d": 8000})
    assert lent.prefill is prefill[0]
    assert lent.num_missing == 1000
    choice = lent.prefill_choice()
    assert choice is not None
    assert choice.lend
    assert lent.remote_ttft_s is not None
    assert 1.0 < lent.remote_ttft_s < 1.3
    prefill[0].transfer_bytes_per_s = 1e6  # a link that is slower than computing
    kept = chosen(9000, decode, prefill, {"d": 8000})
    assert not kept.lends


def test_nothing_is_lent_that_the_prefill_worker_has() -> None:
    decode, prefill = [busy("d", 30)], [pool("p", Role.PREFILL)]
    both = chosen(9000, decode, prefill, {"d": 8000, "p": 8000})
    assert both.prefill is prefill[0]
    assert not both.lends
    more = chosen(9000, decode, prefill, {"d": 4000, "p": 8000})
    assert not more.lends


def test_a_pool_that_this_request_would_make_too_slow_is_passed_over() -> None:
    """Both keep the target now; only one does with a stream more."""
    near, far = pool("near"), pool("far")
    for each, step_s in ((near, 0.018), (far, 0.012)):
        assert each.load is not None
        load = dataclasses.replace(each.load, decode_step_s=step_s, decode_stream_s=0.004)
        each.note_load(load)
    demand = Demand(640, {PoolId("near"): 600}, KV_BYTES)
    for target_s, expected in ((0.0, near), (0.020, far), (0.025, near)):
        choice = choose(demand, [near, far], [], PolicySettings(itl_target_s=target_s))
        assert choice is not None
        assert choice.decode is expected
