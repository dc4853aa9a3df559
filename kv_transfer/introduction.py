"""How a process says which one it is, so that a peer on the same machine can watch it die."""

from __future__ import annotations

from kv_transfer import wire_format
from kv_transfer.host import host_id
from kv_transfer.peer_process import ProcessId, own_process_id


def pack_process() -> bytes:
    own = own_process_id()
    return wire_format.pack({"host_id": host_id(), "pid": own.pid, "start_ticks": own.start_ticks})


def unpack_process(data: bytes) -> ProcessId | None:
    """The process that `pack_process` named; None where it runs on another machine."""
    fields = wire_format.unpack(data, host_id=str, pid=int, start_ticks=int)
    if fields["host_id"] != host_id():
        return None
    return ProcessId(fields["pid"], fields["start_ticks"])
