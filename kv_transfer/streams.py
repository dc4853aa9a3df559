"""The order between the engine's kernels and a hand-off's work on the same GPU, without either waiting.

    engine's thread    compute stream   ... kernels of layer i | moment | kernels of layer i + 1 ...
                                                                   v
    link's thread      side stream                            wait, then copy layer i ...

A moment is an event on the stream of the thread that asks for it; threads that move bytes have a stream of
their own, so that what they queue is not queued behind the engine's kernels, nor before them. In host memory
there is nothing to order: what a call has written is there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Await = Callable[[], None]


def moment(device: torch.device) -> Await:
    """Now, on the stream of this thread. What is returned makes the stream of the thread that calls it
    wait until everything queued by now has run; no thread waits."""
    if device.type != "cuda":
        return _nothing
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))

    def follow() -> None:
        torch.cuda.current_stream(device).wait_event(event)

    return follow


def use_side_stream(device: torch.device) -> None:
    """This thread's work on `device` goes to a stream of its own from now on."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream(device))


def synchronize(device: torch.device) -> None:
    """Waits until everything that this thread has queued has run."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _nothing() -> None:
    pass
