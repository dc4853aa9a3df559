"""What every Baton process may know. `baton.Client` and `baton.AsyncClient` are the Python SDK;
they are loaded on first use, so that `import baton.types` loads no network library."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from baton.client.async_client import AsyncClient
    from baton.client.sync_client import Client

__all__ = ["AsyncClient", "Client"]


def __getattr__(name: str) -> object:
    """PEP 562."""
    if name == "AsyncClient":
        from baton.client.async_client import AsyncClient

        return AsyncClient
    if name == "Client":
        from baton.client.sync_client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
