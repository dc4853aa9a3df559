"""Baton's gRPC under load: prompts as token ids, tokens counted as they arrive."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from baton import AsyncClient
from baton.bench.target import ServerSettings
from baton.bench.workload import PlannedRequest, prompt_token_ids
from baton.client.results import Model
from baton.errors import InvalidArgument, UnknownModel
from baton.types import Usage


class GrpcTarget:
    """`model_info`: what the router says of the model; prompts keep below its vocabulary's size."""

    def __init__(
        self, client: AsyncClient, model_info: Model, seed: int, *, ignore_eos: bool
    ) -> None:
        self.model = model_info.name
        self.max_model_len: int | None = model_info.max_model_len
        self._vocab_size = model_info.vocab_size
        self._client = client
        self._seed = seed
        self._ignore_eos = ignore_eos

    @classmethod
    async def connect(cls, server: ServerSettings, seed: int) -> GrpcTarget:
        client = AsyncClient(server.addresses)
        try:
            model_info = _chosen(await client.models(), server.model)
        except BaseException:
            await client.close()
            raise
        return cls(client, model_info, seed, ignore_eos=server.ignore_eos)

    async def stream(self, request: PlannedRequest) -> AsyncGenerator[int | Usage, None]:
        stream = self._client.stream(
            prompt_token_ids(request, self._vocab_size, seed=self._seed),
            model=self.model,
            max_tokens=request.num_output_tokens,
            ignore_eos=self._ignore_eos,
        )
        async with stream:
            while deltas := await stream.receive():
                if num_tokens := sum(len(delta.token_ids) for delta in deltas):
                    yield num_tokens
        if stream.usage is not None:
            yield stream.usage

    async def close(self) -> None:
        await self._client.close()


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
