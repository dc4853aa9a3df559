"""What a router on one core passes on: messages per second with a call per request, tokens per second with
a session, and how old a token is when it arrives, at half the load.

    workers' process ==Decode==> router, alone on its core ==Generate, Session==> clients' process

Requests, validation, detokenization and gRPC are real; only the tokens are made up. Workers and clients
share another core. Workers make tokens at a given pace, as decode steps do: offered several loads, the
router is judged by the most that it passed on. (Without a pace, flow control would hand the tokens over in
crumbs, which no real worker does.)
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from baton import Client
from baton.bench import router_streams_client, router_streams_worker
from baton.bench.router_streams_client import ClientPlan, Counted
from baton.bench.router_streams_worker import WorkerPlan
from baton.bench.router_tokenizer import write_checkpoint
from baton.bench.statistics import percentile
from baton.cluster.process import Place, arguments, free_port
from baton.errors import BatonError, Unavailable

_MODEL = "made-up"
_NUM_WORKERS = 8
_MESSAGES_PER_S = (5_000, 6_500, 8_000)  # offered, one token each
_TOKENS_PER_S = (40_000, 60_000, 80_000)
_START_S = 30.0

_spawn = get_context("spawn")


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """`num_calls`, `num_in_session`: requests at a time, of `num_tokens` each. Every load is offered for
    `warm_up_s` and then counted for `measure_s`."""

    num_calls: int = 64
    num_in_session: int = 256
    num_tokens: int = 400
    warm_up_s: float = 2.0
    measure_s: float = 4.0


def measure(settings: StreamSettings | None = None) -> dict[str, Any]:
    """`stream_messages_per_s`, `session_tokens_per_s`, and `added_latency_ms` with p50 and p99: a token's
    age on arrival, at half the messages per second that were reached."""
    settings = settings or StreamSettings()
    messages_per_s = max(
        run(settings, load, session=False).num_messages / settings.measure_s
        for load in _MESSAGES_PER_S
    )
    tokens_per_s = max(
        run(settings, load, session=True).num_tokens / settings.measure_s for load in _TOKENS_PER_S
    )
    half = run(settings, messages_per_s / 2, session=False)
    ages_ms = [1e3 * age_s for age_s in half.ages_s]
    return {
        "stream_messages_per_s": messages_per_s,
        "session_tokens_per_s": tokens_per_s,
        "added_latency_ms": {"p50": percentile(ages_ms, 50), "p99": percentile(ages_ms, 99)},
    }


def run(settings: StreamSettings, tokens_per_s: float, *, session: bool) -> Counted:
    """One load, with processes of its own."""
    own, other = _cores()
    num_streams = settings.num_in_session if session else settings.num_calls
    with (
        tempfile.TemporaryDirectory(prefix="baton-bench-") as folder,
        _router(Path(folder), own) as address,
        _workers(WorkerPlan(address, _NUM_WORKERS, num_streams / tokens_per_s, _MODEL), other),
    ):
        plan = ClientPlan(
            address,
            num_streams,
            settings.num_tokens,
            session,
            settings.warm_up_s,
            settings.measure_s,
        )
        return _clients(plan, other)


@contextmanager
def _workers(plan: WorkerPlan, core: int) -> Iterator[None]:
    process = _spawn.Process(target=router_streams_worker.run, args=(plan, core), daemon=True)
    process.start()
    try:
        _wait_for(plan.router, plan.num_workers)
        yield
    finally:
        process.kill()
        process.join()


def _cores() -> tuple[int, int]:
    """The router's, and that of workers and clients."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[0], cores[-1]


@contextmanager
def _router(folder: Path, core: int) -> Iterator[str]:
    port = free_port()
    options = {
        "grpc_port": port,
        "http_port": free_port(),
        "model": f"{_MODEL}={write_checkpoint(folder / 'model')}",
        "log_level": "warning",
    }
    process = Place(folder, {}).start("router", "router", arguments(options))
    os.sched_setaffinity(process.popen.pid, {core})  # before it has any other thread
    try:
        yield f"127.0.0.1:{port}"
    except BatonError as error:
        raise type(error)(f"{error}\n{process.log_tail()}") from error
    finally:
        process.stop()


def _wait_for(address: str, num_workers: int) -> None:
    give_up_s = time.monotonic() + _START_S
    with Client(address) as client:
        while time.monotonic() < give_up_s:
            try:
                if sum(worker.connected for worker in client.workers()) == num_workers:
                    return
            except Unavailable:
                pass  # it is not up yet
            time.sleep(0.1)
    raise Unavailable(f"the router did not find its workers within {_START_S:g} s")


def _clients(plan: ClientPlan, core: int) -> Counted:
    receiver, sender = _spawn.Pipe(duplex=False)
    clients = _spawn.Process(
        target=router_streams_client.run, args=(plan, core, sender), daemon=True
    )
    clients.start()
    sender.close()  # so that its end is seen
    try:
        counted: Counted = receiver.recv()
    except EOFError:
        raise Unavailable("the clients' process ended without a result") from None
    finally:
        clients.join()
    return counted
