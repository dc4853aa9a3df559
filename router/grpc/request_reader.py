"""Messages of baton.v1.Inference become what the front door takes. One that is too long for every model is
refused before it is converted; a long one is converted off the event loop."""

from __future__ import annotations

from functools import partial

from baton.errors import InvalidArgument
from baton.sampling_ranges import MAX_N
from baton.v1 import inference_pb2
from router.frontend import Frontend, max_entries
from router.grpc.wire import generate_input, prompt
from router.off_loop import OffLoop
from router.request import GenerateInput, Prompt

# What takes as long as a character that is tokenized counts as one: see `OffLoop.run`.
_CHARS_PER_MESSAGE = 4
_TOKENS_PER_CHAR = 16


class RequestReader:
    def __init__(self, frontend: Frontend, off_loop: OffLoop | None = None) -> None:
        self._frontend = frontend
        self._off_loop = off_loop or OffLoop()

    async def read(
        self, request: inference_pb2.GenerateRequest, timeout_s: float | None, traceparent: str
    ) -> GenerateInput:
        num_tokens = len(request.token_ids.ids)
        num_samples = len(request.output_token_ids)
        self._check_length("token_ids", num_tokens)
        if num_samples > MAX_N:
            raise InvalidArgument(
                f"has {num_samples} samples; there are at most {MAX_N}", field="output_token_ids"
            )
        num_tokens += sum(len(sample.ids) for sample in request.output_token_ids)
        return await self._off_loop.run(
            partial(generate_input, request, timeout_s, traceparent),
            self._size_of_chat(request) + num_tokens // _TOKENS_PER_CHAR,
            tenant=request.tenant,
        )

    async def read_prompt(self, request: inference_pb2.TokenizeRequest) -> Prompt:
        return await self._off_loop.run(partial(prompt, request), self._size_of_chat(request))

    def _size_of_chat(
        self, request: inference_pb2.GenerateRequest | inference_pb2.TokenizeRequest
    ) -> int:
        num_messages = len(request.chat.messages)
        self._check_length("chat.messages", num_messages)
        return _CHARS_PER_MESSAGE * num_messages

    def _check_length(self, field: str, length: int) -> None:
        most = max_entries(self._frontend.models())
        if length > most:
            raise InvalidArgument(
                f"has {length} entries: no model here has so large a context", field=field
            )
