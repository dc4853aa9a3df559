"""Client channels between Baton's processes and from the SDK, and the limits both ends agree on.

Proxies from the environment are not used: a cluster's own traffic does not leave it, and a proxy
variable set for downloads would otherwise cut it.
"""

from __future__ import annotations

import grpc

MAX_MESSAGE_BYTES = 16 << 20  # a prompt of a million tokens takes a quarter of it

# A peer that went without a word (power, cable, a stopped process) is noticed within seven seconds.
# gRPC answers pings on threads of its own, so neither a busy event loop nor a long torch call is
# taken for death.
KEEPALIVE: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 3_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.http2.ping_timeout_ms", 4_000),  # else 60 s, whatever keepalive_timeout says
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


def channel(address: str, *, max_message_bytes: int = MAX_MESSAGE_BYTES) -> grpc.aio.Channel:
    """A channel to host:port. Connects on the first call and reconnects within a second of a
    loss."""
    return grpc.aio.insecure_channel(
        address,
        options=[
            *KEEPALIVE,
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", -1),  # the receiver's limit decides, and answers
            ("grpc.initial_reconnect_backoff_ms", 100),
            (
                "grpc.min_reconnect_backoff_ms",
                1_000,
            ),  # in gRPC's code, the time one attempt may take
            ("grpc.max_reconnect_backoff_ms", 1_000),
            ("grpc.enable_http_proxy", 0),
            # Channels share connections by default; one process's death would then be seen, and its
            # backoff suffered, by channels that meanwhile mean its successor on the same port.
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )
