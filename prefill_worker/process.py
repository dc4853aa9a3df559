"""A prefill worker's process: the prefill role mounted on a Host."""

from __future__ import annotations

import asyncio
from functools import partial

from baton.scheduling.block_manager import BlockManager
from baton.v1 import prefill_pb2_grpc
from baton.worker.address import told_host
from baton.worker.engine import LoadedEngine
from baton.worker.host import Host
from baton.worker.verifier import Verifier
from baton.worker.written import wait_until_written
from kv_transfer.choose import Receivers, Senders
from kv_transfer.faults import Faults
from prefill_worker.borrower import Borrower
from prefill_worker.config import PrefillConfig
from prefill_worker.messages import Commands, Event, FenceDone
from prefill_worker.push import Pusher
from prefill_worker.pushing_runner import PushingRunner
from prefill_worker.scheduler import PrefillScheduler
from prefill_worker.service import PrefillService
from prefill_worker.state_machine import PrefillRequests

_ALIVES_PER_TIMEOUT = 4


async def run(config: PrefillConfig, engine: LoadedEngine) -> None:
    """Serves until drained. `engine` is loaded by the caller, who shows its progress."""
    runner = engine.runner
    loop = asyncio.get_running_loop()
    blocks = BlockManager(runner.num_blocks, runner.layout.block_size)
    scheduler = PrefillScheduler(blocks, config.limits())
    vocab_size = runner.model_config.vocab_size
    role = PrefillRequests(
        scheduler, config.host.times.block_hold_s, vocab_size, runner.max_model_len
    )
    timeout_s = config.host.times.progress_timeout_s
    pool = engine.pool()
    senders = Faults.from_environment().senders(
        pool, lambda pool: Senders(pool, timeout_s, config.host.transports)
    )
    service = PrefillService(senders.connect)

    def deliver(commands: Commands) -> None:
        if commands.orders:  # what is borrowed first: a fence may follow it at once
            loop.call_soon_threadsafe(borrower.perform, commands.orders)
        pusher.perform(commands.orders)
        if commands.words:
            loop.call_soon_threadsafe(service.send, commands.words)
            if commands.first:
                wait_until_written(loop, service.outgoing())

    def post(event: Event) -> None:
        """A fence is over when what was borrowed is over, too."""
        if isinstance(event, FenceDone):
            loop.call_soon_threadsafe(borrower.end, event.key)
        else:
            host.post(event)

    pusher = Pusher(
        runner.layout.num_layers,
        post,
        service.announce,
        service.hang_up,
        lambda error: host.fail(error),
    )
    receivers = Receivers(
        pool,
        engine.shared,
        config.host.host,
        timeout_s,
        config.host.transports,
        told_host(config.host),
    )
    verifier = Verifier(pool, verify=True)
    borrower = Borrower(receivers, verifier, lambda event: host.post(event), service.tell)
    host: Host[Event, Commands] = Host(
        config.host, runner, PushingRunner(runner, role, pusher), role, deliver
    )
    service.post, service.info = host.post, lambda: host.info
    service.pusher, service.borrower = pusher, borrower
    host.server.add_background(prefill_pb2_grpc.add_PrefillServicer_to_server, service)
    alive = partial(service.keep_alive, timeout_s / _ALIVES_PER_TIMEOUT, host.is_hung)
    try:
        await host.run(alive, borrower.run)
    finally:
        pusher.close()
        borrower.close()
