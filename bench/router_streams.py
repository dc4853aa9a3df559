"""What a router on one core passes on: messages per second with a stream per request, tokens per second
with a session, and what it adds to a token's age at half the load.

    workers' process ==Decode==> router, alone on its core ==Generate, Session==> clients' process

Requests, validation, detokenization and gRPC are real; only the tokens are made up. Workers and clients
share the other cores.
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
from baton.errors import BatonError, Unavailable
from bench import router_streams_client, router_streams_worker
from bench.router_streams_client import ClientPlan, Counted
from bench.router_streams_worker import WorkerPlan
from bench.router_tokenizer import write_checkpoint
from bench.statistics import percentile
from cluster.process import Place, arguments, free_port

_MODEL = "made-up"
_NUM_WORKERS = 8
_START_S = 30.0

_spawn = get_context("spawn")


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """`num_streams`: requests at a time, of `num_tokens` each. Every figure is counted for `measure_s`."""

    num_streams: int = 64
    num_tokens: int = 400
    warm_up_s: float = 2.0
    measure_s: float = 8.0


def measure(settings: StreamSettings | None = None) -> dict[str, Any]:
    """`stream_messages_per_s`, `session_tokens_per_s`, and `added_latency_ms` with p50 and p99: a token's
    age on arrival, at half the messages per second that were reached."""
    settings = settings or StreamSettings()
    streams = run(settings, step_s=0.0, session=False)
    session = run(settings, step_s=0.0, session=True)
    messages_per_s = streams.num_messages / settings.measure_s
    step_s = settings.num_streams / (messages_per_s / 2)
    half = run(settings, step_s=step_s, session=False)
    return {
        "stream_messages_per_s": messages_per_s,
        "session_tokens_per_s": session.num_tokens / settings.measure_s,
        "added_latency_ms": {
            name: 1e3 * percentile(half.ages_s, percent)
            for name, percent in (("p50", 50), ("p99", 99))
        },
    }


def run(settings: StreamSettings, *, step_s: float, session: bool) -> Counted:
    """One measurement with processes of its own; `step_s` between the tokens of a request, 0: none."""
    own, other = _cores()
    with (
        tempfile.TemporaryDirectory(prefix="baton-bench-") as folder,
        _router(Path(folder), own) as address,
        _workers(WorkerPlan(address, _NUM_WORKERS, step_s, _MODEL), other),
    ):
        plan = ClientPlan(
            address,
            settings.num_streams,
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
            except BatonError:
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
