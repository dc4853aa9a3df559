"""A decode worker's process: the decode role mounted on a Host."""

from __future__ import annotations

import asyncio

from baton import convert
from baton.scheduling.block_manager import BlockManager
from baton.v1 import decode_pb2_grpc, prefill_pb2
from baton.worker.address import told_host
from baton.worker.engine import LoadedEngine
from baton.worker.host import Host
from baton.worker.verifier import Verifier
from baton.worker.written import wait_until_written
from decode_worker.config import DecodeConfig
from decode_worker.decode_side import DecodeSide
from decode_worker.hand_off import HandOffs
from decode_worker.messages import Commands, Event
from decode_worker.scheduler import Scheduler
from decode_worker.service import DecodeService
from decode_worker.state_machine import DecodeRequests
from kv_transfer.choose import Receivers, Senders
from kv_transfer.faults import Faults
from kv_transfer.introduction import pack_process


async def run(config: DecodeConfig, engine: LoadedEngine) -> None:
    """Serves until drained. `engine` is loaded by the caller, who shows its progress."""
    runner = engine.runner
    loop = asyncio.get_running_loop()
    blocks = BlockManager(runner.num_blocks, runner.layout.block_size)
    scheduler = Scheduler(blocks, config.limits(runner.max_model_len))
    role = DecodeRequests(scheduler, runner.model_config.vocab_size)
    service = DecodeService()
    pool = engine.pool()
    times = config.host.times
    receivers = Receivers(
        pool,
        engine.shared,
        config.host.host,
        times.progress_timeout_s,
        config.host.transports,
        told_host(config.host),
    )

    def hello(stream: int) -> prefill_pb2.PrefillHello:
        info = host.info
        return prefill_pb2.PrefillHello(
            worker_id=info.worker_id,
            incarnation=info.incarnation,
            fingerprint=convert.fingerprint_to_proto(info.fingerprint),
            endpoints=[receivers.offer()],
            stream=stream,
            process=pack_process(),
        )

    verifier = Verifier(
        pool, verify=config.verify_checksums, arrived=Faults.from_environment().arrived(pool)
    )
    senders = Senders(pool, times.progress_timeout_s, config.host.transports)
    side = DecodeSide(
        receivers,
        senders,
        verifier,
        hello,
        lambda event: host.post(event),
        lambda error: host.fail(error),
        times,
    )
    hand_offs = HandOffs(side)

    def deliver(commands: Commands) -> None:
        if commands.outboxes:
            loop.call_soon_threadsafe(service.send, commands.outboxes)
            if commands.first:
                wait_until_written(loop, service.outgoing())
        if commands.orders:
            loop.call_soon_threadsafe(hand_offs.perform, commands.orders)

    host: Host[Event, Commands] = Host(config.host, runner, runner, role, deliver)
    service.post, service.incarnation = host.post, host.incarnation
    service.meet = hand_offs.meet
    host.server.add_background(decode_pb2_grpc.add_DecodeServicer_to_server, service)
    try:
        await host.run()
    finally:
        await hand_offs.close()
