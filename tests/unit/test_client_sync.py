"""The synchronous client: the same answers and errors, from ordinary code."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import baton
from baton import Client, errors
from baton.rpc.server import Server
from baton.v1 import inference_pb2_grpc
from tests.fake_inference import FakeInference


class ThreadedRouter:
    """A router on an event loop in its own thread, as the client's own would be in another
    process."""

    def __init__(self) -> None:
        self.fake = FakeInference()
        self.address = ""
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._serve()))
        self._thread.start()
        assert self._started.wait(10)

    async def _serve(self) -> None:
        server = Server()
        server.add(inference_pb2_grpc.add_InferenceServicer_to_server, self.fake)
        async with server:
            self.address = server.address
            self._started.set()
            await self._stop.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def wait_cancelled(self) -> None:
        waiting = asyncio.run_coroutine_threadsafe(self.fake.cancelled.wait(), self._loop)
        assert waiting.result(10)


@pytest.fixture
def router() -> Iterator[ThreadedRouter]:
    router = ThreadedRouter()
    yield router
    router.close()


def test_generate_stream_and_lists(router: ThreadedRouter) -> None:
    with Client(router.address) as client:
        assert client.generate("hi", max_tokens=3).text == "7 8 9 "
        stream = client.stream("hi", max_tokens=3, seed=1)
        assert "".join(delta.text for delta in stream) == "1 2 3 "
        assert stream.seed == 1
        assert stream.usage is not None
        assert stream.timeline is not None
        assert client.tokenize("hi") == [104, 105]
        assert client.detokenize([104, 105]) == "hi"
        assert [model.vocab_size for model in client.models()] == [256]


def test_errors_are_typed(router: ThreadedRouter) -> None:
    router.fake.refuse = errors.InvalidArgument("must not be empty", field="prompt")
    with Client(router.address) as client:
        with pytest.raises(errors.InvalidArgument, match="prompt: must not be empty"):
            client.generate("", max_tokens=3)
        with pytest.raises(errors.InvalidArgument, match="prompt: must not be empty"):
            next(client.stream("", max_tokens=3))


def test_leaving_a_stream_cancels_it(router: ThreadedRouter) -> None:
    router.fake.pause_s = 0.01
    with Client(router.address) as client:
        with client.stream("hi", max_tokens=1_000_000) as stream:
            next(stream)
        router.wait_cancelled()
        assert list(stream) == []


def test_dropping_a_stream_cancels_it(router: ThreadedRouter) -> None:
    router.fake.pause_s = 0.01
    with Client(router.address) as client:
        for delta in client.stream("hi", max_tokens=1_000_000):
            assert delta.token_ids == (7,)
            break
        router.wait_cancelled()


def test_many_threads_share_a_client(router: ThreadedRouter) -> None:
    with Client(router.address) as client, ThreadPoolExecutor(8) as pool:
        texts = list(
            pool.map(lambda seed: client.generate("hi", max_tokens=2, seed=seed).text, range(24))
        )
    assert texts == [f"{seed} {seed + 1} " for seed in range(24)]


def test_closing_twice_is_closing(router: ThreadedRouter) -> None:
    client = Client(router.address)
    client.close()
    client.close()


def test_types_load_no_network_library() -> None:
    code = (
        "import sys, baton.types, baton.errors, baton.config, baton.block_id, baton.instants;"
        "assert not {'grpc', 'google.protobuf', 'asyncio'} & set(sys.modules), sys.modules;"
        "import baton; assert baton.Client.__name__ == 'Client'; assert 'grpc' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_attribute_of_the_package() -> None:
    with pytest.raises(AttributeError, match="Clinet"):
        _ = baton.Clinet
