"""A prefill worker's process: the prefill role mounted on a Host."""

from __future__ import annotations

import asyncio

from baton.v1 import prefill_pb2_grpc
from engine.batch import StepOutput, StepPlan
from engine.block_manager import BlockManager
from engine.model_runner import ModelRunner
from kv_transfer.choose import Senders
from kv_transfer.faults import Faults
from prefill_worker.config import PrefillConfig
from prefill_worker.messages import Commands, Event
from prefill_worker.push import Pusher
from prefill_worker.scheduler import PrefillScheduler
from prefill_worker.service import PrefillService
from prefill_worker.state_machine import PrefillRequests
from worker.engine import LoadedEngine
from worker.host import Host


class _PushingRunner:
    """Runs a step and lets each layer's complete blocks leave while the next layer is computed."""

    def __init__(self, runner: ModelRunner, role: PrefillRequests, pusher: Pusher) -> None:
        self._runner = runner
        self._role = role
        self._pusher = pusher

    def run(self, plan: StepPlan) -> StepOutput:
        self._pusher.begin_step(self._role.step_writes)
        return self._runner.run(plan, on_layer=self._pusher.layer_written)


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
        config.host, runner, _PushingRunner(runner, role, pusher), role, deliver
    )
    service.post, service.pusher, service.info = host.post, pusher, lambda: host.info
    host.server.add_background(prefill_pb2_grpc.add_PrefillServicer_to_server, service)
    try:
        await host.run()
    finally:
        pusher.close()
