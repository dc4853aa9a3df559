"""Ending a process of this machine so that it is known to have ended.

A kill that returns is proof: the process runs no instruction more and its memory is unmapped, so what it
was writing to will not change. Needs no Ray and no gRPC, and no cooperation of the killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
from collections.abc import Iterator

from baton.errors import Unavailable


@contextlib.contextmanager
def _opened(pid: int) -> Iterator[int | None]:
    """A descriptor of the process, which no other process with its number can take over; None where it
    has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def kill_confirmed(pid: int, timeout_s: float = 5.0) -> None:
    """SIGKILL, and back only when the process has ended. A stopped process (SIGSTOP) ends, too. Raises
    Unavailable where it does not end in time (it hangs inside the kernel)."""
    with _opened(pid) as descriptor:
        if descriptor is None:
            return
        with contextlib.suppress(ProcessLookupError):  # it has ended since
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)  # readable when the process has ended
        if not poll.poll(1000 * timeout_s):
            raise Unavailable(f"process {pid} still lives {timeout_s:g} s after SIGKILL")


async def ended(pid: int) -> None:
    """Waits until the process has ended, with no delay and no polling."""
    loop = asyncio.get_running_loop()
    with _opened(pid) as descriptor:
        if descriptor is None:
            return
        gone = asyncio.Event()
        loop.add_reader(descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(descriptor)
