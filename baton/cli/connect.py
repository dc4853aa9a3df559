"""A client for the length of a command, whose failure to connect says what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from baton import Client
from baton.errors import Unavailable

_GRPC_CANNOT_CONNECT = "failed to connect to all addresses"


@contextmanager
def connected(addresses: Sequence[str]) -> Iterator[Client]:
    try:
        with Client(addresses) as client:
            yield client
    except Unavailable as error:
        raise explained(error, addresses) from error


def explained(error: Unavailable, addresses: Sequence[str]) -> Unavailable:
    """gRPC's words for "nobody listens there" in ours; any other error as it is."""
    if _GRPC_CANNOT_CONNECT not in error.message:
        return error
    return Unavailable(
        f"no router answers at {' or '.join(addresses)} (`baton up` starts one; --address or "
        "BATON_ADDRESS names another)"
    )
