"""A prefill worker's process: the prefill role mounted on a Host."""

from __future__ import annotations

import asyncio

from baton.v1 import prefill_pb2_grpc
from engine.block_manager import BlockManager
from kv_transfer.choose import Senders
from kv_transfer.faults import Faults
from prefill_worker.config import PrefillConfig
from prefill_worker.messages import Commands, Event
from prefill_worker.push import Pusher
from prefill_worker.pushing_runner import PushingRunner
from prefill_worker.scheduler import PrefillScheduler
from prefill_worker.service import PrefillService
from prefill_worker.state_machine import PrefillRequests
from worker.engine import LoadedEngine
from worker.host import Host

_ALIVES_PER_TIMEOUT = 4


async def run(config: PrefillConfig, engine: LoadedEngine) -> None:
    """Serves until drained. `engine` is loaded by the caller, who shows its progress."""
    runner = engine.runner
    loop = asyncio.get_running_loop()
    blocks = BlockManager(runner.num_blocks, runner.layout.block_size)
    scheduler = PrefillScheduler(blocks, config.limits())
    role = PrefillRequests(scheduler, config.host.times.block_hold_s)
    timeout_s = config.host.times.progress_timeout_s
    senders = Faults.from_environment().senders(
        engine.pool(), lambda pool: Senders(pool, timeout_s)
    )
    service = PrefillService(senders.connect)

    def deliver(commands: Commands) -> None:
        pusher.perform(commands.orders)
        if commands.words:
            loop.call_soon_threadsafe(service.send, commands.words)

    pusher = Pusher(
        runner.layout.num_layers,
        lambda event: host.post(event),
        service.announce,
        service.hang_up,
    )
    host: Host[Event, Commands] = Host(
        config.host, runner, PushingRunner(runner, role, pusher), role, deliver
    )
    service.post, service.pusher, service.info = host.post, pusher, lambda: host.info
    host.server.add_background(prefill_pb2_grpc.add_PrefillServicer_to_server, service)
    alive = asyncio.create_task(service.keep_alive(timeout_s / _ALIVES_PER_TIMEOUT, host.is_hung))
    try:
        await host.run()
    finally:
        alive.cancel()
        pusher.close()
