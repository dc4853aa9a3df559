"""A server under load, as the load generator sees it, whatever protocol it speaks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from baton.bench.workload import PlannedRequest
from baton.types import Usage

Api: TypeAlias = Literal["completions", "chat"]


class Target(Protocol):
    """`max_model_len`: None where the server does not tell."""

    @property
    def model(self) -> str: ...

    @property
    def max_model_len(self) -> int | None: ...

    def stream(self, request: PlannedRequest) -> AsyncGenerator[int | Usage, None]:
        """Sends the request. Yields the number of tokens of each message as it arrives, and where
        the server tells it, the usage. Raises BatonError."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where the load goes: to `addresses` with gRPC, to `base_url` (which ends in /v1 as a rule)
    with OpenAI's protocol, whose further settings are `api` and `api_key`. `model` may be empty
    where the server has one. `ignore_eos` over OpenAI's protocol is an extension that vLLM, SGLang
    and Baton know; where it is False, only OpenAI's own fields are sent."""

    protocol: Literal["grpc", "openai"]
    addresses: tuple[str, ...]
    base_url: str
    model: str = ""
    api: Api = "completions"
    api_key: str = ""
    ignore_eos: bool = True
