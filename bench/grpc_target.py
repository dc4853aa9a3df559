"""Baton's gRPC under load: prompts as token ids, tokens counted as they arrive."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from baton import AsyncClient
from baton.client.results import Model
from baton.errors import InvalidArgument, UnknownModel
from baton.types import Usage
from bench.workload import PlannedRequest, prompt_token_ids


@dataclass(frozen=True, slots=True)
class GrpcTarget:
    """Made by `connect`, which asks the router for its models."""

    client: AsyncClient
    model: Model
    seed: int
    ignore_eos: bool

    @classmethod
    async def connect(
        cls, addresses: Sequence[str], model: str, *, seed: int, ignore_eos: bool
    ) -> GrpcTarget:
        client = AsyncClient(addresses)
        try:
            return cls(client, _chosen(await client.models(), model), seed, ignore_eos)
        except BaseException:
            await client.close()
            raise

    async def stream(self, request: PlannedRequest) -> AsyncGenerator[int | Usage, None]:
        stream = self.client.stream(
            prompt_token_ids(request, self.model.vocab_size, seed=self.seed),
            model=self.model.name,
            max_tokens=request.num_output_tokens,
            ignore_eos=self.ignore_eos,
            detokenize=False,
        )
        async with stream:
            while deltas := await stream.receive():
                if num_tokens := sum(len(delta.token_ids) for delta in deltas):
                    yield num_tokens
        if stream.usage is not None:
            yield stream.usage

    async def close(self) -> None:
        await self.client.close()


def _chosen(models: Sequence[Model], name: str) -> Model:
    names = ", ".join(model.name for model in models) or "none"
    if not name and len(models) == 1:
        return models[0]
    if not name:
        raise InvalidArgument(f"name one of those that are served: {names}", field="model")
    for model in models:
        if model.name == name:
            return model
    raise UnknownModel(f"{name!r} is not served; these are: {names}", field="model")
