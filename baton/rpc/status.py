"""How a BatonError crosses gRPC: its status and message for every client, and in the trailing
metadata `baton-error-bin` the whole of it (a serialized baton.v1.Error) for Baton's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from baton import convert, errors
from baton.v1 import common_pb2

ERROR_METADATA = "baton-error-bin"

# What a bare status means: one set by gRPC itself, by a proxy, or by a server that is not Baton.
_BARE: dict[grpc.StatusCode, type[errors.BatonError]] = {
    grpc.StatusCode.CANCELLED: errors.Cancelled,
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.Overloaded,
    grpc.StatusCode.FAILED_PRECONDITION: errors.IncompatiblePeer,
    grpc.StatusCode.UNIMPLEMENTED: errors.IncompatiblePeer,  # another version, or no Baton at all
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.DATA_LOSS: errors.IntegrityError,
}


def status_code(error: errors.BatonError) -> grpc.StatusCode:
    return grpc.StatusCode[errors.STATUS[type(error)].grpc]


def from_rpc_error(error: grpc.aio.AioRpcError) -> errors.BatonError:
    """The typed error behind a failed call. The caller raises it `from` the gRPC error."""
    metadata: Iterable[Any] = error.trailing_metadata() or ()
    packed = dict(metadata).get(ERROR_METADATA)
    if isinstance(packed, bytes):
        try:
            return convert.error_from_proto(common_pb2.Error.FromString(packed))
        except DecodeError:
            return errors.Internal(f"undecodable {ERROR_METADATA}: {error.details()}")
    details = error.details() or error.code().name
    # gRPC refuses a message above the receiver's limit with the status of overload, on which a
    # client would come back with the very same message.
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return errors.InvalidArgument(details, field="message")
    return _BARE.get(error.code(), errors.Internal)(details)
