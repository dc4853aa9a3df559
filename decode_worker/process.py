"""A decode worker's process: the decode role mounted on a Host."""

from __future__ import annotations

from baton.v1 import decode_pb2_grpc
from decode_worker.config import DecodeConfig
from decode_worker.scheduler import Scheduler
from decode_worker.service import DecodeService
from decode_worker.state_machine import DecodeRequests, Event, Outbox, RouterId
from engine.block_manager import BlockManager
from engine.model_runner import ModelRunner
from worker.host import Host


async def run(config: DecodeConfig, runner: ModelRunner) -> None:
    """Serves until drained. `runner` is loaded by the caller, who shows its progress."""
    blocks = BlockManager(runner.num_blocks, runner.layout.block_size)
    max_model_len = min(runner.max_model_len, runner.num_blocks * runner.layout.block_size)
    role = DecodeRequests(Scheduler(blocks, config.limits(max_model_len)))
    service = DecodeService()
    host: Host[Event, dict[RouterId, Outbox]] = Host(config.host, runner, role, service.deliver)
    service.post = host.post
    host.server.add_background(decode_pb2_grpc.add_DecodeServicer_to_server, service)
    await host.run()
